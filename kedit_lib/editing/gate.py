"""ROME's target behind a gate, outside the family: no weight is changed.

    ROME    W x + δ · (uᵀx)/(uᵀk)             every x gets its share of δ
    Gate    W x + δ · [cos(x, k) ≥ τ]         only what is near the key does

x is what enters the map that leaves the MLP, at every token; δ is optimised as by ROME, k is MEMIT's mean key of the
edit's contexts. τ is `threshold`, or less where the edit's own prompt is not that near to k. Of the entries that
reach x the nearest answers. An edit whose prompt an entry answers already, such as one more fact about its subject, is
optimised on top of it and adds its δ to it.

GRACE and HoReN (Fang et al. 2026, arXiv 2605.08143) have keys of a prompt's last tokens, and values in place of the
output. Here the key is that of the subject's last token, so that paraphrases find their entry, and δ is added.
"""

from functools import partial

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import KeditError
from .call import Call, Outcome
from .compute_k import context_mean, keys_at
from .engine import Site
from .locate_then_edit import Targeted

PARTS = ("keys", "reaches", "values")  # [n, d_ff] of length 1; [n] τ of each; [n, d_model]
SLACK = 1e-3  # by which half precision may move a cosine


class Gate(Targeted):
    """layers: the one with the entries. threshold: τ, the cosine from which on an entry answers, 0..1."""

    needs_moments = False
    keeps_history = needs_history = True
    layers: list[int] = Field(min_length=1, max_length=1)
    threshold: float = Field(0.8, gt=0, le=1)

    @property
    def history_kind(self) -> str:
        return f"Gate at layer {self.layers[0]}"

    def _site(self, model):
        (layer,) = self.layers
        edited = model.mlp_out(layer)
        return Site(layer, self._loss_layer(model), (edited,), edited, inside=True)

    def recall(self, model, history):
        history, (layer,) = self._history(model, None, history), self.layers
        module = model.mlp_out(layer)
        if not any(getattr(hook, "func", None) is _gated for hook in module._forward_hooks.values()):
            module.register_forward_hook(partial(_gated, model, self.history_kind))
        if history.edits:
            entries = tuple(history.get(part, layer, model.device) for part in PARTS)
            model.memory = {**model.memory, self.history_kind: entries}

    def _apply(self, call: Call) -> Outcome:
        model, (layer,), history = call.model, self.layers, call.history
        self.recall(model, history)
        targets, found = self._targets(call)
        found = keys_at(model, call.prompts, [layer])[layer] if found is None else found.flatten(0, 1)
        n_contexts = len(call.requests[0].prompts)
        new, clean = normalize(context_mean(found, n_contexts, grouped=True), dim=-1), found[::n_contexts]
        own = (normalize(clean, dim=-1) * new).sum(-1)
        empty = new[:0], own[:0], new.new_zeros(0, model.d_model)
        keys, reaches, values = model.memory.get(self.history_kind, empty)
        for target, k, x, reach in zip(targets, new, clean, (own - SLACK).clamp(max=self.threshold), strict=True):
            if not target.delta.isfinite().all():
                raise KeditError(f"layer {layer}: δ holds NaN or inf; nothing was written, check the learning rate")
            near, i = _answering(x, keys, reaches) if len(keys) else (False, 0)
            if near:
                values = values.index_add(0, i[None], target.delta[None])
            else:
                pairs = (keys, k), (reaches, reach), (values, target.delta)
                keys, reaches, values = (torch.cat([old, one[None]]) for old, one in pairs)
            target.key_per_layer[layer] = k
        for part, value in zip(PARTS, (keys, reaches, values), strict=True):
            history.put(part, layer, value)
        history.count(model, len(targets))
        self.recall(model, history)
        return Outcome(self.name, call.edits, {}, targets)


def _gated(model, kind: str, module, args, output: Tensor) -> Tensor:
    """A forward hook: the map's output [..., d_model], with the values of entries that its input is near to."""
    if kind not in model.memory:
        return output
    keys, reaches, values = model.memory[kind]
    near, i = _answering(args[0], keys, reaches)
    near = near[..., None]
    return torch.where(near, output + values[i].to(output.dtype), output) if near.any() else output


def _answering(x: Tensor, keys: Tensor, reaches: Tensor) -> tuple[Tensor, Tensor]:
    """Whether an entry answers x [..., d_ff], and which: of those that reach it the nearest."""
    cosine = normalize(x.to(keys.dtype), dim=-1) @ keys.T
    nearest, i = cosine.where(cosine >= reaches, -torch.inf).max(-1)
    return nearest.isfinite(), i
