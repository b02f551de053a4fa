"""Closed forms: the least-squares update of one layer, by its cheap exact form.

    Δ = R Kᵀ (λC + K Kᵀ)⁻¹        MEMIT, Meng et al. 2022b, eq. 14; K [d_ff, N], R [d_model, N]

Written with A = C⁻¹K/λ as R (I + KᵀA)⁻¹ Aᵀ it needs one factorisation of C for a whole stream and an
N × N solve instead of a d_ff × d_ff one an edit. Everything is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import SecondMoments


def least_squares(k: Tensor, r: Tensor, moments: SecondMoments, layer: int, weight: float) -> tuple[Tensor, Tensor]:
    """k [N, d_ff] keys, r [N, d_model] residuals (rows); weight λ > 0.

    Returns Δ [d_model, d_ff] and s [N], s_i = k_iᵀ C⁻¹ k_i; alone, edit i is written to the fraction
    s_i / (λ + s_i) of its residual. On C's own tokens s averages d_ff.
    """
    k, r = k.double(), r.double()
    a = moments.solve(layer, k) / weight
    gram = k @ a.T
    eye = torch.eye(len(k), dtype=torch.float64, device=k.device)
    return torch.linalg.solve(eye + gram, r).T @ a, weight * gram.diagonal()
