"""Health beside facts: perplexity; norms, condition and drift of weights and hidden states, to compare with 0 edits."""

import torch
from torch import Tensor

from ..data.edit import Edit
from ..data.files import texts_of
from ..errors import KeditError, check_editable
from ..models.hooks import pad, trace
from ..models.tokenization import encode, positions_of, windows
from .protocol import SELDOM, Probe, row

ROWS = 16  # so that texts of like length share a batch: padding costs as much as text
MOST_TOKENS = 1 << 14  # in a pass
MOST_LOGITS = 1 << 28  # at a time: a gigabyte in float32, and as much again for their logarithms


def _streams(model, rows: list, layers) -> tuple[dict[int, Tensor], Tensor, Tensor]:
    """The stream [n, longest, d_model] after `layers`; from the second token on the ids, and which are no padding."""
    ids, modules = pad(rows, model.device), {layer: model.layers[layer] for layer in layers}
    _, seen = trace(model.hf, ids, outputs=modules.values(), last=modules[max(modules)])
    lengths = torch.tensor([len(r) for r in rows], device=ids.device)
    real = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    return {layer: seen[module] for layer, module in modules.items()}, ids[:, 1:], real


@torch.no_grad()
def perplexity(model, texts) -> float:
    """exp of the mean negative log-probability per token over all texts. Range ≥ 1; a uniform guess gives the
    vocabulary's size. texts: as `SecondMoments.estimate` takes them. One longer than the model's context is read in
    windows. Memory does not grow with the texts' length. KeditError when nothing is to be predicted."""
    check_editable(model, "perplexity")
    limit = min(positions_of(model.hf.config), MOST_TOKENS)
    rows = [row for text in texts_of(texts, "perplexity") for row in windows(model.tokenizer, text, limit)]
    rows, last, nll = sorted(rows, key=len), model.n_layers - 1, []
    size = max(1, MOST_LOGITS // model.hf.get_input_embeddings().num_embeddings)
    at_once = max(1, min(ROWS, MOST_TOKENS // max(map(len, rows))))
    for begin in range(0, len(rows), at_once):
        seen, token, real = _streams(model, rows[begin : begin + at_once], [last])
        for stream, t in zip(seen[last][:, :-1][real].split(size), token[real].split(size), strict=True):
            nll.append(-model.logits(stream).log_softmax(-1).gather(-1, t[:, None])[:, 0].double())
    if not sum(map(len, nll)):
        raise KeditError("perplexity: no text has two tokens or more; give longer texts")
    return torch.cat(nll).mean().exp().item()


def weight_health(model, layer: int) -> dict[str, float]:
    """Of the edited map W at `layer`; W₀ is the unedited one, σ its singular values. weight norm: ‖W‖_F ≥ 0, in the
    weights' unit; largest singular: σ_max = ‖W‖₂, the most it stretches a key; condition number: σ_max / σ_min, 1..∞
    (∞: a direction is lost), by which Ma et al. 2024 (PRUNE) bound damage; weight drift: ‖W − W₀‖_F / ‖W₀‖_F."""
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
    """{layer: [tokens, d_model]} on the CPU: the residual stream after each of `layers` at all tokens but the first of
    each text, the shortest text first. On a begin-of-text vectors are so long that they would dominate a mean."""
    rows = sorted((encode(model.tokenizer, t) for t in texts), key=len)
    seen, _, real = _streams(model, rows, layers)
    return {layer: stream[:, 1:][real].to(model.math_dtype).cpu() for layer, stream in seen.items()}


def hidden_health(now: Tensor, unedited: Tensor) -> dict[str, float]:
    """Of one layer's hidden states h against the unedited model's h₀ at the same tokens, both [tokens, d_model]: hidden
    norm, mean ‖h‖ ≥ 0, and hidden drift, mean ‖h − h₀‖ / ‖h₀‖ ≥ 0, 0 unedited; √2 for an unrelated h of that length."""
    drift = (now - unedited).norm(dim=-1) / unedited.norm(dim=-1)
    return {"hidden norm": now.norm(dim=-1).mean().item(), "hidden drift": drift.mean().item()}


def cosine(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ / (‖a‖‖b‖) of two updates of one weight, of the same shape. Range −1..1; NaN if one is zero. 0: unrelated,
    as random ones in a large space; 1: they add up; −1: the later one takes the earlier one back."""
    a, b = a.detach().double(), b.detach().to(a.device).double()
    norms = (a.norm() * b.norm()).item()
    return (a * b).sum().item() / norms if norms > 0 else float("nan")


class PerplexityProbe(Probe, version="perplexity"):
    """Perplexity on held-out plain text."""

    texts: tuple[str, ...]
    every: int = 1

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        value = perplexity(model, list(self.texts))
        return [{"metric": "perplexity", "cohort": "plain text", "value": value, "n": len(self.texts)}]


class HealthProbe(Probe, version="health-v1"):
    """Weights of the edited `layers`; hidden states on plain `texts` after each of them and after the last layer."""

    layers: tuple[int, ...]
    texts: tuple[str, ...]
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        seen, texts = sorted({*self.layers, model.n_layers - 1}), list(self.texts)
        before, now = self.unedited(model, lambda m: hidden_states(m, texts, seen)), hidden_states(model, texts, seen)
        found = [(layer, weight_health(model, layer)) for layer in self.layers]
        found += [(layer, hidden_health(now[layer], before[layer])) for layer in seen]
        return [row(name, f"layer {layer}", [v]) for layer, values in found for name, v in values.items()]
