"""REVIVE (arXiv 2601.11042): no update in the leading singular subspaces of W.

    Δ ← (I − U_k U_kᵀ) Δ (I − V_k V_kᵀ),    W = U Σ Vᵀ,    k the smallest with Σᵢ≤ₖ σᵢ² ≥ τ Σ σᵢ²

No code is public, and the paper's abstract leaves open

    W    the unedited weight (weight="original", the default) or the one before this update ("current")
    τ    not stated; 0.5 here
    when after all layers have been solved, as RECT's, or (layer_by_layer=True) each before the next is solved
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .call import matrix
from .filters import Filtering


class REVIVE(Filtering):
    """base: the method; tau: share of the energy that is protected; weight, layer_by_layer: see above."""

    tau: float = Field(0.5, gt=0, lt=1)
    weight: Literal["original", "current"] = "original"
    layer_by_layer: bool = False

    @property
    def each_layer(self) -> bool:
        return self.layer_by_layer

    def filtered(self, call, layer, delta):
        if self.weight == "current":
            protected = leading_subspaces(matrix(call.model, layer).double(), self.tau)
        else:
            protected = self._from_unedited(call.model, layer, lambda w: leading_subspaces(w, self.tau))
        u, v = (x.to(delta) for x in protected)
        delta = delta - u @ (u.T @ delta)
        return delta - (delta @ v) @ v.T


def leading_subspaces(weight: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """U_k [d_model, k] and V_k [d_ff, k]"""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    k = int(((s**2).cumsum(0) < tau * (s**2).sum()).sum()) + 1
    return u[:, :k], vt[:k].T
