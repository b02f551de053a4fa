"""Health of the weights and hidden states: norms, condition and drift. No floor: compare with the value at 0 edits."""

import math

import torch
from torch import Tensor

from ..data.edit import Edit
from ..models.hooks import by_length, pad, trace
from ..models.tokenization import encode
from .protocol import SELDOM, Probe, row

ROWS = 64


def weight_health(model, layer: int) -> dict[str, float]:
    """Of the edited map W at `layer`; W₀ is the unedited one, σ its singular values.

    weight norm       ‖W‖_F ≥ 0, in the unit of the weights
    largest singular  σ_max = ‖W‖₂, the most it can stretch a key
    condition number  σ_max / σ_min, 1..∞ (∞: W has lost a direction). Ma et al. 2024 (PRUNE) bound damage by it
    weight drift      ‖W − W₀‖_F / ‖W₀‖_F ≥ 0, 0 unedited
    """
    # In float32 at least: singular values of half-precision matrices cannot be taken.
    weight, drift = model.weight(layer).detach().to(model.math_dtype), model.drift(layer)
    sigma = torch.linalg.svdvals(weight)
    return {
        "weight norm": weight.norm().item(),
        "largest singular": sigma[0].item(),
        "condition number": (sigma[0] / sigma[-1]).item(),
        "weight drift": (drift.norm() / (weight - drift).norm()).item(),
    }


@torch.no_grad()
def hidden_states(model, texts: list[str], layers) -> dict[int, Tensor]:
    """{layer: [tokens, d_model]} the residual stream after each of `layers` at every token of `texts` but the first, on
    the CPU: on a begin-of-text models park vectors hundreds of times as long as the others, which would dominate a
    mean."""
    rows = [encode(model.tokenizer, t) for t in texts]
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    modules = {layer: model.layers[layer] for layer in found}
    for part in by_length([len(r) for r in rows], ROWS):
        ids = pad([rows[i] for i in part], model.device)
        _, seen = trace(model.hf, ids, outputs=modules.values(), last=modules[max(modules)])
        place, length = torch.arange(ids.shape[1]), torch.tensor([[len(rows[i])] for i in part])
        real = ((place > 0) & (place < length)).to(ids.device)
        for layer, module in modules.items():
            found[layer].append(seen[module][real].to(model.math_dtype).cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def hidden_health(now: Tensor, unedited: Tensor) -> dict[str, float]:
    """Of one layer's hidden states h against the unedited model's h₀ at the same tokens, both [tokens, d_model].

    hidden norm   mean ‖h‖ ≥ 0
    hidden drift  mean ‖h − h₀‖ / ‖h₀‖ ≥ 0, 0 unedited; √2 for an unrelated h of the same length
    """
    return {
        "hidden norm": now.norm(dim=-1).mean().item(),
        "hidden drift": ((now - unedited).norm(dim=-1) / unedited.norm(dim=-1)).mean().item(),
    }


def cosine(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ / (‖a‖‖b‖) of two updates of one weight, of the same shape. Range −1..1; NaN if one is zero. 0: unrelated,
    as random ones in a large space; 1: they add up; −1: the later one takes the earlier one back."""
    a, b = a.detach().double(), b.detach().to(a.device).double()
    norms = (a.norm() * b.norm()).item()
    return (a * b).sum().item() / norms if norms > 0 else math.nan


class HealthProbe(Probe, version="health-v1"):
    """Weights of the edited `layers`; hidden states on plain `texts` after each of them and after the last layer."""

    layers: tuple[int, ...]
    texts: tuple[str, ...]
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        seen, texts = sorted({*self.layers, model.n_layers - 1}), list(self.texts)
        before = self.unedited(model, lambda m: hidden_states(m, texts, seen))
        now = hidden_states(model, texts, seen)
        found = [(layer, weight_health(model, layer)) for layer in self.layers]
        found += [(layer, hidden_health(now[layer], before[layer])) for layer in seen]
        return [row(name, f"layer {layer}", [v]) for layer, values in found for name, v in values.items()]
