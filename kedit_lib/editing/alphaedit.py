"""AlphaEdit (Fang et al. 2024; jianghoucheng/AlphaEdit): an update in directions that plain text hardly uses.

    Δᵀ = [P (K Kᵀ + M) + L2·I]⁻¹ P K Rᵀ / (m − i)
       = U₀ [U₀ᵀ (K Kᵀ + M) U₀ + L2·I]⁻¹ U₀ᵀ K Rᵀ / (m − i),      P = U₀U₀ᵀ

P projects onto the null space of C (`null_space.py`), M = Σ k kᵀ over the earlier batches, each measured on the weights
after it. With B = P/L2 it is MEMIT's closed form (`closed_form.py`).
"""

from dataclasses import replace

from pydantic import Field

from ..errors import KeditError
from .null_space import NullSpace
from .spread import Spread


class InNullSpace(Spread):
    """nullspace_threshold, nullspace_rank: P is over the singular values of C below this absolute number, or over so
    many of the smallest. A `projection` given to `apply` goes before both."""

    takes = Spread.takes | {"projection"}
    shift = None  # P needs no inverse of C
    keeps_history = True
    nullspace_threshold: float = Field(0.02, gt=0)
    nullspace_rank: int | None = Field(None, ge=1)

    def null_space(self, moments) -> NullSpace:
        threshold = self.nullspace_threshold if self.nullspace_rank is None else None
        return NullSpace.from_moments(moments, threshold, self.nullspace_rank)

    def _check(self, call):
        call = super()._check(call)
        projection = self.null_space(call.moments) if call.projection is None else call.projection
        if not isinstance(projection, NullSpace):
            kind = type(projection).__name__
            raise KeditError(f"{self.name}: projection is of type {kind}; pass NullSpace.from_moments(moments, …)")
        projection.check(call.model, self.layers)
        return replace(call, projection=projection)

    def _fixed(self, call):
        return f"P of {call.projection.identity}", call.projection.project


class AlphaEdit(InNullSpace):
    """The fields of its null space, and L2: weight of ‖Δ‖² against the edits."""

    L2: float = Field(10.0, gt=0)

    @property
    def sigma(self) -> float:
        return self.L2
