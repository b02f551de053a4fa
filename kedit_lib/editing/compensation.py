"""MEMIT whose update is filtered, and what the filter takes (arXiv 2605.26670): handed to the next batch, once.

    Δ = ((R/(m−i)) Kᵀ − E) C_t⁻¹,    then    E ← (filtered(Δ) − Δ) C_t,    C_t = λC + M + K Kᵀ

E, d_model × d_ff a layer, is 0 at first; M = Σ k kᵀ over the earlier batches, as in MEMIT with history, which it needs.
Without compensation what a filter takes of an update is not written anywhere.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from .call import Call, Filter
from .closed_form import update
from .history import EditHistory
from .memit import MEMIT, keys_used


class Filtered(MEMIT):
    """MEMIT's hyperparameters; compensation: whether what the filter takes is made up for at the next batch."""

    options: ClassVar[tuple[str, ...]] = (*MEMIT.options, "compensation")

    compensation: bool = False

    @property
    def keeps_history(self) -> bool:
        return self.use_history or self.compensation

    @property
    def history_kind(self) -> str:
        return f"{type(self).__name__} with compensation" if self.compensation else super().history_kind

    @abstractmethod
    def filtered(self, model, layer: int, delta: Tensor) -> Tensor:
        """What is written of Δ [d_model, d_ff]; the weights are those before it."""

    def prepare(self, model, edits, moments=None, contexts=None, history=None, *args, **given) -> Call:
        if self.compensation and history is None:
            history = EditHistory(self.history_kind)
        call = super().prepare(model, edits, moments, contexts, history, *args, **given)

        def change(model, layer: int, delta: Tensor) -> Tensor:
            kept = self.filtered(model, layer, delta)
            if self.compensation:
                call.history.cache["lost", layer] = kept.double() - delta.double()
            return kept

        return replace(call, filters=(*call.filters, Filter(change)))

    def _solve(self, call, layer, k, r, outcome):
        e = call.history.get("E", layer, k.device) if self.compensation else None
        if e is None:
            return super()._solve(call, layer, k, r, outcome)
        weight = self.mom2_update_weight
        be, bk = (self._with_history(call, layer, call.moments.solve(layer, x) / weight, weight) for x in (e, k))
        return update(k, r.double() + k.double() @ be.T, bk)[0] - be  # E C_t⁻¹ by Woodbury, with (λC + M)⁻¹Eᵀ

    def _remember(self, call, outcome) -> None:
        if self.compensation:
            for layer, k in keys_used(outcome, self.layers).items():
                call.history.put("E", layer, self._weighed(call, layer, call.history.cache.pop(("lost", layer)), k))
        super()._remember(call, outcome)

    def _weighed(self, call, layer: int, lost: Tensor, k: Tensor) -> Tensor:
        """(filtered(Δ) − Δ) C_t"""
        if call.history.edits:
            k = torch.cat([call.history.keys[layer].to(k), k])
        k, c = k.double(), call.moments.tensors[layer].to(lost)
        return self.mom2_update_weight * lost @ ((c + c.T) / 2) + (lost @ k.T) @ k
