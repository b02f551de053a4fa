"""Checks the token indices of any editing pipeline. Two bugs of public code that ran PMET on Llama-2 (EasyEdit's
pmet/compute_zs.py and editors/editor.py; issues 236 and 247 of github.com/zjunlp/EasyEdit) raise no error: a start
token in front of the target, and prompts padded on the left whose tokens are counted as if padded on the right."""

from ..errors import KeditError

UNSEEN = -100  # a label that no loss reads


def check_pipeline(tokenizer, subject, input_ids, lookup, target_ids, attention_mask=None, labels=None) -> list[str]:
    """What is wrong with the tensors of one edit, one line each; an empty list if nothing is. KeditError for rows of
    different lengths, or not one lookup per row. The last occurrence of `subject` in a prompt counts.

    input_ids       [n, t] the prompts in all contexts, padded, as the model gets them (tensor, array or lists)
    lookup          [n] index into each row where δ is added or keys are read: the subject's last token is expected
    target_ids      the ids that the loss is taken of
    attention_mask  [n, t] 1 where a token is real (None: all that is not the pad token)
    labels          [n, t] the target's ids where the loss is read, -100 elsewhere (None: not checked)
    """
    rows, lookups, target = _lists(input_ids), _lists(lookup), _lists(target_ids)
    if not rows or len(lookups) != len(rows) or len({len(row) for row in rows}) != 1:
        given = f"{len(rows)} rows of lengths {sorted({len(r) for r in rows})} and {len(lookups)} lookups"
        raise KeditError(f"check_pipeline: {given}; give padded rows, [n, t], and one index per row")
    found, own = [], [t for t in target if t not in tokenizer.all_special_ids]
    if target[:1] != own[:1]:
        token = tokenizer.decode(target[:1])
        found.append(f"target: begins with the special token {token!r}; encode it with add_special_tokens=False")
    for i, (row, at) in enumerate(zip(rows, lookups, strict=True)):
        mask = [t != tokenizer.pad_token_id for t in row] if attention_mask is None else _lists(attention_mask)[i]
        real = [p for p, seen in enumerate(mask) if seen]
        if attention_mask is None and real:  # runs of the pad token at either end are padding
            real = list(range(real[0], real[-1] + 1))
        problems = _prompt(tokenizer, row, real, own, subject, at % len(row))
        places = real[-1:] if labels is None else [p for p, label in enumerate(_lists(labels)[i]) if label != UNSEEN]
        if not places or places != real[-len(places) :]:
            where = f"at {places[0]} to {places[-1]}" if places else "nowhere"
            problems.append(f"the target is expected {where}, the sentence ends at {real[-1]}")
        found += [f"row {i}: {problem}" for problem in problems]
    return found


def _prompt(tokenizer, row: list[int], real: list[int], target: list[int], subject: str, at: int) -> list[str]:
    """What is wrong with a row whose tokens stand at `real`, when its subject is looked up `at`."""
    ids, start, found = [row[p] for p in real], tokenizer.bos_token_id, []
    tail = [start, *target[:-1]]
    if start is not None and len(ids) > len(tail) and ids[-len(tail) :] == tail:
        found.append(f"the start token {tokenizer.decode([start])!r} stands between prompt and target")
    counts = [tokenizer.decode(ids[: n + 1]).count(subject) for n in range(len(ids))]
    if not counts or not counts[-1]:
        return [*found, f"the subject {subject!r} is not in it: {tokenizer.decode(ids)!r}"]
    last = counts.index(counts[-1])
    if at != (right := real[last]):
        what = repr(tokenizer.decode([row[at]])) if at in real else "padding"
        said = f"index {at} is {what}, the subject's last token is {tokenizer.decode([row[right]])!r} at {right}"
        if at == last:
            said += f"; the row has {right - last} tokens of padding in front and is counted as if it had none"
            said += ": set tokenizer.padding_side = 'right', or add them"
        found.append(said)
    return found


def _lists(values) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)
