"""Closed forms: the update of one layer, by its cheap exact form.

    Δ = R (ρI + KᵀBK)⁻¹ (BK)ᵀ           K [d_ff, N], R [d_model, N]; an N × N solve

    MEMIT       B = (λC)⁻¹         ρ = 1     = R Kᵀ (λC + KKᵀ)⁻¹           Meng et al. 2022b, eq. 14
    AlphaEdit   B = P/L2           ρ = 1     = [(PKKᵀ + L2·I)⁻¹ PK Rᵀ]ᵀ    Fang et al. 2024
    EMMET       B = (λC + ηI)⁻¹    ρ = emmet_lambda                        Gupta et al. 2024b

B costs one factorisation for a whole stream, and an edit a product with it; the published code solves a
d_ff × d_ff system an edit and layer instead. Keys and residuals are rows here; everything is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def update(k: Tensor, r: Tensor, bk: Tensor, ridge: float = 1.0) -> tuple[Tensor, Tensor]:
    """k [N, d_ff] keys, bk [N, d_ff] their products with B, r [N, d_model] residuals; ridge ρ.

    Returns Δ [d_model, d_ff] and g [N], g_i = k_iᵀBk_i: alone, with ρ = 1, edit i is written to the
    fraction g_i / (1 + g_i) of its residual.
    """
    gram = k.double() @ bk.T
    eye = torch.eye(len(k), dtype=torch.float64, device=k.device)
    return torch.linalg.solve(ridge * eye + gram, r.double()).T @ bk, gram.diagonal()


def with_memory(bk: Tensor, past_k: Tensor, past_bk: Tensor) -> Tensor:
    """The product of new keys with (B⁻¹ + M)⁻¹ instead of B, where M = Σ k kᵀ over n earlier keys (Woodbury).

    bk [N, d_ff] of the new keys; past_k, past_bk [n, d_ff]. The update is then the one that a batch of all
    n + N edits would make whose earlier residuals are 0.
    """
    past_k = past_k.double()
    eye = torch.eye(len(past_k), dtype=torch.float64, device=bk.device)
    return bk - torch.linalg.solve(eye + past_k @ past_bk.T, past_k @ bk.T).T @ past_bk
