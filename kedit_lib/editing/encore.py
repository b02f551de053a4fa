"""ENCORE (Gupta et al. 2025, arXiv 2502.01636): MEMIT with a history, a bound on ‖Δ‖, and targets stopped early.

    Δ = (R / (m − i)) Kᵀ (λC + λ_n I + M + K Kᵀ)⁻¹

M = Σ k kᵀ over the earlier batches, each key as its layer was solved with it. Targets stop when the new object has led
for a while ("most probable early stopping"). Source: scalable-model-editing/knowledge-editing-regularization.
"""

from pydantic import Field

from .method import off_unless_given, same_as
from .spread import Spread


class ENCORE(Spread):
    """ENCORE: MEMIT with a history, a bound on ‖Δ‖ and early stopping. mom2_update_weight: λ. update_norm_lambda: λ_n.
    prob_cutoff: −n stops a target at the n-th step at which all its tokens lead in every context but the clean one, p
    above 0 at a mean probability above p; 0: as the loss says. as_code: as in SasyaTitech/NAS, where a target leads
    when exactly five of its tokens do, over all contexts."""

    keeps_history = True
    keys_after = False
    mom2_update_weight: float = Field(15000, gt=0)
    update_norm_lambda: float = Field(20.0, ge=0)
    prob_cutoff: float = Field(-2.0, lt=1)
    as_code: bool = off_unless_given()
    cutoff = same_as("prob_cutoff")

    def leading(self, wrong, lengths):
        right = lengths * wrong.shape[1] - wrong.sum(1)
        return right == 5 if self.as_code else super().leading(wrong, lengths)
