"""The arguments that a model calls its layers with beside the residual stream (masks, rotary angles, position biases),
read off the model's own forward pass with every layer skipped."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .hooks import Done

MASK, ALIBI = "attention_mask", "alibi"
CACHES = ("past_key_values", "layer_past")  # what a layer calls the keys and values of earlier tokens


@torch.no_grad()
def layer_calls(model, ids: Tensor) -> list[dict]:
    """For each layer, by name, the arguments that `model` calls it with on `ids` [n, L]."""
    found = []
    with contextlib.suppress(Done), contextlib.ExitStack() as inside:
        for layer in model.layers:
            inside.enter_context(_skipped(layer, found, model))
        model.hf(input_ids=ids, use_cache=False)
    return found


@contextlib.contextmanager
def _skipped(layer, calls: list[dict], model) -> Iterator[None]:
    """Inside, `layer` returns the stream unchanged and its arguments join `calls`; the pass ends at the last layer."""
    own, known = inspect.signature(layer.forward), vars(layer).get("forward")  # accelerate keeps one in the instance

    def skip(*args, **kwargs):
        given = dict(own.bind(*args, **kwargs).arguments)
        hidden = given.pop(next(iter(given)))
        calls.append({**given, **given.pop("kwargs", {})})
        calls[-1].pop("kwargs", None)
        if len(calls) == model.n_layers:
            raise Done
        return (hidden,) if model.tuples else hidden

    layer.forward = skip
    try:
        yield
    finally:
        del layer.forward
        if known is not None:
            layer.forward = known


@dataclass
class LayerArguments:
    """What layers are called with when only some tokens [n, T] of prompts run, after P cached ones.

    layers   for each layer {name: value}: masks are [n, heads or 1, T, P + T], ALiBi's biases [n, heads, 1, P + T],
             all else that goes by token [n, T, …]
    """

    layers: list[dict]
    cached: int

    @classmethod
    def at(cls, calls: list[dict], places: Tensor, cached: int, seen: Tensor, dtype) -> Self:
        """From `layer_calls` on whole prompts, for the tokens at `places` [n, T] after the first `cached` ones.

        seen [n, T, P + T]: which a token can see at most; the model's own masks take away more.
        """
        rows, (n, _) = torch.arange(len(places), device=places.device)[:, None], places.shape
        keys = torch.cat([torch.arange(cached, device=places.device).expand(n, -1), places], 1)

        def mask(own: Tensor | None) -> Tensor:
            """Additive: a bias where a token is seen, the lowest number where it is not."""
            queries, allowed = places[:, :, None], (seen & (keys[:, None] <= places[:, :, None]))[:, None]
            bias = torch.zeros(allowed.shape, dtype=dtype, device=places.device)
            if own is not None:
                here = own.expand(n, *own.shape[1:])[rows[..., None], :, queries, keys[:, None]].movedim(-1, 1)
                allowed, bias = (allowed & here, bias) if here.dtype == torch.bool else (allowed, bias + here)
            return bias.masked_fill(~allowed, torch.finfo(dtype).min)

        def cut(name: str, value):
            if name == MASK:
                return mask(value)
            if not isinstance(value, Tensor) or value.dim() < 2:
                return value
            if name == ALIBI:  # [n · heads, 1, L]
                by_row = value.reshape(n, -1, value.shape[-1])
                return by_row[rows, :, keys].transpose(1, 2)[:, :, None]
            return value.expand(n, *value.shape[1:])[rows, places]

        return cls(_each(calls, cut), cached)

    def select(self, rows: Tensor) -> Self:
        return LayerArguments(_each(self.layers, lambda name, x: x[rows] if isinstance(x, Tensor) else x), self.cached)

    def layer(self, i: int, t: int, cache) -> dict:
        """Arguments of layer i for the first t of the tokens, `cache` the keys and values of the cached ones."""

        def first(name: str, value):
            if name in CACHES:
                return cache
            if name == "use_cache":
                return True
            if not isinstance(value, Tensor) or value.dim() < 2:
                return value
            if name == MASK:
                return value[:, :, :t, : self.cached + t]
            return value[..., : self.cached + t].flatten(0, 1) if name == ALIBI else value[:, :t]

        return _each([self.layers[i]], first)[0]


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
