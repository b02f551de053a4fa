"""Answers scored under teacher forcing: the model is handed the answer so far and asked for its next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import encode, target_ids
from ..trace import by_length, pad

ROWS = 64  # more, and padding and memory cost more than a pass


@dataclass(frozen=True)
class Forced:
    """What one pass over n (prompt, answer) pairs says; t_1 … t_|t| are an answer's tokens.

    log_probability  [n] float64: (1/|t|) Σ_j log p(t_j | prompt, t_<j), nats a token. Range ≤ 0
    tokens_right     [n] float64: (1/|t|) Σ_j [t_j is the argmax at its place]. Range 0..1
    said             n tuples of |t| ids: the argmax at each place of the answer; the first is what the
                     model says next when it is handed nothing
    """

    log_probability: Tensor
    tokens_right: Tensor
    said: tuple[tuple[int, ...], ...]

    @property
    def probability(self) -> Tensor:
        """[n] the geometric mean of the token probabilities, exp(log_probability). Range 0..1."""
        return self.log_probability.exp()

    def at(self, indices) -> Forced:
        """Some of the pairs, so that prompts of several kinds can share a pass."""
        i = list(indices)
        return Forced(self.log_probability[i], self.tokens_right[i], tuple(self.said[k] for k in i))


@torch.no_grad()
def teacher_forced(model, prompts: list[str], answers: list[str]) -> Forced:
    """Score each answer after its prompt, all in batches of like length.

    Raises KeditError for an answer that the tokenizer cannot write, ValueError when there is not one
    answer a prompt.
    """
    tokenizer = model.tokenizer
    pairs = [(tuple(encode(tokenizer, p)), target_ids(tokenizer, p, a)) for p, a in zip(prompts, answers, strict=True)]
    log_p, right = torch.empty(len(pairs), dtype=torch.float64), torch.empty(len(pairs), dtype=torch.float64)
    said: list[tuple[int, ...]] = [()] * len(pairs)
    for part in by_length([len(p) + len(t) for p, t in pairs], ROWS):
        ids = pad([pairs[i][0] + pairs[i][1][:-1] for i in part], model.device)
        places = [
            (row, len(pairs[i][0]) - 1 + j, token) for row, i in enumerate(part) for j, token in enumerate(pairs[i][1])
        ]
        row, at, token = torch.tensor(places, device=ids.device).T
        # Only the answers' places: a softmax over the vocabulary at every place would cost more than the model.
        there = model.hf(input_ids=ids).logits[row, at].to(model.math_dtype).log_softmax(-1)
        guess = there.argmax(-1)
        each = there.gather(1, token[:, None])[:, 0].double().cpu()
        lengths = [len(pairs[i][1]) for i in part]
        columns = (each, (guess == token).double().cpu(), guess.cpu())
        for i, p, hit, ids_said in zip(part, *(c.split(lengths) for c in columns), strict=True):
            log_p[i], right[i], said[i] = p.mean(), hit.mean(), tuple(ids_said.tolist())
    return Forced(log_p, right, tuple(said))
