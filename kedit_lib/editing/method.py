"""What all methods share: typed hyperparameters, checks before anything changes, and `apply`, all or nothing; what goes
into one call and what comes out of it; and how an update is written into the weights."""

from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from operator import attrgetter, not_
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..data.config import problem_of
from ..data.edit import Edit, check_edits, warn_of_contradictions
from ..errors import KeditError, check_editable, explained
from ..models.deltas import Deltas, record_of
from ..models.memory import ran_out
from ..models.model import EditableModel
from ..models.tokenization import Prompt, check_embedded
from .compute_k import check_contexts, generate_contexts, keys_at, prompts_of
from .compute_z import Target, warn_if_doubtful
from .engine import Request, requests_of
from .history import EditHistory
from .second_moments import SecondMoments

CALLED = "__init__ apply contexts hyperparameters keeps_history name needs_moments new_history".split()
UNUSED = {"projection": "uses no projection", "targets": "optimises no targets", "engine": "optimises no targets"}


@dataclass(repr=False)
class Outcome(Deltas):
    """The result of one `apply`: what was written, which is already in the model, and how each edit went.

    deltas    {parameter name: tensor of the parameter's own shape}, float32 (float64 models: float64)
    targets   a Target for each edit, in order
    s         {layer: [N]} kᵀC⁻¹k of each edit (with a shift of C where the method has one; empty where C is not used)
    written   {layer: [N]} the fraction of its residual that each edit would write there if it were alone in its batch
    """

    targets: list[Target]
    s: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        p, n = [t.probabilities[-1] for t in self.targets if t.probabilities], len(self.edits)
        reached = f", mean p of the targets {sum(p) / len(p):.3g}" if p else ""
        norms = ", ".join(f"‖Δ‖ {d.norm().item():.3g} in {name}" for name, d in self.deltas.items())
        return f"Outcome({self.method}, {n} edit{'s' * (n != 1)}{reached}, {norms or 'nothing written'})"

    def layers(self, model) -> list[int]:
        return [i for i in range(model.n_layers) if model.weight_name(i) in self.deltas]

    def keys(self, layer: int) -> Tensor:
        """[N, d_ff] the keys that the layer was solved with."""
        return torch.stack([t.key_per_layer[layer] for t in self.targets])


@dataclass(frozen=True)
class Call:
    """The checked arguments of one `apply`, with the edits as token ids."""

    model: EditableModel
    edits: list[Edit]
    requests: list[Request]  # one per edit, its clean prompt first
    moments: SecondMoments | None = None
    history: EditHistory | None = None
    projection: object = None  # AlphaEdit's NullSpace
    targets: list[Tensor] | None = None  # finished ones, [d_model] per edit (None: they are optimised)
    engine: str | None = None  # one of `engine.ENGINES` (None: the method's own)
    filters: tuple = ()  # the `filters.Filter`s that change each update before it is written, in this order

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of all edits in all contexts, those of an edit side by side."""
        return [p for r in self.requests for p in r.prompts]

    @property
    def clean(self) -> list[Prompt]:
        return [r.prompts[0] for r in self.requests]

    def part(self, begin: int, end: int) -> Self:
        targets = self.targets and self.targets[begin:end]
        return replace(self, edits=self.edits[begin:end], requests=self.requests[begin:end], targets=targets)


def matrix(model, layer: int) -> Tensor:
    """W [d_model, d_ff] of `layer` as it is now, in math dtype."""
    return as_matrix(model, model.weight(layer).detach().to(model.device, model.math_dtype))


def drift(model, layer: int) -> Tensor:
    """W − W₀ [d_model, d_ff] in float64: the sum of all edits."""
    return as_matrix(model, model.drift(layer)).double()


def as_matrix(model, own: Tensor) -> Tensor:
    """A tensor of a weight's own layout as [d_model, d_ff]."""
    return own.T if model.layout.transposed else own


def write(call: Call, layer: int, delta: Tensor, deltas: dict[str, Tensor], filters=()) -> None:
    """Add Δ [d_model, d_ff], as `filters` change it, to the layer's W, and to `deltas` in the weight's own layout.
    KeditError when it is not finite, before it is written."""
    for one in filters:
        delta = one.filtered(call, layer, delta)
    if not delta.isfinite().all():
        raise KeditError(f"layer {layer}: Δ holds NaN or inf; nothing was written, check moments and learning rate")
    model, name = call.model, call.model.weight_name(layer)
    own = as_matrix(model, delta).to(model.math_dtype).contiguous()
    model.add({name: own})
    deltas[name] = deltas[name] + own if name in deltas else own


def off_unless_given(default=False, **rules):
    """A hyperparameter that stored keys leave out while it is off: runs from before it existed are found again."""
    return Field(default, exclude_if=not_, **rules)


def same_as(attribute: str) -> property:
    """What another attribute of the method, or of its base, is."""
    return property(lambda method: attrgetter(attribute)(method))


class _Listed(type(BaseModel)):
    """Keeps dir() and help() of methods short: no names of pydantic, no overrides of subclasses."""

    def __dir__(cls):
        return CALLED


class Method(BaseModel, metaclass=_Listed):
    """Base class of methods: typed hyperparameters, and `apply`, which edits a model. layers: 0-based, ascending."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    context_style: ClassVar[str] = "memit"  # of the contexts that keys and targets are averaged over
    clean_only: ClassVar[bool] = False  # the clean prompt is the only context
    one_layer: ClassVar[bool] = False  # it edits exactly one
    one_by_one: ClassVar[bool] = False  # edits of one call are made in turn, which is no batch
    takes: ClassVar[frozenset[str]] = frozenset()  # which of UNUSED may be given
    needs_moments: ClassVar[bool] = True  # C is used
    shift: ClassVar[float | None] = 0.0  # C + shift·I is inverted (None: nothing is)
    keeps_history: ClassVar[bool] = False  # calls may share a history
    needs_history: ClassVar[bool] = False  # a call without one starts its own
    layers: list[int] = Field(min_length=1)

    @classmethod
    def __pydantic_init_subclass__(cls, **options):
        """help() shows each hyperparameter with its default."""
        fields = {n: Parameter.empty if f.is_required() else f.get_default() for n, f in cls.model_fields.items()}
        cls.__signature__ = Signature([Parameter(n, Parameter.KEYWORD_ONLY, default=d) for n, d in fields.items()])

    def __init__(self, **values):
        """KeditError for an unknown hyperparameter and for a value out of its range."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            problem = problem_of(error, "hyperparameter", type(self).model_fields)
            raise KeditError(f"{type(self).__name__}: {problem}") from None
        if self.layers != sorted(set(self.layers)) or (self.one_layer and len(self.layers) != 1):
            must = "edits exactly one layer; give a list of one" if self.one_layer else "must ascend without repeats"
            raise KeditError(f"{type(self).__name__}: layers = {self.layers}: {must}")

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def hyperparameters(self) -> dict:
        """The hyperparameters as plain data, for the keys of stores; an option that is off is left out."""
        anchored = vars(self).get("norm_anchor") and self.anchor_skip
        return self.model_dump(exclude=None if anchored else {"anchor_skip"})

    @property
    def history_kind(self) -> str:
        """Methods of one kind go on with each other's histories."""
        return type(self).__name__ if self.needs_history else "keys"

    def new_history(self, model, moments=None, keep=()) -> EditHistory | None:
        """A history for successive calls of `apply` on `model`; None for a method that keeps none. keep: facts that no
        edit is to change, edits (their targets play no part) or (prompt with {}, subject) pairs. Their keys on the
        unedited model count as those of earlier edits; only methods whose histories are keys take it."""
        check_editable(model, self.name)
        history = EditHistory(self.history_kind) if self.keeps_history else None
        if keep:
            if history is None or history.kind != "keys":
                use = "MEMIT(use_history=True) and AlphaEdit have one"
                raise KeditError(f"{self.name}: keep needs a history of keys; {use}")
            with model.temporarily():
                history.remember(model, keys_at(model, prompts_of(model, keep), model.check_layers(self.layers)))
        return history

    def apply(
        self, model, edits, moments=None, contexts=None, history=None, projection=None, targets=None, engine=None
    ) -> Outcome:
        """Edit `model` in place; the outcome says what was done. After an error weights and history are those at entry.
        Warns of a target already given.

        moments      SecondMoments of this model; may be None where C is not used
        contexts     strings with one `{}` each; None: generated with seed 0 in this method's style
        history      of earlier calls, made by `new_history` (methods that keep one); None: no memory
        projection   NullSpace (AlphaEdit); None: made from the moments
        targets      finished z, a tensor [d_model] per edit (ROME: v*; PMET: the MLP's); None: optimised
        engine       "plain": full forward passes; "bfloat16": Llama and Mistral on a CPU, faster and less exact
        """
        return self.apply_prepared(self.prepare(model, edits, moments, contexts, history, projection, targets, engine))

    def prepare(
        self, model, edits, moments=None, contexts=None, history=None, projection=None, targets=None, engine=None
    ) -> Call:
        """The arguments of `apply`, checked, and the edits as token ids; whatever `apply` refuses is refused here."""
        check_editable(model, self.name)
        edits = check_edits(edits, self.name)
        model.check_layers(self.layers)
        history = self._history(model, moments, history)
        call = self._check(Call(model, edits, [], moments, history, projection, targets, engine))
        requests = requests_of(model.tokenizer, edits, self.contexts(model, contexts))
        check_embedded(model.hf, model.name, max(token for r in requests for token in r.target))
        return replace(call, requests=requests)

    def apply_prepared(self, call: Call) -> Outcome:
        """`apply` for what `prepare` returned, or for a part of it."""
        warn_of_contradictions(call.edits)
        model, history, before = call.model, call.history, call.model.snapshot()
        known = history and history.copy()
        try:
            remedy = "give fewer edits in a batch, fewer contexts or a larger device"
            record = record_of(self.name, self.hyperparameters, call.edits)
            with explained(f"{self.name}: out of memory", remedy, ran_out), model.recording(record):
                outcome = self._apply(call)
        except BaseException:
            model.load_snapshot(before)
            if history:
                vars(history).update(vars(known))
            raise
        outcome.hyperparameters, outcome.model_checksum = self.hyperparameters, model.checksum
        warn_if_doubtful(call.edits, outcome.targets)
        return outcome

    def contexts(self, model, given=None) -> list[str]:
        """The contexts that are used: `given`, checked, or generated ones."""
        check_editable(model, self.name)
        if self.clean_only:
            return ["{}"]
        if given is None:
            with model.temporarily():  # the unedited model's: successive edits then share one list
                given = generate_contexts(model, seed=0, style=self.context_style)
        return check_contexts(given)

    def _history(self, model, moments, given: EditHistory | None) -> EditHistory | None:
        """The given history, checked; None: an empty one where the method needs it."""
        if given is None:
            return self.new_history(model, moments) if self.needs_history else None
        if not self.keeps_history:
            use = "; MEMIT(use_history=True) does" if "use_history" in type(self).model_fields else ""
            raise KeditError(f"{self.name}: keeps no memory of earlier edits; call it with history=None{use}")
        kind = getattr(given, "kind", type(given).__name__)
        if not isinstance(given, EditHistory) or kind != self.history_kind:
            raise KeditError(f"{self.name}: history is of kind {kind!r}; pass method.new_history(model, moments)")
        given.check(model, self.layers)
        return given

    def _check(self, call: Call) -> Call:
        """KeditError for arguments that the method cannot work with; the call, with what can be prepared."""
        for argument, why in UNUSED.items():
            if getattr(call, argument) is not None and argument not in self.takes:
                raise KeditError(f"{self.name}: {why}; call it with {argument}=None")
        if self.needs_moments and call.projection is None:
            if not hasattr(call.moments, "check"):
                make = "moments=SecondMoments.estimate(model, texts, layers=…)"
                raise KeditError(f"{self.name}: needs second moments; pass {make}")
            call.moments.check(call.model, self.layers, invert=self.shift)
        return call

    def recall(self, model, history) -> None:
        """For edits outside the weights: put those of the history back into the model, as a resumed stream needs."""

    def _apply(self, call: Call) -> Outcome:
        """One edit after the other, each by _insert(call, outcome), unless a method makes them all at once."""
        outcome = Outcome(self.name, call.edits, {}, [])
        for i in range(len(call.edits)):
            self._insert(call.part(i, i + 1), outcome)
        return outcome

    def _insert(self, call: Call, outcome: Outcome) -> None:
        raise NotImplementedError(f"{self.name}: define _apply or _insert")
