"""ENCORE (Gupta et al. 2025, arXiv 2502.01636; scalable-model-editing/knowledge-editing-regularization): MEMIT with a
history and a bound on ‖Δ‖ itself, its targets stopped early.

    Δ = (R / (m − i)) Kᵀ (λC + λ_n I + M + K Kᵀ)⁻¹

λ_n is not multiplied by λ. M = Σ k kᵀ over the earlier batches, each key as its layer was solved with it. Targets stop
when the new object has led for a while ("most probable early stopping"): see `prob_cutoff`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .closed_form import update
from .memit import Spread


class ENCORE(Spread):
    """mom2_update_weight: λ. update_norm_lambda: λ_n.
    prob_cutoff: −n stops a target at the n-th step at which all its tokens lead in every context but the clean one;
    p above 0 when its mean probability exceeds p; 0 not before the loss says so."""

    keys_after: ClassVar[bool] = False

    mom2_update_weight: float = Field(15000, gt=0)
    update_norm_lambda: float = Field(20.0, ge=0)
    prob_cutoff: float = Field(-2.0, lt=1)

    @property
    def keeps_history(self) -> bool:
        return True

    @property
    def cutoff(self) -> float:
        return self.prob_cutoff

    @property
    def shift(self) -> float:
        """λC + λ_n I = λ (C + shift·I)."""
        return self.update_norm_lambda / self.mom2_update_weight

    def _solve(self, call, layer, k, r, outcome):
        name, times = self._fixed(call)
        bk = times(layer, k) / self.mom2_update_weight
        delta, g = update(k, r, self._with_history(call, layer, bk, self.mom2_update_weight))
        outcome.written[layer] = g / (1 + g)
        return delta

    def _fixed(self, call):
        def times(layer, k):
            return call.moments.solve(layer, k, self.shift)

        return f"(C + {self.shift!r})⁻¹ of moments {call.moments.identity}", times
