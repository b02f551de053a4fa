"""EvoEdit (arXiv 2510.13851; the copy in Euphoria040201/RLSEdit): AlphaEdit whose null space loses each edit's keys.

    Y = P K,    Δ = (R / (m − i)) (KᵀY + (L2 + 1e-6) I)⁻¹ Yᵀ,    then at once    P ← P − Q Qᵀ,

Q the left singular vectors of Y. P starts as AlphaEdit's and never touches again what an edit has written. Q is kept,
[directions, d_ff] per layer, and not P.

A key that comes again, the same subject and prompt, has nothing left in P. The authors' code (as_code=True) then skips
this layer and all above it; here the directions that the new keys have lost are given back to P first.
"""

import torch
from pydantic import Field

from .alphaedit import InNullSpace
from .closed_form import update
from .method import off_unless_given

JITTER = 1e-6
SMALL = 1e-10  # singular values of Y that count as none
LOST = 1e-3  # ‖PK‖ below which nothing is left of a key: of ‖P₀k‖, or (the code's) in itself
NOTHING_MISSING = 1e-2  # mean ‖r‖ below which the code skips


class EvoEdit(InNullSpace):
    """EvoEdit: AlphaEdit whose null space loses each edit's keys. L2: weight of ‖Δ‖². as_code: the authors' rule."""

    needs_history = True
    keys_after = False
    L2: float = Field(4.0, gt=0)
    as_code: bool = off_unless_given()

    def _apply(self, call):
        call.history.cache.pop("skipping", None)
        return super()._apply(call)

    def _solve(self, call, layer, k, r, outcome):
        history, free = call.history, call.projection.project(layer, k)  # P₀k
        q = history.get("Q", layer, k.device)
        q = free[:0] if q is None else q if self.as_code else _given_back(q, free)
        y = free - free @ q.T @ q
        missing = r.norm(dim=1).mean() / self._share(self.layers.index(layer))
        if self.as_code and ("skipping" in history.cache or missing < NOTHING_MISSING or y.norm() < LOST):
            history.cache["skipping"] = True
            return torch.zeros(r.shape[1], k.shape[1], dtype=torch.float64, device=k.device)
        delta, g = update(k, r, y, ridge=self.L2 + JITTER)
        outcome.written[layer] = g / (self.L2 + JITTER + g)
        u, s, _ = torch.linalg.svd(y.T, full_matrices=False)
        keep = s > max(max(y.shape) * torch.finfo(k.dtype).eps * s[0], SMALL)
        history.put("Q", layer, torch.cat([q, u[:, keep].T]))
        return delta

    def _remember(self, call, outcome, keys):
        call.history.count(call.model, len(call.edits))


def _given_back(q: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows that span q without the directions of those keys that lie in q but for LOST of their length."""
    lost = (free - free @ q.T @ q).norm(dim=1) < LOST * free.norm(dim=1)
    if not lost.any():
        return q
    u, s, _ = torch.linalg.svd(q @ free[lost].T, full_matrices=True)  # the lost keys in the coordinates of q
    return u[:, int((s > SMALL * s[0]).sum()) :].T @ q
