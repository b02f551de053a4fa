"""Norm anchoring (Liu et al. 2026, arXiv 2602.02543; SasyaTitech/NAS): every target gets the unedited model's norm.

An option of every method with targets. After the optimisation, and so after the last clamp,

    v* = v₀ + δ;   v* ← r · v*/‖v*‖, or v₀ where ‖v*‖ > 2r (ROME: 5r);   z ← z + (the change of v*)

with v₀ the output of the MLP of the last edited layer at the clean prompt, on the weights at hand: where z is the
residual stream only the MLP's part of it is rescaled. The reference norm is

    r = mean of ‖v*‖ over pilot edits, optimised on the unedited weights, the largest 5 % left out.

With anchor_skip=False no edit is dropped.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..data.edit import check_edits
from ..errors import KeditError
from .call import Call
from .compute_k import outputs_at
from .compute_z import Target, compute_z
from .engine import Site, requests_of

LEFT_OUT = 0.05  # share of the pilot edits, those of the largest norms, that does not count


def anchored(method, call: Call, targets: list[Target]) -> list[Target]:
    """The targets with v* of norm r, or with δ = 0 where v* is far longer."""
    r, found = method.norm_anchor, []
    for target, v in zip(targets, mlp_values(method, call, targets), strict=True):
        skipped = method.anchor_skip and v.norm() > method.skipped_beyond * r
        change = -target.delta if skipped else v * (r / v.norm() - 1)
        found.append(replace(target, z=target.z + change, delta=target.delta + change))
    return found


def mlp_values(method, call: Call, targets: list[Target]) -> Tensor:
    """v* = v₀ + δ of each edit, [n, d_model]."""
    v0 = outputs_at(call.model, call.clean, call.model.mlp_out(method.layers[-1]))
    return v0 + torch.stack([t.delta for t in targets])


def anchor_norm(model, method, edits, contexts=("{}",), group: int = 16) -> float:
    """The reference norm r for `norm_anchor`: what ‖v*‖ is for the pilot `edits` on the unedited weights.

    contexts as in `apply`; the authors use the clean prompt alone. group: so many are optimised as MEMIT's targets and
    stop together when their mean loss is small, as in the authors' code (1: each by itself). KeditError for a method
    without targets.
    """
    if "targets" not in method.takes:
        raise KeditError(f"anchor norm: {method.name} optimises no targets; give one of the other methods")
    model.check_layers(method.layers)
    with model.temporarily():
        edits, contexts = check_edits(edits, "anchor norm"), None if contexts is None else list(contexts)
        call = Call(model, edits, requests_of(model.tokenizer, edits, method.contexts(model, contexts)))
        targets = method._optimise(call)[0] if group == 1 else _in_groups(method, call, group)
        norms = mlp_values(method, call, targets).norm(dim=1).sort().values
    return float(norms[: len(norms) - int(LEFT_OUT * len(norms))].mean())


def _in_groups(method, call: Call, size: int) -> list[Target]:
    """As MEMIT's: whatever the method, δ goes to the stream, and its clamp is relative to that."""
    model, z_layer = call.model, method.layers[-1]
    site = Site(z_layer, method._loss_layer(model), (model.layers[z_layer],), model.mlp_out(z_layer))
    site = site if model.layout.mlp_norm is None else method._site(model)
    together = type(method.name, (_Together, type(method)), {})(**dict(method))
    parts = [call.requests[begin : begin + size] for begin in range(0, len(call.requests), size)]
    return [target for part in parts for target in compute_z(method.engine(model, part, site), together)]


class _Together:
    """All targets stop together, when their mean loss is small."""

    def total(self, loss: Tensor) -> Tensor:  # Adam's ε makes a difference where gradients are small
        return loss.mean()

    def done(self, loss: Tensor, *others) -> Tensor:
        return (loss.mean() < self.loss_stop).expand(len(loss))
