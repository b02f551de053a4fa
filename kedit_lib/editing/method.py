"""What all methods share: typed hyperparameters, checks before anything changes, and the outcome.

A method is a subclass that says where it differs:

    _apply(call)            the method itself
    needs_moments, shift    whether C is used, and what is added to its diagonal before it is inverted
    keeps_history, takes    whether it remembers earlier calls; which of targets and projection may be given
    contexts, context_style the contexts that keys and targets are means over
    _check(call)            what else it refuses, and what it makes of its arguments beforehand

and, with a target for each edit (`Targeted`): _site, weighed, done; spread over layers (`Spread`): _solve, _share and
_fixed.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import replace
from inspect import Parameter, Signature
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.edit import check_edits, warn_of_contradictions
from ..errors import KeditError
from ..models.checked import check_editable
from ..models.deltas import record_of
from ..models.memory import memory_for
from .call import Call, Outcome
from .compute_z import warn_if_doubtful
from .contexts import check_contexts, generate_contexts
from .engine import requests_of
from .history import EditHistory
from .null_space import NullSpace
from .state import EditState

CALLED = "__init__ apply contexts hyperparameters keeps_history name needs_moments new_history".split()


class _Listed(type(BaseModel)):
    """Classes whose dir() and help() show what a caller uses, not pydantic's names and what a subclass overrides."""

    def __dir__(cls):
        return CALLED


class Method(BaseModel, ABC, metaclass=_Listed):
    """Hyperparameters with the field's names; `apply` edits a model in place.

    layers   0-based layers that are edited, ascending
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    context_style: ClassVar[str] = "memit"
    takes: ClassVar[frozenset[str]] = frozenset()
    shift: ClassVar[float | None] = 0.0  # C + shift·I is inverted (None: nothing is)
    options: ClassVar[tuple[str, ...]] = ("use_history", "norm_anchor")  # off unless given

    layers: list[int] = Field(min_length=1)

    @classmethod
    def __pydantic_init_subclass__(cls, **options):
        """help() gives each hyperparameter with its default; what each may be is checked where one is made."""
        fields = {n: Parameter.empty if f.is_required() else f.get_default() for n, f in cls.model_fields.items()}
        cls.__signature__ = Signature([Parameter(n, Parameter.KEYWORD_ONLY, default=d) for n, d in fields.items()])

    def __init__(self, **values):
        """KeditError for a name that does not exist and for a value out of its range."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            # A name that is unknown comes first: the one that is missing is what was meant.
            first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
            name, value = ".".join(map(str, first["loc"])) or "?", first.get("input")
            if first["type"] == "missing":
                problem = f"{name} is missing; give it"
            elif first["type"] == "extra_forbidden":
                fields = [*type(self).model_fields]
                like = difflib.get_close_matches(name, fields, 1)
                meant = f", did you mean {like[0]}" if like else ""
                problem = f"{name} = {value!r}: there is no such hyperparameter{meant}; there are {', '.join(fields)}"
            else:
                hint = "; write it without quotes" if isinstance(value, str) else ""
                problem = f"{name} = {value!r}: {first['msg'].lower()}{hint}"
            raise KeditError(f"{type(self).__name__}: {problem}") from None
        if list(self.layers) != sorted(set(self.layers)):
            raise KeditError(f"{type(self).__name__}: layers = {self.layers}: must ascend without repeats")

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def hyperparameters(self) -> dict:
        """What decides the numbers, for stores. An option that is off is left out, so that a run from before there
        was one is still the same run."""
        return {n: v for n, v in self.model_dump().items() if n not in self.options or v}

    @property
    def needs_moments(self) -> bool:
        return True

    @property
    def keeps_history(self) -> bool:
        """Whether something lasts from call to call: `new_history`."""
        return False

    @property
    def history_kind(self) -> str:
        """Methods of one kind can go on with each other's histories."""
        return EditHistory.kind

    def new_history(self, model, moments=None) -> EditState | None:
        """An empty history for successive calls of `apply` on `model`; None for a method that keeps none."""
        return EditHistory(self.history_kind) if self.keeps_history else None

    def apply(
        self, model, edits, moments=None, contexts=None, history=None, projection=None, targets=None, engine=None
    ) -> Outcome:
        """Edit `model` in place and say what was done.

        moments      SecondMoments of this model; None is legal where C is not used
        contexts     strings with one `{}` each; None: generated with seed 0 in this method's style
        history      of earlier calls, made by `new_history` (methods that keep one); None: no memory
        projection   NullSpace (AlphaEdit); None: made from the moments
        targets      finished z, a tensor [d_model] an edit (ROME: v*; PMET: the MLP's); None: optimised
        engine       "plain": targets are optimised with whole passes of the model; numbers differ by rounding

        All or nothing: after an error weights and history are those at entry. Warns of a target already given.
        """
        return self.apply_prepared(self.prepare(model, edits, moments, contexts, history, projection, targets, engine))

    def prepare(
        self, model, edits, moments=None, contexts=None, history=None, projection=None, targets=None, engine=None
    ) -> Call:
        """The arguments of `apply`, checked, and the edits as token ids; what `apply` refuses is refused here."""
        check_editable(model, self.name)
        edits = check_edits(edits, self.name)
        model.check_layers(self.layers)
        z = None if targets is None else list(targets)
        call = self._check(Call(model, edits, [], moments, history, projection, z, engine))
        return replace(call, requests=requests_of(model.tokenizer, edits, self.contexts(model, contexts)))

    def apply_prepared(self, call: Call) -> Outcome:
        """`apply` for what `prepare` made ready, or a part of it."""
        warn_of_contradictions(call.edits)
        model, history, before = call.model, call.history, call.model.snapshot()
        known = None if history is None else history.copy()
        try:
            remedy = "give fewer edits in a batch, fewer contexts or a larger device"
            with memory_for(self.name, remedy), model.recording(record_of(self.name, self.hyperparameters, call.edits)):
                outcome = self._apply(call)
        except BaseException:
            model.load_snapshot(before)
            if known is not None:
                vars(history).update(vars(known))
            raise
        outcome.hyperparameters, outcome.model_checksum = self.hyperparameters, model.checksum
        warn_if_doubtful(call.edits, outcome.targets)
        return outcome

    def contexts(self, model, given=None) -> list[str]:
        """The contexts that are used: `given`, checked, or generated ones."""
        if given is None:
            with model.temporarily():  # the unedited model's: successive edits then share one list
                given = generate_contexts(model, seed=0, style=self.context_style)
        return check_contexts(given)

    def _check(self, call: Call) -> Call:
        """KeditError for what the method cannot work with; the call, with what is made ready beforehand."""
        model, history, projection = call.model, call.history, call.projection
        if history is not None and not self.keeps_history:
            use = "; MEMIT(use_history=True) does" if "use_history" in type(self).model_fields else ""
            raise KeditError(f"{self.name}: keeps no memory of earlier edits; call it with history=None{use}")
        if history is not None:
            if not isinstance(history, EditState) or history.kind != self.history_kind:
                what = f"kind {history.kind!r}" if isinstance(history, EditState) else f"type {type(history).__name__}"
                make = (
                    "an EditHistory()"
                    if self.history_kind == EditHistory.kind
                    else "method.new_history(model, moments)"
                )
                raise KeditError(f"{self.name}: history is of {what}; pass {make}")
            history.check(model, self.layers)
        if projection is not None:
            if "projection" not in self.takes:
                raise KeditError(f"{self.name}: has no use for a projection; call it with projection=None")
            if not isinstance(projection, NullSpace):
                kind = type(projection).__name__
                raise KeditError(f"{self.name}: projection is of type {kind}; pass NullSpace.from_moments(moments, …)")
            projection.check(model, self.layers)
        elif self.needs_moments:
            if call.moments is None:
                raise KeditError(
                    f"{self.name}: needs second moments; pass moments=SecondMoments.estimate(model, texts, layers=…)"
                )
            call.moments.check(model, self.layers, invert=self.shift)
        for name, given in (("targets", call.z), ("engine", call.engine)):
            if given is not None and "targets" not in self.takes:
                raise KeditError(f"{self.name}: optimises no targets; call it with {name}=None")
        return call

    @abstractmethod
    def _apply(self, call: Call) -> Outcome:
        """The method itself."""


class Sequential(Method):
    """A method that cannot work without its history: where none is given, each call starts an empty one."""

    @property
    def keeps_history(self) -> bool:
        return True

    @property
    def history_kind(self) -> str:
        return type(self).__name__

    def new_history(self, model, moments=None) -> EditState:
        return EditState(self.history_kind)

    def prepare(self, model, edits, moments=None, contexts=None, history=None, *args, **given) -> Call:
        history = self.new_history(model, moments) if history is None else history
        return super().prepare(model, edits, moments, contexts, history, *args, **given)
