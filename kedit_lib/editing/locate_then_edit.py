"""What the locate-then-edit methods share: a target value for each edit, optimised first.

Norm anchoring (Liu et al. 2026, arXiv 2602.02543; SasyaTitech/NAS) is an option of all of them. After the last clamp

    v* = v₀ + δ;   v* ← r · v*/‖v*‖, or v₀ where ‖v*‖ > 2r (ROME: 5r);   z ← z + (the change of v*)

with v₀ the output of the last edited layer's MLP at the clean prompt, on the weights at hand: of a z in the residual
stream only the MLP's part is rescaled. r is the mean of ‖v*‖ over pilot edits on the unedited weights, but for the
largest 5 %.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..data.edit import check_edits
from ..errors import KeditError, check_editable
from .compute_k import Reading, outputs_at
from .compute_z import Target, compute_z, optimise
from .engine import ENGINES, Site, Suffix, requests_of
from .method import Call, Method, off_unless_given

LEFT_OUT = 0.05  # share of the pilot edits, those of the largest norms, that does not count
PATIENCE = 5  # steps of a plateau


class Targeted(Method):
    """Methods that first optimise a target for each edit: of the stream after the last of `layers`, or of `_site`."""

    takes = frozenset({"targets", "engine"})
    engine: ClassVar[type[Suffix]] = Suffix
    loss_stop: ClassVar[float] = 0.05
    skipped_beyond: ClassVar[float] = 2  # times norm_anchor
    total: ClassVar = staticmethod(torch.sum)  # of the losses [n]: what is differentiated
    v_num_grad_steps: int = Field(25, ge=1)  # evaluations of the target's loss at most (updates: one less)
    v_lr: float = Field(0.5, gt=0, le=1e30)  # Adam's learning rate; a longer step overflows float32
    v_loss_layer: int | None = Field(None, ge=0)  # the nll is read after it (None: the last; ROME: always the last)
    v_weight_decay: float = Field(1e-3, ge=0)  # weight of ‖δ‖/‖v₀‖²
    clamp_norm_factor: float = Field(4.0, gt=0)  # ‖δ‖ ≤ this · ‖v₀‖
    kl_factor: float = Field(0.0625, ge=0)  # weight of the KL term
    norm_anchor: float | None = off_unless_given(None, gt=0)  # r, from `anchor_norm` (None: v* as optimised)
    anchor_skip: bool = True  # whether an edit whose v* is far longer than r is dropped
    # "argmax": a step after all tokens of the target first lead in every context but the clean one, most probable early
    # stopping (Gupta et al. 2025, arXiv 2502.01636); "plateau": see `stuck`; None: by the loss alone
    stop: Literal["argmax", "plateau"] | None = off_unless_given(None)

    @property
    def cutoff(self) -> float:
        """−n: stop at the n-th step at which the target leads; p above 0: at a mean probability above p; 0: neither."""
        return -2 if self.stop == "argmax" else 0

    def _site(self, model) -> Site:
        z_layer = self.layers[-1]
        return Site(z_layer, self._loss_layer(model), (model.layers[z_layer],), model.mlp_out(self.layers[0]))

    def _loss_layer(self, model) -> int:
        """Where the nll is read: below the last edited layer δ could not move it."""
        return model.n_layers - 1 if self.v_loss_layer is None else max(self.v_loss_layer, self.layers[-1])

    def weighed(self, nll: Tensor, leads: Tensor) -> Tensor:
        """c · nll, [n]; leads [n]: whether, at the step before, the target was the argmax in every context."""
        return nll

    def stuck(self, losses: Tensor, p: Tensor) -> Tensor:
        """Which of the n requests are on a plateau, [n]: with a mean probability p above 0.9 and a loss that PATIENCE
        steps lowered by less than a fifth; losses [steps so far, n]."""
        if self.stop != "plateau" or len(losses) <= PATIENCE:
            return torch.zeros_like(p, dtype=torch.bool)
        return (p > 0.9) & (losses[-1] > 0.8 * losses[-1 - PATIENCE])

    def leading(self, wrong: Tensor, lengths: Tensor) -> Tensor:
        """Which targets lead here, [n]. wrong [n, contexts]: tokens that are not the argmax, of lengths [n]."""
        return (wrong == 0).all(1)

    def done(self, loss: Tensor, kl: Tensor, p: Tensor, leads: Tensor, led: Tensor) -> Tensor:
        """Which of the n requests stop, [n]; kl is weighted, p the mean probability, leads is this step's, and led [n]
        the number of steps at which the target was `leading` in the contexts but the clean one."""
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
            problem = f"{len(z)} targets for {len(call.edits)} edits; give one z per edit"
        elif not all(good):
            problem = f"target {good.index(False)} is not a finite tensor of shape {shape}; give one z per edit"
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
        (targets, keys), r = self._optimise(call), self.norm_anchor
        for i, v in enumerate(self._mlp_values(call, targets) if r else ()):
            skipped = self.anchor_skip and v.norm() > self.skipped_beyond * r
            change = -targets[i].delta if skipped else v * (r / v.norm() - 1)
            targets[i] = replace(targets[i], z=targets[i].z + change, delta=targets[i].delta + change)
        return targets, keys

    def _values(self, clean: Reading, settled: int = 0) -> Tensor:
        """[n, d_model] what z is a value of, at the clean prompts on the weights so far."""
        return clean.outputs(self._site(clean.model).values[0], settled)

    def _mlp_values(self, call: Call, targets: list[Target]) -> Tensor:
        """v* = v₀ + δ of each edit, [n, d_model]."""
        v0 = outputs_at(call.model, call.clean, call.model.mlp_out(self.layers[-1]))
        return v0 + torch.stack([t.delta for t in targets])


def anchor_norm(model, method, edits, contexts=("{}",), group: int = 16) -> float:
    """The reference norm r for `norm_anchor`: ‖v*‖ of the pilot `edits` on the unedited weights. contexts as in
    `apply`; the authors use the clean prompt alone. group: so many are optimised as MEMIT's targets and stop together
    when their mean loss is small, as the authors do (1: each by itself). KeditError for a method without targets."""
    check_editable(model, "anchor norm")
    if "targets" not in method.takes:
        raise KeditError(f"anchor norm: {method.name} optimises no targets; give one of the other methods")
    model.check_layers(method.layers)
    with model.temporarily():
        edits, contexts = check_edits(edits, "anchor norm"), None if contexts is None else list(contexts)
        call = Call(model, edits, requests_of(model.tokenizer, edits, method.contexts(model, contexts)))
        targets = method._optimise(call)[0] if group == 1 else _in_groups(method, call, group)
        norms = method._mlp_values(call, targets).norm(dim=1).sort().values
    return float(norms[: len(norms) - int(LEFT_OUT * len(norms))].mean())


def _in_groups(method, call: Call, size: int) -> list[Target]:
    """As MEMIT's: whatever the method, δ goes to the stream, and its clamp is relative to that."""
    model = call.model
    site = Targeted._site(method, model) if model.layout.mlp_norm is None else method._site(model)
    together = type(method.name, (_Together, type(method)), {})(**dict(method))
    parts = [call.requests[begin : begin + size] for begin in range(0, len(call.requests), size)]
    return [target for part in parts for target in compute_z(method.engine(model, part, site), together)]


class _Together:
    """All targets stop together, when their mean loss is small."""

    total = staticmethod(torch.mean)  # Adam's ε makes a difference where gradients are small

    def done(self, loss: Tensor, *others) -> Tensor:
        return (loss.mean() < self.loss_stop).expand(len(loss))
