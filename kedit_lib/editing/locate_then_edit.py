"""What the locate-then-edit methods share: a target value for each edit, optimised first."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..errors import KeditError
from .call import Call
from .compute_k import Reading
from .compute_z import Target, optimise
from .engine import ENGINES, Engine, Site, Suffix
from .method import Method, off_unless_given
from .norm_anchor import anchored


class Targeted(Method):
    """Methods that first optimise a target value for each edit.

    v_num_grad_steps      evaluations of the target's loss at most (updates: one less)
    v_lr                  Adam's learning rate
    v_loss_layer          layer whose output the nll is read from (None: the last; ROME: always the last)
    v_weight_decay        weight of ‖δ‖/‖v₀‖²
    clamp_norm_factor     ‖δ‖ ≤ this · ‖v₀‖
    kl_factor             weight of the KL term
    norm_anchor           r, the norm that every v* gets, from `anchor_norm` (None: v* as optimised)
    anchor_skip           whether an edit whose v* is far longer than r is dropped
    stop                  "argmax": most probable early stopping (Gupta et al. 2025, arXiv 2502.01636): a target stops a
                          step after all its tokens first lead in every context but the clean one (None: by the loss)

    A method says with `_site` where δ goes and what z is a value of.
    """

    takes = frozenset({"targets", "engine"})
    engine: ClassVar[type[Engine]] = Suffix
    loss_stop: ClassVar[float] = 0.05
    skipped_beyond: ClassVar[float] = 2  # times norm_anchor
    v_num_grad_steps: int = Field(25, ge=1)
    v_lr: float = Field(0.5, gt=0, le=1e30)  # a longer step overflows float32
    v_loss_layer: int | None = Field(None, ge=0)
    v_weight_decay: float = Field(1e-3, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    kl_factor: float = Field(0.0625, ge=0)
    norm_anchor: float | None = off_unless_given(None, gt=0)
    anchor_skip: bool = True
    stop: Literal["argmax"] | None = off_unless_given(None)

    @property
    def cutoff(self) -> float:
        """−n: stop at the n-th step at which the target leads; p above 0: at a mean probability above p; 0: neither."""
        return -2 if self.stop == "argmax" else 0

    @abstractmethod
    def _site(self, model) -> Site:
        """Where δ is added; z is a value of the first of its `values`."""

    def _loss_layer(self, model) -> int:
        """Where the nll is read: below the last edited layer δ could not move it."""
        return model.n_layers - 1 if self.v_loss_layer is None else max(self.v_loss_layer, self.layers[-1])

    def weighed(self, nll: Tensor, leads: Tensor) -> Tensor:
        """c · nll, [n]; leads [n]: whether, at the step before, the target was the argmax in every context."""
        return nll

    def total(self, loss: Tensor) -> Tensor:
        """What is differentiated, of the losses [n]: each request's own gradient."""
        return loss.sum()

    def done(self, loss: Tensor, kl: Tensor, p: Tensor, leads: Tensor, led: Tensor) -> Tensor:
        """Which of the n requests stop, [n]; kl is weighted, p the mean probability, leads is this step's, and led [n]
        the number of steps at which the target was the argmax in every context but the clean one."""
        early = led >= -self.cutoff if self.cutoff < 0 else (p > self.cutoff) & (self.cutoff > 0)
        return (loss < self.loss_stop) | early

    def _check(self, call: Call) -> Call:
        model, call = call.model, super()._check(call)
        problem, z, shape = None, [] if call.targets is None else list(call.targets), (model.d_model,)
        good = [isinstance(one, Tensor) and one.shape == shape and bool(one.isfinite().all()) for one in z]
        if self.v_loss_layer is not None and self.v_loss_layer >= model.n_layers:
            there = f"{model.name} has layers 0 to {model.n_layers - 1}; leave it out for the last"
            problem = f"v_loss_layer = {self.v_loss_layer}, {there}"
        elif call.engine not in (None, *ENGINES):
            problem = f"engine = {call.engine!r}: is unknown; use one of {', '.join(ENGINES)}"
        elif call.targets is not None and len(z) != len(call.edits):
            problem = f"{len(z)} targets for {len(call.edits)} edits; give one z an edit"
        elif not all(good):
            problem = f"target {good.index(False)} is not a finite tensor of shape {shape}; give one z an edit"
        if problem:
            raise KeditError(f"{self.name}: {problem}")
        return replace(call, targets=[one.to(model.device, model.math_dtype) for one in z] or None)

    def _optimise(self, call: Call) -> tuple[list[Target], Tensor | None]:
        """The targets on the weights at hand, and the keys [n, contexts, d_ff] of the first layer."""
        engine = self.engine if call.engine is None else ENGINES[call.engine]
        return optimise(call.model, call.requests, self._site(call.model), self, engine)

    def _targets(self, call: Call) -> tuple[list[Target], Tensor | None]:
        """The targets that are written, given or optimised and anchored; and the first layer's keys if measured."""
        if call.targets is not None:
            pairs = zip(call.targets, self._values(Reading(call.model, call.clean)), strict=True)
            return [Target(z, z - v, [], [], v.norm().item(), False, False) for z, v in pairs], None
        targets, keys = self._optimise(call)
        return anchored(self, call, targets) if self.norm_anchor else targets, keys

    def _values(self, clean: Reading, settled: int = 0) -> Tensor:
        """[n, d_model] what z is a value of, at the clean prompts on the weights so far."""
        return clean.outputs(self._site(clean.model).values[0], settled)
