"""EMMET (Gupta et al. 2024b; scalable-model-editing/unified-model-editing): ROME's equality for a batch.

    Δ = (R / (m − i)) (Kᵀ C′⁻¹ K + ρI)⁻¹ Kᵀ C′⁻¹,      C′ = λC + ηI

Where MEMIT weighs an edit against C, this writes it exactly, ΔK = R, and disturbs C′ as little as that allows; ρ
softens that in a batch. One edit has ρ = 0, and Δ is of ROME's form. Published for one layer.
"""

from pydantic import Field

from .spread import Spread


class EMMET(Spread):
    """EMMET: writes a batch exactly. mom2_update_weight: λ. emmet_lambda: ρ, for batches. update_norm_lambda: η."""

    mom2_update_weight: float = Field(1.0, gt=0)
    emmet_lambda: float = Field(0.1, ge=0)
    update_norm_lambda: float = Field(0.0, ge=0)

    def _ridge(self, n):
        return self.emmet_lambda if n > 1 else 0.0
