"""MEMIT (Meng et al. 2022b; kmeng01/memit): one batch of edits spread over several layers.

All z first, on the weights at the start of the batch. Then, for each edited layer i = 0 … m−1 on the weights so far,

    Δ = (R / (m − i)) Kᵀ (λC + M + K Kᵀ)⁻¹,      R = Z − H

with H the stream after the last edited layer at the clean prompt. M is 0, or, with a history, Σ k kᵀ over the keys of
the earlier batches, each measured on the weights after it: what they wrote is then kept as plain text is.
MEMIT-MASS is MEMIT with all edits in one batch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..errors import KeditError
from .call import Call, Outcome, as_matrix, write
from .closed_form import update, with_memory
from .compute_k import context_mean, keys_at
from .engine import Site
from .locate_then_edit import Targeted


class Spread(Targeted):
    """What MEMIT, PMET, EMMET, AlphaEdit and RECT share: the walk over the layers, each of which is given a share of
    what is still missing. They differ in the closed form that writes it, `_solve`. z belongs to the last of `layers`;
    it is a value of the residual stream, where a method's `_site` says no other."""

    keys_after: ClassVar[bool] = True  # a history's keys are measured after the batch; else as the layers were solved

    def _check(self, call):
        model = call.model
        if not self._site(model).inside and model.layout.mlp_norm is not None:
            raise KeditError(
                f"{self.name}: its targets are values of the residual stream, and in {model.name} a norm "
                f"({model.layout.mlp_norm}) stands between the edited map and the stream, so that no change of the map "
                "adds what is missing; use ROME or PMET, whose targets are the map's own output"
            )
        return super()._check(call)

    def _apply(self, call: Call) -> Outcome:
        targets, keys = self._targets(call)
        outcome = Outcome(self.name, call.edits, {}, targets)
        self._edit_layers(call, outcome, None if keys is None else self._mean(keys.flatten(0, 1), call))
        if call.history is not None:
            self._remember(call, outcome)
        return outcome

    def _remember(self, call: Call, outcome: Outcome) -> None:
        """The batch's keys join the history."""
        keys = self._keys(call, self.layers) if self.keys_after else keys_used(outcome, self.layers)
        call.history.remember(call.model, keys, *self._fixed(call))

    def _edit_layers(self, call: Call, outcome: Outcome, first_keys: Tensor | None) -> None:
        """first_keys [N, d_ff]: of the first layer, where they are known already."""
        model, targets = call.model, outcome.targets
        at_once = [f for f in call.filters if f.each_layer]
        later = [f for f in call.filters if not f.each_layer]
        before = model.snapshot() if later else None
        scale = 1 if self._site(model).inside else model.mlp_scale  # what the stream gets of the map's output
        z, missing = [t.z for t in targets], torch.stack([t.delta for t in targets])  # H is v₀ at first
        for i, layer in enumerate(self.layers):
            known = i == 0 and first_keys is not None
            k = first_keys if known else self._keys(call, [layer])[layer]
            missing = self._missing(call, z) if i else missing
            delta = self._solve(call, layer, k, missing * self._share(i) / scale, outcome)
            for one in at_once:
                delta = one.change(model, layer, delta)
            write(model, layer, delta, outcome.deltas)
            for target, key in zip(targets, k, strict=True):
                target.key_per_layer[layer] = key
        if later:
            raw, outcome.deltas = outcome.deltas, {}
            model.load_snapshot(before)
            for layer in self.layers:
                delta = as_matrix(model, raw[model.weight_name(layer)])
                for one in later:
                    delta = one.change(model, layer, delta)
                write(model, layer, delta, outcome.deltas)
        if call.filters:
            outcome.written = {}  # no longer known

    def _keys(self, call: Call, layers) -> dict[int, Tensor]:
        """{layer: [N, d_ff]} on the weights so far."""
        return {layer: self._mean(k, call) for layer, k in keys_at(call.model, call.prompts, layers).items()}

    def _mean(self, k: Tensor, call: Call) -> Tensor:
        """[N·contexts, d_ff] → [N, d_ff]"""
        return context_mean(k, len(call.requests[0].prompts), grouped=True)

    def _site(self, model):
        z_layer = self.layers[-1]
        return Site(z_layer, self._loss_layer(model), (model.layers[z_layer],), model.mlp_out(self.layers[0]))

    def _share(self, i: int) -> float:
        """The part of the residual that falls to the i-th edited layer."""
        return 1 / (len(self.layers) - i)

    @abstractmethod
    def _solve(self, call: Call, layer: int, k: Tensor, r: Tensor, outcome: Outcome) -> Tensor:
        """Δ [d_model, d_ff] for keys k [N, d_ff] and this layer's share r [N, d_model] of the residuals."""

    def _fixed(self, call: Call):
        """The matrix B of the closed form that no edit changes, but for a factor: its name, and times(layer, k)."""
        raise NotImplementedError

    def _with_history(self, call: Call, layer: int, bk: Tensor, scale: float) -> Tensor:
        """(B⁻¹ + M)⁻¹ K from bk = BK, M the earlier edits'; B is `_fixed` / scale."""
        if call.history is None or not call.history.edits:
            return bk
        past = call.history.recall(layer, *self._fixed(call), scale)
        return with_memory(bk, *(part.to(bk.device) for part in past))


def keys_used(outcome: Outcome, layers) -> dict[int, Tensor]:
    """{layer: [N, d_ff]} the keys that each layer was solved with."""
    return {layer: torch.stack([t.key_per_layer[layer] for t in outcome.targets]) for layer in layers}


class MEMIT(Spread):
    """mom2_update_weight: λ, how many tokens' worth of C an edit is weighed against.
    use_history: whether successive calls share an EditHistory (M)."""

    mom2_update_weight: float = Field(15000, gt=0)
    use_history: bool = False

    @property
    def keeps_history(self) -> bool:
        return self.use_history

    def _solve(self, call, layer, k, r, outcome):
        weight = self.mom2_update_weight
        bk = call.moments.solve(layer, k) / weight
        delta, g = update(k, r, self._with_history(call, layer, bk, weight))
        outcome.s[layer] = weight * (k.double() @ bk.T).diagonal()
        left = weight * g  # s, less what a history takes of it
        outcome.written[layer] = left / (weight + left)
        return delta

    def _fixed(self, call):
        return f"C⁻¹ of moments {call.moments.identity}", call.moments.solve
