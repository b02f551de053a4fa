"""Locality: whether the edited model agrees with the unedited one on prompts that no edit is about.

All [n], range 0..1, 1 for an unedited model. Floor: how often a destroyed model happens to say the same, near 0 unless
one answer is common. Source: EasyEdit's locality (`compute_locality_quality`, Wang et al. 2023; Yao et al. 2023), which
is `argmax_agreement`.
"""

import torch
from torch import Tensor

from .teacher_forcing import Forced


def first_token_agreement(edited: Forced, unedited: Forced) -> Tensor:
    """[n] 1 where both say the same token right after the prompt."""
    return _share((a[:1], b[:1]) for a, b in zip(edited.said, unedited.said, strict=True))


def argmax_agreement(edited: Forced, unedited: Forced) -> Tensor:
    """[n] share of an answer's places with the same argmax, (1/|t|) Σ_j [argmax_j = argmax_j⁰]; same answers."""
    return _share(zip(edited.said, unedited.said, strict=True))


def answer_agreement(edited: list[str], unedited: list[str]) -> Tensor:
    """[n] 1 where the freely generated answers are the same text (generation.complete of the same prompts)."""
    return _share(([a], [b]) for a, b in zip(edited, unedited, strict=True))


def _share(pairs) -> Tensor:
    shares = [sum(x == y for x, y in zip(a, b, strict=True)) / len(b) for a, b in pairs]
    return torch.tensor(shares, dtype=torch.float64)
