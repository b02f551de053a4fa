"""What the locate-then-edit methods share: a target value for each edit, optimised first.

Norm anchoring, an option of all of them (Liu et al. 2026, "norm-anchor scaling", arXiv 2602.02543; SasyaTitech/NAS),
gives every target one norm, a number of the unedited model. After the optimisation, and so after the last clamp,

    v* = v₀ + δ;   v* ← r · v*/‖v*‖, or v₀ where ‖v*‖ > 2r (ROME: 5r);   z ← z + (the change of v*)

with v₀ the output of the MLP of the last edited layer at the clean prompt, on the weights at hand: where z is the
residual stream only the MLP's part of it is rescaled, and where z is an MLP output it is v* itself. Without it ‖v*‖
follows the growing weights and the weights follow ‖v*‖. The reference norm is

    r = mean of ‖v*‖ over a sample of pilot edits, optimised on the unedited weights, the largest 5 % left out.

An edit whose ‖v*‖ is beyond 2r is dropped, δ = 0; without this rule (anchor_skip=False) it is scaled like the others.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..data.edit import check_edits
from ..errors import KeditError
from .call import Call
from .compute_k import outputs_at
from .compute_z import Target, compute_z, optimise
from .engine import ENGINES, Engine, Site, Suffix, requests_of
from .method import Method

LOSS_STOP = 0.05
ANCHOR_LEFT_OUT = 0.05  # share of the sample, the largest norms, that does not enter the reference


class Targeted(Method):
    """The hyperparameters of the optimisation.

    v_num_grad_steps      evaluations of the target's loss at most (updates: one less)
    v_lr                  Adam's learning rate
    v_loss_layer          layer whose output the nll is read from (None: the last; ROME: always the last)
    v_weight_decay        weight of ‖δ‖/‖v₀‖²
    clamp_norm_factor     ‖δ‖ ≤ this · ‖v₀‖
    kl_factor             weight of the KL term
    norm_anchor           r, the norm that every v* gets, from `anchor_norm` (None: v* as optimised)
    anchor_skip           whether an edit whose v* is far longer than that is dropped
    stop                  "argmax": most probable early stopping (Gupta et al. 2025, arXiv 2502.01636): a target stops a
                          step after all its tokens first lead in every context but the clean one (None: by the loss)

    A method says with `_site` where δ goes and what z is a value of.
    """

    options: ClassVar[tuple[str, ...]] = (*Method.options, "anchor_skip", "stop")
    skipped_beyond: ClassVar[float] = 2  # times norm_anchor
    takes: ClassVar[frozenset[str]] = frozenset({"targets"})
    engine: ClassVar[type[Engine]] = Suffix

    v_num_grad_steps: int = Field(25, ge=1)
    v_lr: float = Field(0.5, gt=0, le=1e30)  # beyond, a step is no float32
    v_loss_layer: int | None = Field(None, ge=0)
    v_weight_decay: float = Field(1e-3, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    kl_factor: float = Field(0.0625, ge=0)
    norm_anchor: float | None = Field(None, gt=0)
    anchor_skip: bool = True
    stop: Literal["argmax"] | None = None

    @property
    def hyperparameters(self) -> dict:
        found = super().hyperparameters
        return found if self.norm_anchor else {n: v for n, v in found.items() if n != "anchor_skip"}

    @property
    def cutoff(self) -> float:
        """−n: stop at the n-th step at which the target leads; p above 0: at a mean probability above p; 0: neither."""
        return -2 if self.stop == "argmax" else 0

    @abstractmethod
    def _site(self, model) -> Site:
        """Where δ is added; z is a value of the output of the first of its `values`."""

    def weighed(self, nll: Tensor, leads: Tensor) -> Tensor:
        """c · nll, [n]; leads [n]: whether, at the step before, the target was the argmax in every context."""
        return nll

    def total(self, loss: Tensor) -> Tensor:
        """What is differentiated, of the losses [n]: each request's own gradient."""
        return loss.sum()

    def done(self, loss: Tensor, kl: Tensor, p: Tensor, leads: Tensor, led: Tensor) -> Tensor:
        """Which of the n requests stop, [n]; kl is weighted, p the mean probability, leads of this step, and led [n] at
        how many steps so far the target was the argmax in every context but the clean one."""
        early = led >= -self.cutoff if self.cutoff < 0 else (p > self.cutoff) & (self.cutoff > 0)
        return (loss < LOSS_STOP) | early

    def _check(self, call: Call) -> Call:
        model, n = call.model, len(call.edits)
        if self.v_loss_layer is not None and self.v_loss_layer >= model.n_layers:
            raise KeditError(
                f"{self.name}: v_loss_layer = {self.v_loss_layer}, {model.name} has layers 0 to {model.n_layers - 1}; "
                "leave it out for the last"
            )
        if call.engine is not None and call.engine not in ENGINES:
            raise KeditError(f"{self.name}: engine = {call.engine!r}: is unknown; use one of {', '.join(ENGINES)}")
        call = super()._check(call)
        if call.z is None:
            return call
        if len(call.z) != n:
            raise KeditError(f"{self.name}: {len(call.z)} targets for {n} edits; give one z an edit")
        for i, z in enumerate(call.z):
            if not isinstance(z, Tensor) or z.shape != (model.d_model,) or not z.isfinite().all():
                raise KeditError(
                    f"{self.name}: target {i} is no finite tensor of shape ({model.d_model},); give one z an edit"
                )
        return replace(call, z=[z.to(model.device, model.math_dtype) for z in call.z])

    def _optimise(self, call: Call) -> tuple[list[Target], Tensor | None]:
        """The targets on the weights at hand, as optimised, and the keys [n, contexts, d_ff] of the first layer."""
        engine = self.engine if call.engine is None else ENGINES[call.engine]
        return optimise(call.model, call.requests, self._site(call.model), self, engine)

    def _targets(self, call: Call) -> tuple[list[Target], Tensor | None]:
        """The targets that are written: those given, else optimised and, if asked for, anchored; and the keys
        [n, contexts, d_ff] of the first layer where the optimisation has measured them."""
        if call.z is not None:
            v0 = outputs_at(call.model, call.clean, self._site(call.model).values[0])
            norms = v0.norm(dim=1).tolist()
            return [
                Target(z, z - v, [], [], norm, False, False) for z, v, norm in zip(call.z, v0, norms, strict=True)
            ], None
        targets, keys = self._optimise(call)
        if self.norm_anchor is None:
            return targets, keys
        return [self._anchored(t, v) for t, v in zip(targets, self._values(call, targets), strict=True)], keys

    def _anchored(self, target: Target, v: Tensor) -> Target:
        """The target with v* of norm r, or with δ = 0."""
        if self.anchor_skip and v.norm() > self.skipped_beyond * self.norm_anchor:
            return replace(target, z=target.z - target.delta, delta=target.delta * 0)
        change = v * (self.norm_anchor / v.norm() - 1)
        return replace(target, z=target.z + change, delta=target.delta + change)

    def _values(self, call: Call, targets: list[Target]) -> Tensor:
        """v* = v₀ + δ of each edit, [n, d_model], at the MLP's output."""
        v0 = outputs_at(call.model, call.clean, call.model.mlp_out(self.layers[-1]))
        return v0 + torch.stack([t.delta for t in targets])

    def _missing(self, call: Call, z: list[Tensor]) -> Tensor:
        """z − v on the weights so far, [n, d_model]."""
        return torch.stack(z) - outputs_at(call.model, call.clean, self._site(call.model).values[0])

    def _loss_layer(self, model) -> int:
        """Where the nll is read: below the last edited layer δ could not move it."""
        return model.n_layers - 1 if self.v_loss_layer is None else max(self.v_loss_layer, self.layers[-1])


def anchor_norm(model, method: Targeted, edits, contexts=("{}",), group: int = 16) -> float:
    """The reference norm r for `norm_anchor`: what ‖v*‖ is for `edits`, a sample, on the unedited weights.

        r = kedit.anchor_norm(model, method, sample)
        method = kedit.method_for(model, "memit", norm_anchor=r)

    contexts as in `apply`; the clean prompt alone, as the authors have it. group: so many are optimised together, as
    MEMIT's targets, and all stop when their mean loss is small, as theirs do (1: each by itself). The weights are the
    ones at entry afterwards. KeditError for a method without targets.
    """
    if not isinstance(method, Targeted):
        raise KeditError(f"anchor norm: {method.name} optimises no targets; give one of the other methods")
    model.check_layers(method.layers)
    with model.temporarily():
        edits, contexts = check_edits(edits, "anchor norm"), None if contexts is None else list(contexts)
        call = Call(model, edits, requests_of(model.tokenizer, edits, method.contexts(model, contexts)))
        targets = method._optimise(call)[0] if group == 1 else _in_groups(method, call, group)
        norms = method._values(call, targets).norm(dim=1).sort().values
    return float(norms[: len(norms) - int(ANCHOR_LEFT_OUT * len(norms))].mean())


def _in_groups(method: Targeted, call: Call, size: int) -> list[Target]:
    """As MEMIT's: whatever the method, δ goes to the stream, and its clamp is relative to that."""
    model, z_layer, found = call.model, method.layers[-1], []
    site = Site(z_layer, method._loss_layer(model), (model.layers[z_layer],), model.mlp_out(z_layer))
    site = site if model.layout.mlp_norm is None else method._site(model)
    for begin in range(0, len(call.requests), size):
        found += compute_z(method.engine(model, call.requests[begin : begin + size], site), _Together(method))
    return found


class _Together:
    """A method's targets, all of which stop when their mean loss is small."""

    def __init__(self, method: Targeted):
        self.method = method

    def __getattr__(self, name):
        return getattr(self.method, name)

    def total(self, loss: Tensor) -> Tensor:  # Adam's ε makes a difference where gradients are small
        return loss.mean()

    def done(self, loss: Tensor, *others) -> Tensor:
        return (loss.mean() < LOSS_STOP).expand(len(loss))
