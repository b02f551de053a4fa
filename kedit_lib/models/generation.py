"""Greedy completion in batches: what a model generates without being given the answer."""

import re
from collections import defaultdict
from functools import partial

import torch

from ..data.words import SENTENCE_ENDS
from .hooks import FILL, by_length
from .tokenization import encoded

ROWS, FEW = 256, 24  # prompts of a batch at most; prompts of one length below which they share one with others


@torch.no_grad()
def generate_ids(model, tokenizer, prompts, max_new_tokens: int | list[int], stop=(), enough=None) -> list[list[int]]:
    """Greedy continuations of each prompt, as token ids without the prompt, up to `</s>` and with it. A batch ends once
    every row has said `</s>` or one of the ids in `stop`; a row leaves it at its own max_new_tokens, or when enough(i,
    ids) is true of the continuation of prompt i. No row depends on the others."""
    eos, device = tokenizer.eos_token_id, next(model.parameters()).device
    ids, ends = encoded(tokenizer, prompts), {eos, *stop}
    most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    out: list[list[int]] = [[] for _ in prompts]

    def goes_on(i: int) -> bool:
        return len(out[i]) < most[i] and not (enough and enough(i, out[i]))

    for rows in _batches([len(one) for one in ids], ROWS):
        feed, ended = Feed([ids[i] for i in rows], device), set()
        while rows:
            new = feed.logits(model).argmax(-1, keepdim=True)
            for i, token in zip(rows, new[:, 0].tolist(), strict=True):
                out[i].append(token)
                if token in ends:
                    ended.add(i)
            if ended.issuperset(rows):
                break
            stay = [k for k, i in enumerate(rows) if goes_on(i)]
            rows = [rows[k] for k in stay]
            feed.say(new, stay)
    return [said[: said.index(eos) + 1] if eos in said else said for said in out]


class Feed:
    """Prompts that a model goes on with together, a token at a time; padded in front, keys and values kept."""

    def __init__(self, rows: list[list[int]], device):
        longest = max(map(len, rows))
        self.step = torch.tensor([[FILL] * (longest - len(r)) + list(r) for r in rows], device=device)
        self.mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=device)
        self.position = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.padded, self.past = not bool(self.mask.all()), None

    def logits(self, model) -> torch.Tensor:
        """[n, vocabulary] for the next token of each row."""
        # Without padding no mask: attention is then the causal one, which is computed faster.
        places = {"attention_mask": self.mask, "position_ids": self.position} if self.padded else {}
        found = model(input_ids=self.step, past_key_values=self.past, use_cache=True, logits_to_keep=1, **places)
        self.past = found.past_key_values
        return found.logits[:, -1]

    def say(self, tokens: torch.Tensor, stay: list[int] | None = None) -> None:
        """The next token [n, 1] of each row; stay: the rows that go on, the others leave (None: all go on)."""
        self.step, self.position = tokens, self.position[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        if stay and len(stay) < len(tokens):
            kept = torch.tensor(stay, device=tokens.device)
            self.step, self.position, self.mask = self.step[kept], self.position[kept], self.mask[kept]
            self.past.batch_select_indices(kept)


def _batches(lengths: list[int], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`: of one length where at least FEW have it, the others of like length."""
    same: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        same[length].append(i)
    whole = [members for members in same.values() if len(members) >= FEW]
    rest = [i for members in same.values() if len(members) < FEW for i in members]
    mixed = [[rest[k] for k in part] for part in by_length([lengths[i] for i in rest], size)]
    return [members[k : k + size] for members in whole for k in range(0, len(members), size)] + mixed


def continuations(
    model, tokenizer, prompts, max_new_tokens, past_full_stops=False, enough=None
) -> list[tuple[str, bool]]:
    """What the model writes after each prompt, and whether its text ended there (False: cut off). It may stop at a
    first full stop unless `past_full_stops`, and when enough(i, text) is true of what is written after prompt i."""
    eos, text, stop = tokenizer.eos_token_id, partial(tokenizer.decode, skip_special_tokens=True), ()
    if not past_full_stops:  # the tokens that are a full stop of some script and nothing else
        first, *others = (tokenizer(mark, add_special_tokens=False).input_ids for mark in ".。।")
        others = [
            ids for ids, mark in zip(others, "。।", strict=True) if len(ids) == 1 and tokenizer.decode(ids) == mark
        ]
        stop = [first[-1], *(token for (token,) in others)]
    will_do = None if enough is None else lambda i, ids: ids[-1] == eos or enough(i, text(ids))
    written = generate_ids(model, tokenizer, prompts, max_new_tokens, stop, will_do)
    return [(text(ids), ids[-1:] == [eos]) for ids in written]


def sentence(text: str, answers=()) -> tuple[str, bool]:
    """`text` up to its first full stop (or another end of a sentence, such as 。) or line end, stripped, and whether
    there was one. Full stops inside one of `answers` that the text begins with ("St. Louis") end nothing; its own last
    one ("U.S.") ends the sentence when a space follows."""
    margin = len(text) - len(text.lstrip())
    begun = [a for a in answers if text.startswith(a, margin) and "\n" not in text[:margin]]
    answer = max(begun, key=len, default="")
    kept = margin + len(answer) if answer else 0
    if answer.endswith(".") and text[kept : kept + 1].isspace():
        return answer, True
    said = re.split(f"[{re.escape(SENTENCE_ENDS)}\n]", text[kept:], maxsplit=1)[0]
    return (text[:kept] + said).strip(), said != text[kept:]


def complete(model, tokenizer, prompts: list[str], max_new_tokens: int = 8, answers=()) -> list[str]:
    """What the model says after each prompt up to the first full stop, line end or `</s>`, stripped; full stops
    inside one of `answers` are none."""
    past = any(sign in answer for answer in answers for sign in ".。।")
    written = continuations(model, tokenizer, prompts, max_new_tokens, past)
    return [sentence(text, answers)[0] for text, _ in written]
