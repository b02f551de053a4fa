"""What is put round another method: its name says both, and its hyperparameters hold the other's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from pydantic import SerializeAsAny

from ..errors import KeditError
from .call import Call, Filter, Outcome
from .locate_then_edit import Targeted
from .method import Method


class Wrapper(Method):
    """base: the method that it is put round; its layers are the wrapper's."""

    base: SerializeAsAny[Targeted]

    def __init__(self, base=None, **values):
        if not isinstance(base, Targeted):
            given = getattr(base, "name", base)
            raise KeditError(
                f"{type(self).__name__}: base = {given!r}: must be a method that optimises targets, such as "
                "kedit.MEMIT(…)"
            )
        super().__init__(base=base, **{"layers": list(base.layers), **values})
        if self.layers != base.layers:
            raise KeditError(f"{self.name}: layers = {self.layers}, its base has {base.layers}; leave them out here")

    @property
    def name(self) -> str:
        return f"{type(self).__name__}-{self.base.name}"

    @property
    def hyperparameters(self) -> dict:
        return super().hyperparameters | {"base": {"method": self.base.name, **self.base.hyperparameters}}

    @property
    def context_style(self) -> str:
        return self.base.context_style

    @property
    def needs_moments(self) -> bool:
        return self.base.needs_moments

    def contexts(self, model, given=None) -> list[str]:
        return self.base.contexts(model, given)


class Filtering(Wrapper):
    """Changes every update of its base before it counts. The history, if any, is the base's."""

    @property
    def keeps_history(self) -> bool:
        return self.base.keeps_history

    @property
    def history_kind(self) -> str:
        return self.base.history_kind

    def new_history(self, model, moments=None):
        return self.base.new_history(model, moments)

    @abstractmethod
    def filter(self) -> Filter:
        """What is done to an update."""

    def prepare(self, *args, **given) -> Call:
        call = self.base.prepare(*args, **given)
        return replace(call, filters=(*call.filters, self.filter()))

    def _apply(self, call: Call) -> Outcome:
        outcome = self.base._apply(call)
        outcome.method = self.name
        return outcome
