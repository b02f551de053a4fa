"""AlphaEdit (Fang et al. 2024; jianghoucheng/AlphaEdit): an update in directions that plain text hardly uses.

    Δᵀ = [P (K Kᵀ + M) + L2·I]⁻¹ P K Rᵀ / (m − i)
       = U₀ [U₀ᵀ (K Kᵀ + M) U₀ + L2·I]⁻¹ U₀ᵀ K Rᵀ / (m − i),      P = U₀U₀ᵀ

U₀ are the singular vectors of C = E[k kᵀ] with singular values below a threshold, M = Σ k kᵀ over the earlier batches,
each measured on the weights after it. With B = P/L2 it is MEMIT's closed form. What the published threshold cuts, an
absolute 0.02, depends on the scale of C: give the rank of P with every result, or cut by rank.
"""

from dataclasses import replace
from typing import Self

import torch
from pydantic import Field

from ..errors import KeditError, check_kind
from .method import same_as
from .spread import Spread


class NullSpace:
    """P of each layer, made by `from_moments` and decomposed once, when it is first asked for."""

    def __init__(self, moments, threshold: float | None, rank: int | None):
        self.moments, self.threshold, self.rank = moments, threshold, rank
        self._found: dict[int, torch.Tensor] = {}  # U₀ by layer

    @classmethod
    def from_moments(cls, moments, threshold: float | None = None, rank: int | None = None) -> Self:
        """P over the directions whose singular value of C is below `threshold`, an absolute number (AlphaEdit: 0.02),
        or over the `rank` ones with the smallest, 1 to d_ff."""
        if (threshold is None) == (rank is None):
            raise KeditError("null space: the cut is made by threshold or by rank; give exactly one of them")
        if threshold is not None and not (isinstance(threshold, (int, float)) and 0 < threshold < float("inf")):
            raise KeditError(f"null space: threshold = {threshold!r}; must be a number above 0, AlphaEdit has 0.02")
        if rank is not None and not (type(rank) is int and rank >= 1):
            raise KeditError(f"null space: rank = {rank!r}; must be a whole number of at least 1")
        return moments.null_spaces.setdefault((threshold, rank), cls(moments, threshold, rank))

    def basis(self, layer: int) -> torch.Tensor:
        """U₀ [d_ff, rank] in float64"""
        if layer not in self._found:
            c, problem = self.moments.tensors[layer], None
            # In C's own precision, as published: singular values crowd around a threshold, and rounding moves the cut.
            u, values, vt = torch.linalg.svd(c)
            negative = (u * vt.T).sum(0) < 0  # of a negative eigenvalue the two vectors are opposite to each other
            if (negative & (values > len(c) * torch.finfo(c.dtype).eps * values[0])).any():
                problem = "C has a negative eigenvalue, which no E[k kᵀ] has; estimate it again"
            elif (self.rank or 0) > len(c):
                problem = f"rank = {self.rank}, d_ff is {len(c)}; lower it"
            if problem:
                raise KeditError(f"null space of layer {layer}: {problem}")
            first = int((values >= self.threshold).sum()) if self.rank is None else len(c) - self.rank
            self._found[layer] = u[:, first:].double()
        return self._found[layer]

    def project(self, layer: int, k: torch.Tensor) -> torch.Tensor:
        """P k in float64 for k [n, d_ff] (rows), as [n, d_ff]."""
        u = self._found[layer] = self.basis(layer).to(k.device)
        return (k.double() @ u) @ u.T

    def check(self, model, layers) -> None:
        """KeditError unless it belongs to `model`, covers `layers` and leaves some direction open in each."""
        self.moments.check(model, layers, invert=None)
        if (tokens := self.moments.about.get("tokens", model.d_ff)) < model.d_ff:
            why = f"so its rank is below d_ff = {model.d_ff} and directions seem free that text uses"
            raise KeditError(f"null space: C is of {tokens} tokens, {why}; estimate it on at least {10 * model.d_ff}")
        for layer in layers:
            if not self.basis(layer).shape[1]:
                problem = f"no singular value of C lies below {self.threshold}"
                raise KeditError(f"null space of layer {layer}: {problem}; raise the threshold or cut by rank")

    @property
    def identity(self) -> str:
        """Names this projection in stores."""
        cut = f"threshold {self.threshold!r}" if self.rank is None else f"rank {self.rank}"
        return f"{self.moments.identity} {cut}"


class InNullSpace(Spread):
    """P, if none is given: of C's singular values below `nullspace_threshold`, or the `nullspace_rank` smallest."""

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
        check_kind(f"{self.name}: projection", projection, NullSpace, "pass NullSpace.from_moments(moments, …)")
        projection.check(call.model, self.layers)
        return replace(call, projection=projection)

    def _fixed(self, call):
        return f"P of {call.projection.identity}", call.projection.project


class AlphaEdit(InNullSpace):
    """AlphaEdit: MEMIT restricted to directions that plain text hardly uses. L2: weight of ‖Δ‖² against the edits."""

    L2: float = Field(10.0, gt=0)
    sigma = same_as("L2")
