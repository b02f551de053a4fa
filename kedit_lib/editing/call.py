"""What goes into one call of a method and what comes out of it; and how an update is written into the weights."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..data.edit import Edit
from ..errors import KeditError
from ..models.deltas import Deltas
from ..models.model import EditableModel
from ..models.tokenization import Prompt
from .compute_z import Target
from .engine import Request
from .history import EditHistory
from .second_moments import SecondMoments


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
        p = [t.probabilities[-1] for t in self.targets if t.probabilities]
        reached = f", mean p of the targets {sum(p) / len(p):.3g}" if p else ""
        norms = ", ".join(f"‖Δ‖ {d.norm().item():.3g} in {name}" for name, d in self.deltas.items())
        return f"Outcome({self.method}, {len(self.edits)} edits{reached}, {norms or 'nothing written'})"

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
    requests: list[Request]  # one an edit, its clean prompt first
    moments: SecondMoments | None = None
    history: EditHistory | None = None
    projection: object = None  # AlphaEdit's NullSpace
    targets: list[Tensor] | None = None  # finished ones, [d_model] an edit (None: they are optimised)
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


def in_turn(name: str, call: Call, insert) -> Outcome:
    """The edits of a call one after another, each by insert(call, outcome) on the weights that the one before left."""
    outcome = Outcome(name, call.edits, {}, [])
    for i in range(len(call.edits)):
        insert(call.part(i, i + 1), outcome)
    return outcome


def matrix(model, layer: int) -> Tensor:
    """W [d_model, d_ff] of `layer` as it is now, in math dtype."""
    return as_matrix(model, model.weight(layer).detach().to(model.math_dtype))


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
