"""REVIVE (arXiv 2601.11042): no update in the leading singular subspaces of W.

    Δ ← (I − U_k U_kᵀ) Δ (I − V_k V_kᵀ),    W = U Σ Vᵀ,    k the smallest with Σᵢ≤ₖ σᵢ² ≥ τ Σ σᵢ²

No code is public, and the abstract leaves open τ (0.5 here), whether W is the unedited weight (weight="original", the
default) or the one before this update ("current"), and whether all layers are solved first, as RECT's (the default).
"""

from typing import Literal

import torch
from pydantic import Field

from .filters import Filtering
from .method import matrix, same_as


class REVIVE(Filtering):
    """REVIVE: no update in W's leading subspaces. base: the method. tau: share of energy protected. Others: above."""

    tau: float = Field(0.5, gt=0, lt=1)
    weight: Literal["original", "current"] = "original"
    layer_by_layer: bool = False
    each_layer = same_as("layer_by_layer")

    def filtered(self, call, layer, delta):
        if self.weight == "current":
            protected = self._leading(matrix(call.model, layer).double())
        else:
            protected = self._from_unedited(call.model, layer, self._leading)
        u, v = (x.to(delta) for x in protected)
        delta = delta - u @ (u.T @ delta)
        return delta - (delta @ v) @ v.T

    def _leading(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """U_k [d_model, k] and V_k [d_ff, k]"""
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        k = int(((s**2).cumsum(0) < self.tau * (s**2).sum()).sum()) + 1
        return u[:, :k], vt[:k].T
