"""Greedy completion in batches: what a model generates without being given the answer."""

import re
from functools import partial

import pandas as pd
import torch

from ..data.words import SENTENCE_ENDS
from .hooks import FILL
from .tokenization import encoded

ROWS, FEW = 256, 24  # prompts of a batch at most; prompts of one length below which they share one with others


@torch.no_grad()
def decode(model, rows: dict[int, list[int]], choose, stay) -> dict[int, list[int]]:
    """What a model writes after each of `rows` (ids), a token at a time, all together: padded in front, keys and values
    kept. None depends on the others. choose(logits [n, vocabulary]) → the next token [n, 1] of each row that is left;
    stay(going, out) → those of the rows `going` that go on; out: {row: what it wrote so far}, returned at last."""
    device, longest = next(model.parameters()).device, max(map(len, rows.values()))
    step = torch.tensor([[FILL] * (longest - len(r)) + list(r) for r in rows.values()], device=device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows.values()], device=device)
    position, padded, past = (mask.cumsum(1) - 1).clamp(min=0), not bool(mask.all()), None
    out, going = {i: [] for i in rows}, list(rows)
    while going:
        # Without padding no mask: attention is then the causal one, which is computed faster.
        places = {"attention_mask": mask, "position_ids": position} if padded else {}
        found = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1, **places)
        step, past = choose(found.logits[:, -1]).to(device), found.past_key_values
        position, mask = position[:, -1:] + 1, torch.cat([mask, mask.new_ones(len(step), 1)], 1)
        for i, token in zip(going, step[:, 0].tolist(), strict=True):
            out[i].append(token)
        before, going = going, stay(going, out)
        if going and len(going) < len(before):
            at = torch.tensor([before.index(i) for i in going])  # on the CPU: layers may lie on several devices
            step, position, mask = step[at], position[at], mask[at]
            past.batch_select_indices(at)
    return out


def continuations(model, tokenizer, prompts, max_new_tokens, enough=None) -> list[tuple[str, bool]]:
    """(what the model writes greedily, whether its text ended there or was cut off) of each prompt. max_new_tokens: of
    all or a list, one for each. It stops early when enough(i, text) is true of what is written after prompt i."""
    eos, text = tokenizer.eos_token_id, partial(tokenizer.decode, skip_special_tokens=True)
    ids, written = encoded(tokenizer, prompts), {}
    most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens

    def stay(going: list[int], out) -> list[int]:
        left = [i for i in going if out[i][-1] != eos and len(out[i]) < most[i]]
        return [i for i in left if not enough(i, text(out[i]))] if enough else left

    # Batches of one length where at least FEW have it; the others, of like length, share theirs.
    lengths = pd.Series([len(one) for one in ids], dtype=int).sort_values(kind="stable")
    rare = lengths.groupby(lengths).transform("size") < FEW
    for _, group in lengths.groupby(lengths.mask(rare, 0)):
        for k in range(0, len(group), ROWS):
            rows = {i: ids[i] for i in group.index[k : k + ROWS]}
            written |= decode(model, rows, lambda logits: logits.argmax(-1, keepdim=True), stay)
    return [(text(written[i]), written[i][-1:] == [eos]) for i in range(len(prompts))]


def sentence(text: str, answers=()) -> tuple[str, bool]:
    """`text` up to its first full stop (or another end of a sentence, such as 。) or line end, stripped, and whether it
    has one. Full stops inside one of `answers` that the text begins with ("St. Louis") end nothing; its own last one
    ("U.S.") ends the sentence when a space follows."""
    margin = len(text) - len(text.lstrip())
    begun = (margin + len(a) for a in answers if a and text.startswith(a, margin) and "\n" not in text[:margin])
    kept = max(begun, default=0)
    if text[:kept].endswith(".") and text[kept : kept + 1].isspace():
        return text[:kept].strip(), True
    said = re.split(f"[{re.escape(SENTENCE_ENDS)}\n]", text[kept:], maxsplit=1)[0]
    return (text[:kept] + said).strip(), said != text[kept:]


def complete(model, tokenizer, prompts: list[str], max_new_tokens: int = 8, answers=()) -> list[str]:
    """What the model says after each prompt up to the first `sentence` end or `</s>`, stripped."""
    goes_on = any(sign in answer for answer in answers for sign in SENTENCE_ENDS)  # what looks like an end may be none
    enough = None if goes_on else lambda i, text: sentence(text)[1]
    return [sentence(text, answers)[0] for text, _ in continuations(model, tokenizer, prompts, max_new_tokens, enough)]
