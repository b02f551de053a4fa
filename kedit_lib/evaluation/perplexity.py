"""Perplexity on plain text."""

from __future__ import annotations

import torch

from ..models.hooks import by_length, pad
from ..models.tokenization import encode

ROWS = 16  # few, so that texts of like length share a batch: padding costs as much as text


@torch.no_grad()
def perplexity(model, texts: list[str]) -> float:
    """exp of the mean negative log-probability per token over all texts. Range ≥ 1; a uniform guess
    gives the vocabulary's size."""
    rows = [tuple(encode(model.tokenizer, t)) for t in texts]
    total, count = 0.0, 0
    for part in by_length([len(r) for r in rows], ROWS):
        part = [rows[i] for i in part]
        ids = pad(part, model.device)
        log_p = model.hf(input_ids=ids).logits[:, :-1].to(model.math_dtype).log_softmax(-1)
        nll = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        lengths = torch.tensor([len(r) for r in part], device=ids.device)
        real = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
        total += nll[real].double().sum().item()
        count += int(real.sum())
    return torch.tensor(total / count, dtype=torch.float64).exp().item()  # inf, not an error, if it is that bad
