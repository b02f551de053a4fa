"""What goes into one call of a method and what comes out of it; and how an update is written into the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ..data.edit import Edit
from ..errors import KeditError
from ..models.deltas import Deltas, record_of
from ..models.model import EditableModel
from ..models.tokenization import Prompt
from .compute_z import Target
from .engine import Request
from .null_space import NullSpace
from .second_moments import SecondMoments
from .state import EditState


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        p = [t.probabilities[-1] for t in self.targets if t.probabilities]
        reached = f", mean p of the targets {sum(p) / len(p):.3g}" if p else ""
        norms = ", ".join(f"‖Δ‖ {d.norm().item():.3g} in {name}" for name, d in self.deltas.items())
        return f"Outcome({self.method}, {len(self.edits)} edits{reached}, {norms or 'nothing written'})"

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
    engine     what evaluates the loss of a target, one of `engine.ENGINES` (None: the method's own)
    """

    model: EditableModel
    edits: list[Edit]
    requests: list[Request]
    moments: SecondMoments | None = None
    history: EditState | None = None
    projection: NullSpace | None = None
    z: list[Tensor] | None = None
    engine: str | None = None
    filters: tuple[Filter, ...] = ()

    @property
    def prompts(self) -> list[Prompt]:
        """Those of all edits in all contexts, an edit's side by side."""
        return [p for r in self.requests for p in r.prompts]

    @property
    def clean(self) -> list[Prompt]:
        """The clean prompt of each edit."""
        return [r.prompts[0] for r in self.requests]

    def part(self, begin: int, end: int) -> Call:
        """The same for some of the edits."""
        z = None if self.z is None else self.z[begin:end]
        return replace(self, edits=self.edits[begin:end], requests=self.requests[begin:end], z=z)


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
