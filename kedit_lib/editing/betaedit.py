"""BetaEdit (arXiv 2605.09285; lbq8942/BetaEdit): AlphaEdit with C in its null space, which is renewed.

    Δᵀ = [P (K Kᵀ + M + λ₁C) + λ₂ I]⁻¹ P K Rᵀ / (m − i)

M = Σ k kᵀ over the earlier batches, each key as its layer was solved with it. P starts as AlphaEdit's and is made anew
every τ edits, from (M/t + λ₁C)/(λ₁ + 1), t edits so far, by the same threshold. An update with ‖Δ‖/√N above 20 is not
written, nor anything after it. With B = U₀ [U₀ᵀ λ₁C U₀ + λ₂ I]⁻¹ U₀ᵀ, P = U₀U₀ᵀ, it is MEMIT with history.
"""

import warnings
from math import sqrt

import torch
from pydantic import Field

from .alphaedit import InNullSpace
from .second_moments import SecondMoments
from .spread import Spread

BROKEN = 20  # ‖Δ‖/√N at which the authors stop


class BetaEdit(InNullSpace):
    """BetaEdit: AlphaEdit with C, its P renewed every tau edits. lambda1: weight of C. lambda2: of ‖Δ‖²."""

    takes = Spread.takes  # P is renewed from the moments
    needs_history = True
    keys_after = False
    sigma = property(lambda method: 1.0)
    lambda1: float = Field(3000.0, gt=0)
    lambda2: float = Field(10.0, gt=0)
    tau: int = Field(1000, ge=1)

    def _apply(self, call):
        if call.history.edits - call.history.numbers.get("renewed", 0) >= self.tau:
            call.history.numbers["renewed"] = call.history.edits
        return super()._apply(call)

    def _solve(self, call, layer, k, r, outcome):
        delta, numbers = super()._solve(call, layer, k, r, outcome), call.history.numbers
        if "broken" not in numbers and (length := float(delta.norm()) / sqrt(len(k))) > BROKEN:
            numbers["broken"] = True
            what = f"‖Δ‖/√N is {length:.3g} at layer {layer}, and above {BROKEN} neither it nor a later edit is written"
            warnings.warn(
                f"BetaEdit: {what}; restore the model, take a new history, make fewer edits or raise lambda2",
                stacklevel=2,
            )
        if "broken" in numbers:
            delta, outcome.written[layer] = delta * 0, outcome.written[layer] * 0
        return delta

    def _fixed(self, call):
        renewed, cache = call.history.numbers.get("renewed", 0), call.history.cache
        name = f"P of {call.projection.identity}, λ₁ {self.lambda1!r}, λ₂ {self.lambda2!r}, renewed after {renewed}"

        def times(layer, k):
            c = call.moments.tensors[layer]
            if (name, layer) not in cache:
                projection = call.projection
                if renewed:
                    past = call.history.keys[layer][:renewed].double()
                    mixed = (past.T @ past / renewed + self.lambda1 * c.to(past)) / (self.lambda1 + 1)
                    projection = self.null_space(SecondMoments.from_tensors({layer: mixed.to(c.dtype)}))
                u = projection.basis(layer).to(k.device)
                small = self.lambda1 * (u.T @ c.to(u) @ u)
                small.diagonal().add_(self.lambda2)
                cache[name, layer] = u, torch.linalg.cholesky(small)
            u, factor = cache[name, layer]
            return torch.cholesky_solve(u.T @ k.double().T, factor).T @ u.T

        return name, times
