"""Checks the token indices of any editing pipeline: padding, subject positions, targets with a start token. Two bugs of
public code that ran PMET on Llama-2 (easyeditor/models/pmet/compute_zs.py and easyeditor/editors/editor.py of
github.com/zjunlp/EasyEdit; its issues 236 and 247) raise no error, only the probability does not rise: a start token in
front of the target, and prompts padded on the left whose tokens are counted as if padded on the right."""

from ..errors import KeditError

UNSEEN = -100  # a label that no loss reads


def check_pipeline(tokenizer, subject, input_ids, lookup, target_ids, attention_mask=None, labels=None) -> list[str]:
    """What is wrong with the tensors of one edit, one line each; an empty list if nothing is.

    subject         as it stands in the prompts; its last occurrence counts
    input_ids       [n, t] the prompts in all contexts, padded, as the model gets them (tensor, array or lists)
    lookup          [n] index into each row where δ is added or keys are read: the subject's last token is expected
    target_ids      the ids that the loss is taken of
    attention_mask  [n, t] 1 where a token is real (None: all that is not the pad token)
    labels          [n, t] the target's ids where the loss is read, -100 elsewhere (None: not checked)

    KeditError for rows of different lengths, or not one lookup a row.
    """
    rows, lookups, target = _lists(input_ids), _lists(lookup), _lists(target_ids)
    if not rows or len(lookups) != len(rows) or len({len(row) for row in rows}) != 1:
        given = f"{len(rows)} rows of lengths {sorted({len(r) for r in rows})} and {len(lookups)} lookups"
        raise KeditError(f"check_pipeline: {given}; give padded rows, [n, t], and one index a row")
    if attention_mask is None:  # runs of the pad token at either end are padding
        tokens = [[p for p, token in enumerate(row) if token != tokenizer.pad_token_id] for row in rows]
        reals = [list(range(at[0], at[-1] + 1)) if at else [] for at in tokens]
    else:
        reals = [[p for p, seen in enumerate(mask) if seen] for mask in _lists(attention_mask)]
    found, own = [], [t for t in target if t not in tokenizer.all_special_ids]
    if target[:1] != own[:1]:
        token = tokenizer.decode(target[:1])
        found.append(f"target: begins with the special token {token!r}; encode it with add_special_tokens=False")
    for i, (row, real, at) in enumerate(zip(rows, reals, lookups, strict=True)):
        problems = [
            _started_again(tokenizer, [row[p] for p in real], own),
            _looked_up(tokenizer, row, real, subject, at % len(row)),
            "" if labels is None else _expected(real, _lists(labels)[i]),
        ]
        found += [f"row {i}: {problem}" for problem in problems if problem]
    return found


def _started_again(tokenizer, ids: list[int], target: list[int]) -> str:
    tail = [tokenizer.bos_token_id, *target[:-1]]
    if tail[0] is None or len(ids) <= len(tail) or ids[-len(tail) :] != tail:
        return ""
    return f"the start token {tokenizer.decode(tail[:1])!r} stands between prompt and target"


def _looked_up(tokenizer, row: list[int], real: list[int], subject: str, at: int) -> str:
    ids = [row[p] for p in real]
    counts = [tokenizer.decode(ids[: n + 1]).count(subject) for n in range(len(ids))]
    if not counts or not counts[-1]:
        return f"the subject {subject!r} is not in it: {tokenizer.decode(ids)!r}"
    last = counts.index(counts[-1])
    right, what = real[last], repr(tokenizer.decode([row[at]])) if at in real else "padding"
    said = f"index {at} is {what}, the subject's last token is {tokenizer.decode([row[right]])!r} at {right}"
    if at == last:
        said += f"; the row has {right - last} tokens of padding in front and is counted as if it had none"
        said += ": set tokenizer.padding_side = 'right', or add them"
    return "" if at == right else said


def _expected(real: list[int], labels: list[int]) -> str:
    places = [p for p, label in enumerate(labels) if label != UNSEEN]
    if places and places == real[-len(places) :]:
        return ""
    where = f"at {places[0]} to {places[-1]}" if places else "nowhere"
    return f"the target is expected {where}, the sentence ends at {real[-1]}"


def _lists(values) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)
