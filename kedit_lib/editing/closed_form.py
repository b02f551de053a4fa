"""Closed forms: the update of one layer, by its cheap exact form.

    Δ = R (ρI + KᵀBK)⁻¹ (BK)ᵀ           K [d_ff, N], R [d_model, N]; an N × N solve

    MEMIT       B = (λC)⁻¹         ρ = 1     = R Kᵀ (λC + KKᵀ)⁻¹           Meng et al. 2022b, eq. 14
    AlphaEdit   B = P/L2           ρ = 1     = [(PKKᵀ + L2·I)⁻¹ PK Rᵀ]ᵀ    Fang et al. 2024
    EMMET       B = (λC + ηI)⁻¹    ρ = emmet_lambda                        Gupta et al. 2024b

B is factorised once a stream, and an edit takes a product with it; the published code solves d_ff × d_ff for each edit
and layer. Keys and residuals are rows here; everything is float64.
"""

import torch
from torch import Tensor

from ..errors import KeditError


def update(k: Tensor, r: Tensor, bk: Tensor, ridge: float = 1.0) -> tuple[Tensor, Tensor]:
    """Δ [d_model, d_ff] of keys k [N, d_ff], their products bk with B, residuals r [N, d_model] and ridge ρ; and g [N],
    g_i = k_iᵀBk_i: alone, edit i is written to g_i / (ρ + g_i) of its residual."""
    gram = k.double() @ bk.T
    g = gram.diagonal().clone()
    gram.diagonal().add_(ridge)
    try:
        return torch.linalg.solve(gram, r.double()).T @ bk, g
    except torch.linalg.LinAlgError:
        alike = "edits of this batch have keys that depend on each other, as where a fact is given twice"
        raise KeditError(f"{alike}; leave repeats out, or give emmet_lambda > 0") from None


def with_memory(bk: Tensor, past_k: Tensor, past_bk: Tensor, factor: Tensor) -> Tensor:
    """The new keys' products [N, d_ff] with (σB⁻¹ + M)⁻¹, from theirs with B/σ (bk); M = Σ k kᵀ is over the n earlier
    keys past_k [n, d_ff], past_bk are their products with B, factor is of `grown_factor` (Woodbury). It is as a batch
    of all n + N edits, the earlier residuals being 0."""
    return bk - torch.cholesky_solve(past_k.double() @ bk.T, factor).T @ past_bk


def grown_factor(factor: Tensor | None, k: Tensor, bk: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor [n, n] of σI + KBKᵀ for all rows of k and bk [n, d_ff], from that of the first m ≤ n
    (None: of none); ridge: σ. An edit costs n² and no n³: with G the products of the other rows,

        L₂₁ = G₂₁ L⁻ᵀ,    L₂₂ L₂₂ᵀ = σI + G₂₂ − L₂₁ L₂₁ᵀ
    """
    done = 0 if factor is None else len(factor)
    if done == len(k):
        return factor
    g21, g22 = (bk[done:] @ k.double().T).tensor_split([done], 1)
    g22.diagonal().add_(ridge)
    grown = g22.new_zeros(len(k), len(k))
    if done:
        grown[:done, :done] = factor
        grown[done:, :done] = l21 = torch.linalg.solve_triangular(factor, g21.T, upper=False).T
        g22 = g22 - l21 @ l21.T
    grown[done:, done:] = torch.linalg.cholesky(g22)
    return grown
