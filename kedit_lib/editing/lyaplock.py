"""LyapLock (Wang et al. 2025, arXiv 2505.15702; wpwpwpyo/LyapLock): a queue decides how much the old knowledge counts.

    Δ = [ (R/(m−i)) Kᵀ + qλ (S_vk − W C) + H_vk − W H_kk ] (K Kᵀ + qλ C + H_kk)⁻¹

S_vk = E[v kᵀ] = W₀C is of plain text, H_kk = Σ k kᵀ and H_vk = Σ v kᵀ of the earlier edits when they were written. So
every batch solves for all edits so far, from the unedited weights: with y = v − W₀k of each, and r + (W − W₀)k of the
new ones, it is MEMIT's closed form W₀ + Y (qλ I + Kᵀ C⁻¹ K)⁻¹ (C⁻¹K)ᵀ on all of them.

q = aZ is 1 at first. With D = tr C (W−W₀)ᵀ(W−W₀), the damage to the old knowledge, D₁ the first batch's, a = 1/√(αD₁):

    Z ← max(Z + a (D − αD₁), √(αD₁)),    so that q grows while D is above αD₁, and never falls below 1.
"""

from math import sqrt

import torch
from pydantic import Field

from .closed_form import grown_factor
from .method import drift
from .spread import Spread


class LyapLock(Spread):
    """LyapLock: MEMIT with a queue that limits damage to alpha times the first batch's. mom2_update_weight: λ."""

    keeps_history = needs_history = True
    keys_after = False
    mom2_update_weight: float = Field(1000, gt=0)
    alpha: float = Field(60.0, gt=0)

    def _solve(self, call, layer, k, r, outcome):
        history, changed = call.history, drift(call.model, layer)
        k, y = k.double(), r.double() + k.double() @ changed.T
        bk, factor = call.moments.solve(layer, k), None
        sigma = self.mom2_update_weight * history.numbers.get(f"q.{layer}", 1.0)
        g = (k * bk).sum(1)
        if history.edits:
            past = (*history.recall(layer, *self._fixed(call), sigma), history.get("y", layer))
            past_k, past_bk, factor, past_y = (part.to(k.device) for part in past)
            k, bk, y = torch.cat([past_k, k]), torch.cat([past_bk, bk]), torch.cat([past_y, y])
        x = torch.cholesky_solve(y, grown_factor(factor, k, bk, sigma))
        history.cache["damage", layer] = float((x * (k @ (bk.T @ x))).sum())  # tr C (W−W₀)ᵀ(W−W₀) of W₀ + xᵀbk
        outcome.s[layer], outcome.written[layer] = g, g / (sigma + g)
        return x.T @ bk - changed

    def _remember(self, call, outcome, keys):
        history, numbers = call.history, call.history.numbers
        for layer, k in keys.items():
            history.append("y", layer, k.double() @ drift(call.model, layer).T)
            damage = max(history.cache.pop(("damage", layer)), 0.0)
            if not damage and f"first damage.{layer}" not in numbers:  # nothing was written yet, and q stays 1
                continue
            limit = self.alpha * numbers.setdefault(f"first damage.{layer}", damage)
            z = numbers.get(f"Z.{layer}", sqrt(limit)) + (damage - limit) / sqrt(limit)
            numbers[f"Z.{layer}"] = z = max(z, sqrt(limit))
            numbers[f"q.{layer}"] = z / sqrt(limit)
        super()._remember(call, outcome, keys)
