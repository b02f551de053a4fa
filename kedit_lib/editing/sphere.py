"""SPHERE (arXiv 2510.01172; PlusLabNLP/SPHERE): no update along the directions in which the rows of W crowd.

    Δ ← Δ (I − α U Uᵀ),    U the r leading eigenvectors of G = ŴᵀŴ / d_model,    Ŵ: rows of W, each of length 1

r is one more than the eigenvalues whose cumulative share of the trace stays within β; W is the weight before this
update. The authors filter AlphaEdit layer by layer and MEMIT after all layers have been solved; β 0.5, α 0.5 and 0.8.
"""

import torch
from pydantic import Field

from .alphaedit import AlphaEdit
from .filters import Filtering
from .method import matrix


class SPHERE(Filtering):
    """SPHERE: keeps updates off the directions in which W's rows crowd. base: the method. beta_hse: β. alpha: α.
    layer_by_layer: None as the authors do with its base."""

    beta_hse: float = Field(0.5, gt=0, lt=1)
    alpha: float = Field(0.5, gt=0, le=1)
    layer_by_layer: bool | None = None

    @property
    def each_layer(self) -> bool:
        return isinstance(self.base, AlphaEdit) if self.layer_by_layer is None else self.layer_by_layer

    def filtered(self, call, layer, delta):
        weight = matrix(call.model, layer).double()
        rows = weight / (weight.norm(dim=1, keepdim=True) + 1e-8)
        values, vectors = torch.linalg.eigh(rows @ rows.T)  # has the eigenvalues of ŴᵀŴ that are not 0
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        r = min(int((values.cumsum(0) / values.sum() <= self.beta_hse).sum()) + 1, len(values))
        u = (rows.T @ vectors[:, :r] / values[:r].sqrt()).to(delta)
        return delta - self.alpha * (delta @ u) @ u.T
