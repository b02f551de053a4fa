"""Probability of a given answer, the model being handed the answer so far (teacher forcing)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import encode, target_ids
from ..trace import pad

ROWS = 256


@torch.no_grad()
def answer_log_probability(model, prompts: list[str], answers: list[str]) -> Tensor:
    """[n] mean log p over the tokens of each answer, after its prompt: (1/|t|) Σ log p(t_j). Range ≤ 0.

    Source: ROME's and MEMIT's evaluation (`test_batch_prediction`), which compare answers by it.
    """
    tokenizer = model.tokenizer
    rows = [(tuple(encode(tokenizer, p)), target_ids(tokenizer, p, a)) for p, a in zip(prompts, answers, strict=True)]
    out = torch.empty(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    for begin in range(0, len(order), ROWS):
        part = order[begin : begin + ROWS]
        ids = pad([rows[i][0] + rows[i][1][:-1] for i in part], tokenizer.pad_token_id or 0, model.device)
        log_p = model.hf(input_ids=ids).logits.to(model.math_dtype).log_softmax(-1)
        for row, i in enumerate(part):
            prompt, target = rows[i]
            at = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(target), device=ids.device)
            out[i] = log_p[row, at, torch.tensor(target, device=ids.device)].mean().double().cpu()
    return out


def answer_probability(model, prompts: list[str], answers: list[str]) -> Tensor:
    """[n] exp of the mean token log-probability: the geometric mean of the answer's token probabilities, 0..1."""
    return answer_log_probability(model, prompts, answers).exp()
