"""What the locate-then-edit methods share: a target value for each edit, optimised first.

Norm anchoring, an option of all of them (Liu et al. 2026, "norm-anchor scaling", arXiv 2602.02543; SasyaTitech/NAS),
gives every target one norm, a number of the unedited model. After the optimisation, and so after the last clamp,

    v* = v₀ + δ;   v* ← r · v*/‖v*‖;   z ← z + (the change of v*)

with v₀ the output of the MLP of the last edited layer at the clean prompt, on the weights at hand: where z is the
residual stream only the MLP's part of it is rescaled, and where z is an MLP output it is v* itself. Without it ‖v*‖
follows the growing weights and the weights follow ‖v*‖. The reference norm is

    r = mean of ‖v*‖ over a sample of edits, optimised on the unedited weights, the largest 5 % left out.

The authors' code also drops the δ of an edit whose ‖v*‖ exceeds 2r; that second rule is left out.
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
from .compute_k import outputs_at
from .compute_z import Request, Target, finished
from .method import Method

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
    stop                  "argmax": most probable early stopping (Gupta et al. 2025, arXiv 2502.01636): a target stops a
                          step after all its tokens first lead in every context but the clean one (None: by the loss)
    """

    options: ClassVar[tuple[str, ...]] = (*Method.options, "stop")

    v_num_grad_steps: int = Field(25, ge=1)
    v_lr: float = Field(0.5, gt=0, le=1e30)  # beyond, a step is no float32
    v_loss_layer: int | None = Field(None, ge=0)
    v_weight_decay: float = Field(1e-3, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    kl_factor: float = Field(0.0625, ge=0)
    norm_anchor: float | None = Field(None, gt=0)
    stop: Literal["argmax"] | None = None

    @property
    def cutoff(self) -> float:
        """−n: stop at the n-th step at which the target leads; p above 0: at a mean probability above p; 0: neither."""
        return -2 if self.stop == "argmax" else 0

    def led_enough(self, steps: int, probability: float) -> bool:
        """Whether a target stops that has led at so many steps, with this mean probability now."""
        return steps >= -self.cutoff if self.cutoff < 0 else 0 < self.cutoff < probability

    def _check(self, model, moments, history, projection) -> None:
        if self.v_loss_layer is not None and self.v_loss_layer >= model.n_layers:
            raise KeditError(
                f"{self.name}: v_loss_layer = {self.v_loss_layer}, {model.name} has layers 0 to {model.n_layers - 1}; "
                "leave it out for the last"
            )
        super()._check(model, moments, history, projection)

    @abstractmethod
    def _optimise(self, model, requests: list[Request]) -> tuple[list[Target], Tensor]:
        """The targets on the weights at hand, as optimised, and the keys [n, contexts, d_ff] of the first layer."""

    @abstractmethod
    def _read(self, model):
        """The module whose output z is a value of."""

    def _targets(self, model, requests: list[Request], z: list[Tensor] | None) -> tuple[list[Target], Tensor | None]:
        """The targets that are written: z if given, else optimised and, if asked for, anchored; and the keys
        [n, contexts, d_ff] of the first layer where the optimisation has measured them."""
        if z is not None:
            v0 = outputs_at(model, [r.prompts[0] for r in requests], self._read(model))
            return [finished(one, v) for one, v in zip(z, v0, strict=True)], None
        targets, keys = self._optimise(model, requests)
        if self.norm_anchor is None:
            return targets, keys
        shifts = [v * (self.norm_anchor / v.norm() - 1) for v in self._values(model, requests, targets)]
        return [replace(t, z=t.z + d, delta=t.delta + d) for t, d in zip(targets, shifts, strict=True)], keys

    def _values(self, model, requests, targets) -> Tensor:
        """v* = v₀ + δ of each edit, [n, d_model], at the MLP's output."""
        v0 = outputs_at(model, [r.prompts[0] for r in requests], model.mlp_out(self.layers[-1]))
        return v0 + torch.stack([t.delta for t in targets])

    def _loss_layer(self, model) -> int:
        """Where the nll is read: below the last edited layer δ could not move it."""
        return model.n_layers - 1 if self.v_loss_layer is None else max(self.v_loss_layer, self.layers[-1])


def anchor_norm(model, method: Targeted, edits, contexts=None) -> float:
    """The reference norm r for `norm_anchor`: what ‖v*‖ is for `edits`, a sample, on the unedited weights.

        r = kedit.anchor_norm(model, method, sample)
        method = kedit.method_for(model, "memit", norm_anchor=r)

    contexts as in `apply`; the authors take the clean prompt alone, ["{}"]. The weights are the ones at entry
    afterwards. KeditError for a method without targets.
    """
    if not isinstance(method, Targeted):
        raise KeditError(f"anchor norm: {method.name} optimises no targets; give one of the other methods")
    model.check_layers(method.layers)
    with model.temporarily():
        requests = method._requests(model, check_edits(edits, "anchor norm"), contexts)
        norms = method._values(model, requests, method._optimise(model, requests)[0]).norm(dim=1).sort().values
    return float(norms[: len(norms) - int(ANCHOR_LEFT_OUT * len(norms))].mean())
