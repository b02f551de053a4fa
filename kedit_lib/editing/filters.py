"""Filters, which change an update before it is written: of MEMIT or, as a wrapper, of any method. What a filter removes
is lost or, with compensation (arXiv 2605.26670), added once to MEMIT's next batch:

    Δ = ((R/(m−i)) Kᵀ − E) C_t⁻¹,    then    E ← (filtered(Δ) − Δ) C_t,    C_t = λC + M + K Kᵀ

E, d_model × d_ff per layer, is 0 at first; M = Σ k kᵀ over the earlier batches, as in MEMIT with history.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import PrivateAttr, SerializeAsAny
from torch import Tensor

from ..errors import KeditError
from .closed_form import update
from .locate_then_edit import Targeted
from .memit import MEMIT
from .method import Call, Method, Outcome, drift, matrix, off_unless_given, same_as


class Filter(Method):
    """A method with a filter that changes its updates before they are written. each_layer: each update is filtered
    before the next layer is solved; else after all, and the filter sees the weights at entry."""

    each_layer: ClassVar[bool] = False
    _of_unedited: dict = PrivateAttr(default_factory=dict)

    @abstractmethod
    def filtered(self, call: Call, layer: int, delta: Tensor) -> Tensor:
        """What is written of Δ [d_model, d_ff]; the weights are those before it."""

    def _from_unedited(self, model, layer: int, what):
        """what(W₀), computed once for each model."""
        known = model.checksum, layer
        if known not in self._of_unedited:
            self._of_unedited[known] = what(matrix(model, layer).double() - drift(model, layer))
        return self._of_unedited[known]


class FilteredMEMIT(Filter, MEMIT):
    """MEMIT with a filter. compensation: whether the next batch makes up for what the filter removes."""

    compensation: bool = off_unless_given()
    needs_history = same_as("compensation")

    @property
    def keeps_history(self) -> bool:
        return self.use_history or self.compensation

    @property
    def history_kind(self) -> str:
        return f"{type(self).__name__} with compensation" if self.compensation else "keys"

    def _check(self, call):
        return replace(super()._check(call), filters=(self,))

    def filtered(self, call, layer, delta):
        kept = self.kept(call.model, layer, delta)
        if self.compensation:
            call.history.cache["lost", layer] = kept.double() - delta.double()
        return kept

    @abstractmethod
    def kept(self, model, layer: int, delta: Tensor) -> Tensor: ...  # what is written of Δ

    def _solve(self, call, layer, k, r, outcome):
        e = call.history.get("E", layer, k.device) if self.compensation else None
        if e is None:
            return super()._solve(call, layer, k, r, outcome)
        be, bk = (self._products(call, layer, x, outcome) for x in (e, k))
        return update(k, r.double() + k.double() @ be.T, bk)[0] - be  # E C_t⁻¹ by Woodbury, with (λC + M)⁻¹Eᵀ

    def _remember(self, call, outcome, keys):
        for layer in self.layers if self.compensation else ():
            lost, k = call.history.cache.pop(("lost", layer)), outcome.keys(layer)  # filtered(Δ) − Δ
            if call.history.edits:
                k = torch.cat([call.history.keys[layer].to(k), k])
            k, c = k.double(), call.moments.tensors[layer].to(lost)
            call.history.put("E", layer, self.mom2_update_weight * lost @ ((c + c.T) / 2) + (lost @ k.T) @ k)
        super()._remember(call, outcome, keys)


class Wrapper(Method):
    """A method around another one, its base, with the same layers; its name has both."""

    base: SerializeAsAny[Targeted]
    context_style = same_as("base.context_style")
    needs_moments = same_as("base.needs_moments")
    one_by_one = same_as("base.one_by_one")
    contexts = same_as("base.contexts")

    def __init__(self, base=None, **values):
        if not isinstance(base, Targeted) or type(base).recall is not Method.recall:
            given, made = getattr(base, "name", base), "a method that writes optimised targets, such as kedit.MEMIT(…)"
            raise KeditError(f"{type(self).__name__}: base = {given!r}: must be {made}")
        super().__init__(base=base, **{"layers": list(base.layers), **values})
        if self.layers != base.layers:
            raise KeditError(f"{self.name}: layers = {self.layers}, its base has {base.layers}; leave them out here")

    @property
    def name(self) -> str:
        return f"{type(self).__name__}-{self.base.name}"

    @property
    def hyperparameters(self) -> dict:
        return super().hyperparameters | {"base": {"method": self.base.name, **self.base.hyperparameters}}


class Filtering(Filter, Wrapper):
    """A wrapper that changes every update of its base. The history, if any, is the base's."""

    keeps_history = same_as("base.keeps_history")
    history_kind = same_as("base.history_kind")

    def prepare(self, *args, **given) -> Call:
        call = self.base.prepare(*args, **given)
        return replace(call, filters=(*call.filters, self))

    def _apply(self, call: Call) -> Outcome:
        return replace(self.base._apply(call), method=self.name)
