"""RECT (Gu et al. 2024; as in jianghoucheng/AlphaEdit): MEMIT, of whose update only the largest relative changes stay.

    Δ_ab stays where |Δ_ab / (W_ab + 1e-8)| is among the largest 40 %, else it becomes 0

All layers are solved first, and W is the weight at entry. What is lost can be compensated (see `filters.py`).
"""

import torch

from .filters import FilteredMEMIT
from .method import matrix

DROPPED = 60  # percent of the entries


class RECT(FilteredMEMIT):
    """RECT: MEMIT that writes only its largest relative changes. compensation: the next batch makes up for the rest."""

    def kept(self, model, layer, delta):
        return largest_changes(delta, matrix(model, layer))


def largest_changes(delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Δ with its 60 % smallest changes, relative to the weight, set to 0; ties at the boundary stay."""
    change = (delta / (weight.detach().to(delta.dtype) + 1e-8)).abs()
    boundary = change.flatten().kthvalue(change.numel() * DROPPED // 100).values
    return torch.where(change >= boundary, delta, torch.zeros_like(delta))
