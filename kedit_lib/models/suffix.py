"""The forward pass restricted to what an added vector can change. δ is added at the subject's last token of every
prompt, in or after layer z. The tokens before it and the layers up to z are run once. Each step runs the layers above z
on the *tail* of each prompt, from that token on, with the earlier keys and values kept, and MLPs where it counts."""

import inspect
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from .hooks import Alike, Done, hooks, only_at, pad, trace

MASK, ALIBI = "attention_mask", "alibi"
CACHES = ("past_key_values", "layer_past")  # what a layer calls the keys and values of earlier tokens


@dataclass
class Cache:
    """Stands in for a transformers cache, with {layer: [n, heads, P, head width]} of P tokens in front."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    last: int | None = None  # it is being filled, and the pass ends with this layer's keys and values

    @classmethod
    def of(cls, model, entry: Tensor, first: int, calls: list[dict], ids) -> Self:
        """Of the layers from `first` on; entry [n, P, d_model] enters it at the tokens `ids` in front of the lookup, P
        of them at most; calls: what layers are called with on the whole prompts."""
        cache, (n, length, _), layers = cls(last=model.n_layers - 1), entry.shape, range(first, model.n_layers)
        if length and layers:
            places = torch.arange(length, device=entry.device).expand(n, -1)
            arguments = arguments_at(calls, places, 0, entry.dtype)
            with suppress(Done), Alike(ids, length, entry.device).together([model.mlp(i) for i in layers]):
                for i in layers:
                    entry = run_layer(model, i, entry, arguments[i], cache)
        return cls(cache.keys, cache.values)

    def select(self, rows: Tensor) -> Self:
        return Cache(*({i: x[rows.to(x.device)] for i, x in part.items()} for part in (self.keys, self.values)))

    def update(self, key, value, layer_idx, *args, **kwargs):
        if self.last is not None:
            self.keys[layer_idx], self.values[layer_idx] = key, value
            if layer_idx == self.last:
                raise Done
        elif layer_idx in self.keys:
            return torch.cat([self.keys[layer_idx], key], 2), torch.cat([self.values[layer_idx], value], 2)
        return key, value

    def get_seq_length(self, *args) -> int:
        return 0  # asked by Llama 4, which scales queries at some thousands of tokens alone


@dataclass
class Tails:
    """Rows of prompts cut at their lookup token."""

    model: object
    first: int
    hidden: Tensor  # [n, T, d_model] what enters layer `first`, at the tail tokens
    behind: Tensor | None  # [n, T, d_model] its output, unedited; None unless only the lookup token changes there
    arguments: list[dict]  # what layers are called with beside the stream (`arguments_at`)
    alone: list[dict]  # the same for the lookup token by itself
    prefix: Cache  # keys and values of the P tokens before the lookup

    @classmethod
    @torch.no_grad()
    def of(cls, model, ids, lookup, tail, first: int, alone=False, inputs=(), outputs=()):
        """The tails of the prompts `ids`, run once; and {module: [n, width]} of what enters `inputs` at the lookup, and
        of what leaves `outputs`, all at or below layer `first`. lookup[i]: index of the subject's last token; tail[i]:
        tokens needed from there on. alone: in layer `first` nothing but the lookup token will change."""
        batch, before = pad(ids, model.device), max(lookup)
        n, width = batch.shape
        look = torch.tensor(lookup, device=model.device)
        # What enters layer `first`: the output of the layer below, or (first = 0) the input of layer 0.
        below, own = model.layers[max(first - 1, 0)], model.layers[min(first, model.n_layers - 1)]
        mlps, alike = [model.mlp(i) for i in range(model.n_layers)], Alike(ids, width, model.device)
        with alike.together(mlps):
            last = own if alone else below
            seen_in, seen_out = trace(model.hf, batch, [*inputs, below], [*outputs, below, own], last=last)
        entry, calls = (seen_out if first else seen_in)[below], layer_calls(model, batch)
        at = (look[:, None] + torch.arange(max(tail), device=look.device)).clamp(max=width - 1)
        rows, here = torch.arange(n, device=look.device)[:, None], torch.arange(n, device=look.device) * width + look
        arguments, by_itself = (arguments_at(calls, to, before, entry.dtype) for to in (at, at[:, :1]))
        behind = seen_out[own][rows, at] if alone else None
        prefix = Cache.of(model, entry[:, :before], first, calls, [r[:end] for r, end in zip(ids, lookup, strict=True)])
        within, kind = {part for mlp in mlps for part in mlp.modules()}, alike.back[here]  # they see one token per kind
        entered = {m: seen_in[m].flatten(0, -2)[kind if m in within else here] for m in inputs}
        left = {m: seen_out[m].flatten(0, -2)[kind if m in within - {*mlps} else here] for m in outputs}
        return cls(model, first, entry[rows, at], behind, arguments, by_itself, prefix), entered, left

    def select(self, rows: Tensor) -> Self:
        cut = partial(_each, change=lambda _, x: x[rows] if isinstance(x, Tensor) else x)
        arguments, alone, prefix = cut(self.arguments), cut(self.alone), self.prefix.select(rows)
        behind = None if self.behind is None else self.behind[rows]
        return replace(self, hidden=self.hidden[rows], behind=behind, arguments=arguments, alone=alone, prefix=prefix)

    def run(self, hidden: Tensor, stops, add=(), only=None) -> dict[int, Tensor]:
        """Layers from `first` on, on the tails: [n, T, d_model] → {stop: the residual stream after that layer}. add:
        pairs (module, vectors [n, d_model] added to its output at the lookup token). only: {layer: indices into n·T of
        the tokens that its MLP is run on} (no entry: all); what leaves the layer at others means nothing."""
        found, only = {}, only or {}
        with hooks(*[(module, lambda _, args, output, v=v: at_lookup(output, v)) for module, v in add]):
            for i in range(self.first, max(stops) + 1):
                if i == self.first and self.behind is not None:
                    lookup = run_layer(self.model, i, hidden[:, :1], self.alone[i], self.prefix)
                    hidden = torch.cat([lookup.to(self.behind.device), self.behind[:, 1:]], 1)
                else:
                    with only_at(self.model.mlp(i), only.get(i)):
                        hidden = run_layer(self.model, i, hidden, self.arguments[i], self.prefix)
                if i in stops:
                    found[i] = hidden.to(self.hidden.device)
        return found


def arguments_at(calls: list[dict], places: Tensor, cached: int, dtype) -> list[dict]:
    """What each layer is called with when only the tokens at `places` [n, T] run, after the first P = `cached` ones;
    calls: the same on whole prompts. Masks become [n, heads or 1, T, P + T], ALiBi's biases [n, heads, 1, P + T], all
    else that goes by token [n, T, …]. The model's own masks may let a token see less than all before it."""
    (n, t), device = places.shape, places.device
    rows, front = torch.arange(n, device=device)[:, None], torch.arange(cached, device=device).expand(n, -1)
    keys, before = torch.cat([front, places], 1), (front < places[:, :1])[:, None].expand(-1, t, -1)
    causal = torch.ones(t, t, dtype=torch.bool, device=device).tril().expand(n, -1, -1)
    seen = torch.cat([before, causal], 2)[:, None]

    def cut(name: str, value):
        if name == MASK:  # made additive: a bias where a token is seen, the lowest number where it is not
            allowed, bias = seen, torch.zeros(seen.shape, dtype=dtype, device=device)
            if value is not None:
                own = value.expand(n, *value.shape[1:])[rows[..., None], :, places[:, :, None], keys[:, None]]
                own = own.movedim(-1, 1)
                allowed, bias = (seen & own, bias) if own.dtype == torch.bool else (seen, bias + own)
            return bias.masked_fill(~allowed, torch.finfo(dtype).min)
        if not isinstance(value, Tensor) or value.dim() < 2:
            return value
        if name == ALIBI:  # [n · heads, 1, L]
            return value.reshape(n, -1, value.shape[-1])[rows, :, keys].transpose(1, 2)[:, :, None]
        return value.expand(n, *value.shape[1:])[rows, places]

    return _each(calls, cut)


def _each(layers: list[dict], change) -> list[dict]:
    """change(name, value) of every argument, inside of tuples too; what layers share is changed once."""
    made = {}

    def of(name: str, value):
        if isinstance(value, tuple):
            return tuple(of(name, part) for part in value)
        if (name, id(value)) not in made:
            made[name, id(value)] = change(name, value)
        return made[name, id(value)]

    return [{name: of(name, value) for name, value in layer.items()} for layer in layers]


@torch.no_grad()
def layer_calls(model, ids: Tensor) -> list[dict]:
    """For each layer, by name, the arguments that `model` calls it with on `ids` [n, L] beside the residual stream
    (masks, rotary angles, position biases). They are read off a pass in which layers return the stream unchanged."""
    calls, kept = [], [(layer, vars(layer).get("forward")) for layer in model.layers]  # accelerate keeps one there

    def skip(signature, *args, **kwargs):
        given = dict(signature.bind(*args, **kwargs).arguments)
        hidden, further = given.pop(next(iter(given))), given.pop("kwargs", {})
        calls.append({**given, **further})
        if len(calls) == model.n_layers:
            raise Done
        return (hidden,) if model.tuples else hidden

    try:
        for layer in model.layers:
            layer.forward = partial(skip, inspect.signature(layer.forward))
        with suppress(Done):
            model.hf(input_ids=ids, use_cache=False)
    finally:
        for layer, forward in kept:
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward
    return calls


def run_layer(model, i: int, hidden: Tensor, given: dict, cache: Cache | None = None) -> Tensor:
    """Layer i on the stream [n, T, d_model]; given: its other arguments; cache: keys and values in front of it."""
    if cache is not None:
        given = given | {name: cache for name in CACHES if name in given}
        given |= {"use_cache": True} if "use_cache" in given else {}
        if given.get(ALIBI) is not None:
            given[ALIBI] = given[ALIBI].flatten(0, 1)
    out = model.layers[i](hidden, **given)
    return out[0] if isinstance(out, tuple) else out


def at_lookup(hidden: Tensor, vectors: Tensor) -> Tensor:
    """`hidden` [n, T, d] with `vectors` [n, d] added at the first tail token, in hidden's dtype; [n·T, d] as well."""
    rows = hidden.view(len(vectors), -1, hidden.shape[-1])
    first = (rows[:, :1].to(vectors.dtype) + vectors[:, None].to(rows.device)).to(hidden.dtype)
    return torch.cat([first, rows[:, 1:]], 1).view_as(hidden)
