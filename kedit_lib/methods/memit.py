"""MEMIT (Meng et al. 2022b; kmeng01/memit): one batch of edits spread over several layers.

All z first, on the weights at the start of the batch. Then, layer by layer on the weights so far,

    Δ = (R / (m − i)) Kᵀ (λC + K Kᵀ)⁻¹,      R = Z − H

with H the stream after the last edited layer at the clean prompt. MEMIT-MASS is MEMIT with all edits
in one batch.
"""

from __future__ import annotations

import torch
from pydantic import Field

from ..keys import context_mean, keys_at, outputs_at
from ..solve import least_squares
from ..targets import Site, optimise
from .base import Method, Outcome, write


class MEMIT(Method):
    """mom2_update_weight: λ, how many tokens' worth of C an edit is weighed against."""

    mom2_update_weight: float = Field(15000, gt=0)

    def _apply(self, model, edits, requests, moments) -> Outcome:
        targets = self._targets(model, requests)
        outcome = Outcome(self.name, edits, {}, targets)
        z, clean = torch.stack([t.z for t in targets]), [r.prompts[0] for r in requests]
        everywhere = [p for r in requests for p in r.prompts]
        for i, layer in enumerate(self.layers):
            k = context_mean(keys_at(model, everywhere, [layer])[layer], len(requests[0].prompts), grouped=True)
            residual = z - outputs_at(model, clean, self._read(model))
            delta, s = least_squares(k, residual * self._share(i), moments, layer, self.mom2_update_weight)
            write(model, layer, delta, outcome.deltas)
            outcome.s[layer] = s
            outcome.written[layer] = s / (self.mom2_update_weight + s)
            for target, key in zip(targets, k, strict=True):
                target.key_per_layer[layer] = key
        return outcome

    def _targets(self, model, requests):
        z_layer = self.layers[-1]
        v0 = outputs_at(model, [r.prompts[0] for r in requests], model.layers[z_layer])
        return optimise(model, requests, Site(z_layer + 1, self._loss_layer(model)), [v0], self)

    def _read(self, model):
        """The module whose output the residual is measured on."""
        return model.layers[self.layers[-1]]

    def _share(self, i: int) -> float:
        """The part of the residual that falls to the i-th edited layer."""
        return 1 / (len(self.layers) - i)
