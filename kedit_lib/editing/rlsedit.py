"""RLSEdit (Euphoria040201/RLSEdit): MEMIT with history by recursive least squares.

With C = (λC + M)⁻¹ kept, d_ff × d_ff, a batch of N costs O(d_ff² N), however many came before it:

    Δ = (R / (m − i)) (I + KᵀF)⁻¹ Fᵀ,    F = C K,        C ← C − F (I + KᵀF)⁻¹ Fᵀ

The numbers are those of MEMIT(use_history=True), whose n × n factor is cheaper up to n ≈ d_ff edits. The authors' code
(as_code=True) differs: it takes K as it was solved with into C, and R − W K for R, so that it drives W k towards r.
"""

import torch
from pydantic import Field

from .method import matrix, off_unless_given
from .spread import Spread


class RLSEdit(Spread):
    """RLSEdit: MEMIT with a history by recursive least squares. mom2_update_weight: λ. as_code: as the authors do."""

    keeps_history = needs_history = True
    mom2_update_weight: float = Field(15000, gt=0)
    as_code: bool = off_unless_given()
    keys_after = property(lambda method: not method.as_code)

    def _solve(self, call, layer, k, r, outcome):
        if self.as_code:
            r = r - k @ matrix(call.model, layer).T * self._share(self.layers.index(layer))
        return super()._solve(call, layer, k, r, outcome)

    def _products(self, call, layer, k, outcome):
        return k.double() @ self._inverse(call, layer, k.device)

    def _inverse(self, call, layer: int, device) -> torch.Tensor:
        if (kept := call.history.get("inverse", layer, device)) is not None:
            return kept
        return torch.cholesky_inverse(call.moments.factor(layer, device=device)) / self.mom2_update_weight

    def _remember(self, call, outcome, keys):
        for layer, k in keys.items():
            call.history.put("inverse", layer, downdated(self._inverse(call, layer, k.device), k))
        call.history.count(call.model, len(call.edits))


def downdated(inverse: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(A + Σ k kᵀ)⁻¹ [d, d] from A⁻¹, for the rows of k [n, d] (Woodbury)."""
    f = k.double() @ inverse
    small = f @ k.double().T + torch.eye(len(k), dtype=torch.float64, device=k.device)
    return inverse - f.T @ torch.linalg.solve(small, f)
