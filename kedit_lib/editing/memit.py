"""MEMIT (Meng et al. 2022b; kmeng01/memit): one batch of edits spread over several layers.

All z first, on the weights at the start of the batch. Then, for each edited layer i = 0 … m−1 on the weights so far,

    Δ = (R / (m − i)) Kᵀ (λC + M + K Kᵀ)⁻¹,      R = Z − H

with H the stream after the last edited layer at the clean prompt. M is 0, or, with a history, Σ k kᵀ over the keys of
the earlier batches, each measured on the weights after it. MEMIT-MASS is MEMIT with all edits in one batch.
"""

from pydantic import Field

from .method import off_unless_given, same_as
from .spread import Spread


class MEMIT(Spread):
    """MEMIT: writes a batch of edits into several MLP layers by regularised least squares. mom2_update_weight: λ, the
    weight of C. use_history: also protect the keys of earlier batches."""

    mom2_update_weight: float = Field(15000, gt=0)
    use_history: bool = off_unless_given()
    keeps_history = same_as("use_history")
