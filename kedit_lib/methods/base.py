"""What all methods share: typed hyperparameters, checks before anything changes, and the outcome."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..contexts import check_contexts, generate_contexts
from ..edits import Edit, check_edits
from ..errors import KeditError
from ..targets import Request, Target, request, warn_if_known


@dataclass
class Outcome:
    """What `apply` did. The deltas are already in the model.

    deltas    {parameter name: tensor of the parameter's own shape}, float32 (float64 models: float64)
    targets   a Target for each edit, in order
    s         {layer: [N]} kᵀC⁻¹k of each edit (empty without C)
    written   {layer: [N]} the fraction of its residual that each edit, alone, would write there
    """

    method: str
    edits: list[Edit]
    deltas: dict[str, Tensor]
    targets: list[Target]
    s: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)

    def layers(self, model) -> list[int]:
        """The edited layers."""
        return [i for i in range(model.n_layers) if model.weight_name(i) in self.deltas]


class Method(BaseModel, ABC):
    """Hyperparameters with the field's names; `apply` edits a model in place.

    layers                0-based layers that are edited, ascending
    v_num_grad_steps      evaluations of the target's loss at most (updates: one less)
    v_lr                  Adam's learning rate
    v_loss_layer          layer whose output the nll is read from (None: the last)
    v_weight_decay        weight of ‖δ‖/‖v₀‖²
    clamp_norm_factor     ‖δ‖ ≤ this · ‖v₀‖
    kl_factor             weight of the KL term
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    context_style: ClassVar[str] = "memit"

    layers: list[int] = Field(min_length=1)
    v_num_grad_steps: int = Field(25, ge=1)
    v_lr: float = Field(0.5, gt=0)
    v_loss_layer: int | None = Field(None, ge=0)
    v_weight_decay: float = Field(1e-3, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    kl_factor: float = Field(0.0625, ge=0)

    def __init__(self, **values):
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name, value = ".".join(map(str, first["loc"])) or "?", first.get("input")
            if first["type"] == "missing":
                problem = f"{name} is missing; give it"
            elif first["type"] == "extra_forbidden":
                known = ", ".join(type(self).model_fields)
                problem = f"{name} = {value!r}: there is no such hyperparameter; there are {known}"
            else:
                hint = "; YAML reads 5e-1 as text, write 0.5" if isinstance(value, str) else ""
                problem = f"{name} = {value!r}: {first['msg'].lower()}{hint}"
            raise KeditError(f"{type(self).__name__}: {problem}") from None
        if list(self.layers) != sorted(set(self.layers)):
            raise KeditError(f"{type(self).__name__}: layers = {self.layers}: must ascend without repeats")

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def needs_moments(self) -> bool:
        return True

    def apply(self, model, edits, moments=None, contexts=None, history=None) -> Outcome:
        """Edit `model` in place and say what was done.

        moments   SecondMoments of this model; None is legal where C is not used
        contexts  strings with one `{}` each; None: generated with seed 0 in this method's style
        history   memory of earlier edits (methods that have one); None: no memory

        All or nothing: after an error the weights are the ones at entry, bit for bit. Warns when the
        model already gives a target.
        """
        edits = check_edits(edits, self.name)
        requests = self.prepare(model, edits, moments, contexts, history)
        before = model.snapshot()
        try:
            outcome = self._apply(model, edits, requests, moments)
        except BaseException:
            model.load_snapshot(before)
            raise
        warn_if_known(edits, outcome.targets)
        return outcome

    def prepare(self, model, edits, moments=None, contexts=None, history=None) -> list[Request]:
        """The edits as token ids; what `apply` refuses is refused here, before anything runs."""
        if history is not None:
            raise KeditError(f"{self.name}: keeps no memory of earlier edits; call it with history=None")
        model.check_layers(self.layers)
        if self.v_loss_layer is not None and self.v_loss_layer >= model.n_layers:
            raise KeditError(
                f"{self.name}: v_loss_layer = {self.v_loss_layer}, {model.name} has layers 0 to {model.n_layers - 1}; "
                "leave it out for the last"
            )
        if self.needs_moments:
            if moments is None:
                raise KeditError(
                    f"{self.name}: needs second moments; pass moments=SecondMoments.estimate(model, texts, layers=…)"
                )
            moments.check(model, self.layers)
        if contexts is None:
            with model.temporarily():  # the unedited model's: successive edits then share one list
                contexts = generate_contexts(model, seed=0, style=self.context_style)
        contexts = check_contexts(contexts)
        return [request(model.tokenizer, e, contexts) for e in edits]

    @abstractmethod
    def _apply(self, model, edits: list[Edit], requests: list[Request], moments) -> Outcome:
        """The method itself; contexts come clean first in every request."""

    def _loss_layer(self, model) -> int:
        """Where the nll is read: below the last edited layer δ could not move it."""
        return model.n_layers - 1 if self.v_loss_layer is None else max(self.v_loss_layer, self.layers[-1])


def write(model, layer: int, delta: Tensor, deltas: dict[str, Tensor]) -> None:
    """Add Δ [d_model, d_ff] to layer's W in the model's own layout, and note it in `deltas`."""
    own = delta.T if model.layout.transposed else delta
    own = own.to(model.math_dtype).contiguous()
    name = model.weight_name(layer)
    model.add({name: own})
    deltas[name] = own
