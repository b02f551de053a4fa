"""What all methods share: typed hyperparameters, checks before anything changes, and the outcome."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..data.edit import Edit, check_edits
from ..errors import KeditError
from ..models.checked import check_editable
from ..models.deltas import Deltas, record_of
from ..models.memory import memory_for
from ..models.model import EditableModel
from .compute_z import Request, Target, request, warn_if_doubtful
from .contexts import check_contexts, generate_contexts
from .history import EditHistory
from .null_space import NullSpace
from .second_moments import SecondMoments
from .state import EditState


@dataclass
class Outcome:
    """What `apply` did. The deltas are already in the model.

    deltas    {parameter name: tensor of the parameter's own shape}, float32 (float64 models: float64)
    targets   a Target for each edit, in order
    s         {layer: [N]} kᵀC⁻¹k of each edit (EMMET: kᵀ(C′/λ)⁻¹k; empty where C is not inverted)
    written   {layer: [N]} the fraction of its residual that each edit, without the others of its batch,
              would write there (methods that write a fraction)
    hyperparameters, model_checksum   of the method, and of the unedited model
    """

    method: str
    edits: list[Edit]
    deltas: dict[str, Tensor]
    targets: list[Target]
    s: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)
    hyperparameters: dict = field(default_factory=dict)
    model_checksum: str | None = None

    def layers(self, model) -> list[int]:
        """The edited layers."""
        return [i for i in range(model.n_layers) if model.weight_name(i) in self.deltas]

    @property
    def record(self) -> dict:
        """The call as plain data."""
        return record_of(self.method, self.hyperparameters, self.edits)

    def save(self, folder) -> Path:
        """The deltas with their record, in `<folder>/deltas.safetensors` (kedit.load_deltas); its path."""
        return Deltas(self.deltas, self.model_checksum, self.method, self.hyperparameters, self.edits).save(folder)


@dataclass(frozen=True)
class Filter:
    """A change of every update before it counts: (model, layer, Δ [d_model, d_ff]) → Δ, W being the weight before it.

    each_layer  each layer's update is filtered before the next one is solved; else all layers are solved first, and the
                filter sees the weights at entry
    """

    change: Callable[[EditableModel, int, Tensor], Tensor]
    each_layer: bool = False


@dataclass(frozen=True)
class Call:
    """What one `apply` works with: its arguments, checked, and the edits as token ids.

    requests   a Request an edit, its clean prompt first
    z          finished targets, a tensor [d_model] an edit (None: they are optimised)
    filters    of the updates, in this order
    """

    model: EditableModel
    edits: list[Edit]
    requests: list[Request]
    moments: SecondMoments | None
    history: EditState | None
    projection: NullSpace | None
    z: list[Tensor] | None
    filters: tuple[Filter, ...] = ()


class Method(BaseModel, ABC):
    """Hyperparameters with the field's names; `apply` edits a model in place.

    layers   0-based layers that are edited, ascending
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    context_style: ClassVar[str] = "memit"
    takes_projection: ClassVar[bool] = False
    takes_targets: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("use_history", "norm_anchor")  # off unless given

    layers: list[int] = Field(min_length=1)

    def __init__(self, **values):
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

    def apply(self, model, edits, moments=None, contexts=None, history=None, projection=None, targets=None) -> Outcome:
        """Edit `model` in place and say what was done.

        moments      SecondMoments of this model; None is legal where C is not used
        contexts     strings with one `{}` each; None: generated with seed 0 in this method's style
        history      of earlier calls, made by `new_history` (methods that keep one); None: no memory
        projection   NullSpace (AlphaEdit); None: made from the moments
        targets      finished z, a tensor [d_model] an edit (ROME: v*; PMET: the MLP's); None: optimised

        All or nothing: after an error the weights and the history are the ones at entry, bit for bit.
        Warns when the model already gives a target.
        """
        call = self.prepare(model, edits, moments, contexts, history, projection, targets)
        before, known = model.snapshot(), None if history is None else history.copy()
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

    def prepare(self, model, edits, moments=None, contexts=None, history=None, projection=None, targets=None) -> Call:
        """What `apply` refuses is refused here, before anything runs."""
        check_editable(model, self.name)
        edits = check_edits(edits, self.name)
        model.check_layers(self.layers)
        self._check(model, moments, history, projection)
        z = None if targets is None else self._check_targets(model, edits, targets)
        return Call(model, edits, self._requests(model, edits, contexts), moments, history, projection, z)

    def _requests(self, model, edits, contexts) -> list[Request]:
        contexts = self.contexts(model, contexts)
        return [request(model.tokenizer, e, contexts) for e in edits]

    def contexts(self, model, given=None) -> list[str]:
        """The contexts that are used: `given`, checked, or generated ones."""
        if given is None:
            with model.temporarily():  # the unedited model's: successive edits then share one list
                given = generate_contexts(model, seed=0, style=self.context_style)
        return check_contexts(given)

    def _check(self, model, moments, history, projection) -> None:
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
            if not self.takes_projection:
                raise KeditError(f"{self.name}: has no use for a projection; call it with projection=None")
            if not isinstance(projection, NullSpace):
                kind = type(projection).__name__
                raise KeditError(f"{self.name}: projection is of type {kind}; pass NullSpace.from_moments(moments, …)")
            projection.check(model, self.layers)
        elif self.needs_moments:
            if moments is None:
                raise KeditError(
                    f"{self.name}: needs second moments; pass moments=SecondMoments.estimate(model, texts, layers=…)"
                )
            self._check_moments(model, moments)

    def _check_moments(self, model, moments) -> None:
        moments.check(model, self.layers)

    def _check_targets(self, model, edits, targets) -> list[Tensor]:
        if not self.takes_targets:
            raise KeditError(f"{self.name}: optimises no targets; call it with targets=None")
        targets = list(targets)
        if len(targets) != len(edits):
            raise KeditError(f"{self.name}: {len(targets)} targets for {len(edits)} edits; give one z an edit")
        for i, z in enumerate(targets):
            if not isinstance(z, Tensor) or z.shape != (model.d_model,) or not z.isfinite().all():
                raise KeditError(
                    f"{self.name}: target {i} is no finite tensor of shape ({model.d_model},); give one z an edit"
                )
        return [z.to(model.device, model.math_dtype) for z in targets]

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


def matrix(model, layer: int) -> Tensor:
    """W [d_model, d_ff] of `layer` as it is now, in math dtype."""
    return as_matrix(model, model.weight(layer).detach().to(model.math_dtype))


def as_matrix(model, own: Tensor) -> Tensor:
    """A tensor of a weight's own layout as [d_model, d_ff]."""
    return own.T if model.layout.transposed else own


def write(model, layer: int, delta: Tensor, deltas: dict[str, Tensor]) -> None:
    """Add Δ [d_model, d_ff] to layer's W in the model's own layout, and note it in `deltas`. KeditError when it is not
    finite, before it is written."""
    if not delta.isfinite().all():
        raise KeditError(f"layer {layer}: Δ holds NaN or inf; nothing was written, check moments and learning rate")
    own = as_matrix(model, delta).to(model.math_dtype).contiguous()
    name = model.weight_name(layer)
    model.add({name: own})
    deltas[name] = own
