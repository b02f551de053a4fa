"""Closed forms: the update of one layer, by its cheap exact form.

    Δ = R (ρI + KᵀBK)⁻¹ (BK)ᵀ           K [d_ff, N], R [d_model, N]; an N × N solve

    MEMIT       B = (λC)⁻¹         ρ = 1     = R Kᵀ (λC + KKᵀ)⁻¹           Meng et al. 2022b, eq. 14
    AlphaEdit   B = P/L2           ρ = 1     = [(PKKᵀ + L2·I)⁻¹ PK Rᵀ]ᵀ    Fang et al. 2024
    EMMET       B = (λC + ηI)⁻¹    ρ = emmet_lambda                        Gupta et al. 2024b

B costs one factorisation a stream, and an edit a product with it; the published code solves d_ff × d_ff an edit and
layer. Keys and residuals are rows here; everything is float64.
"""

import torch
from torch import Tensor

from ..errors import KeditError


def update(k: Tensor, r: Tensor, bk: Tensor, ridge: float = 1.0) -> tuple[Tensor, Tensor]:
    """k [N, d_ff] keys, bk [N, d_ff] their products with B, r [N, d_model] residuals; ridge ρ.

    Returns Δ [d_model, d_ff] and g [N], g_i = k_iᵀBk_i: alone, edit i is written to g_i / (ρ + g_i) of its residual.
    """
    gram = k.double() @ bk.T
    try:
        return torch.linalg.solve(ridge * _eye(gram) + gram, r.double()).T @ bk, gram.diagonal()
    except torch.linalg.LinAlgError:
        alike = "edits of this batch have keys that depend on each other, as where a fact is given twice"
        raise KeditError(f"{alike}; leave repeats out, or give emmet_lambda > 0") from None


def with_memory(bk: Tensor, past_k: Tensor, past_bk: Tensor, factor: Tensor) -> Tensor:
    """The product of new keys with (σB⁻¹ + M)⁻¹ instead of B/σ, where M = Σ k kᵀ over n earlier keys (Woodbury).

    bk [N, d_ff] the new keys' products with B/σ; past_k, past_bk [n, d_ff] the earlier keys and theirs with B;
    factor [n, n] of `grown_factor`. It is as a batch of all n + N edits, the earlier residuals being 0.
    """
    return bk - torch.cholesky_solve(past_k.double() @ bk.T, factor).T @ past_bk


def grown_factor(factor: Tensor | None, k: Tensor, bk: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor [n, n] of σI + KBKᵀ for all rows of k and bk [n, d_ff], from that of the first m.

    factor [m, m], m ≤ n; None: of none. ridge: σ. An edit costs n² and no n³: with G the products of the other rows,

        L₂₁ = G₂₁ L⁻ᵀ,    L₂₂ L₂₂ᵀ = σI + G₂₂ − L₂₁ L₂₁ᵀ
    """
    done = 0 if factor is None else len(factor)
    if done == len(k):
        return factor
    g21, g22 = (bk[done:] @ k.double().T).tensor_split([done], 1)
    corner = g22 + ridge * _eye(g22)
    grown = corner.new_zeros(len(k), len(k))
    if done:
        grown[:done, :done] = factor
        grown[done:, :done] = l21 = torch.linalg.solve_triangular(factor, g21.T, upper=False).T
        corner = corner - l21 @ l21.T
    grown[done:, done:] = torch.linalg.cholesky(corner)
    return grown


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=torch.float64, device=like.device)
