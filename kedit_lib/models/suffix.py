"""Running only what an added vector can change.

δ is added at the subject's last token of every prompt, in or behind layer z. Attention is causal, so the tokens
before it and the layers up to z stay as they are at every optimisation step: they are run once. Each step runs
the layers above z on the *tail* of each prompt, from the subject's last token on, with the keys and values of the
tokens before it kept. An MLP sees each token by itself: it is run on those that count and on no padding, and in the
first pass once for all prompts that begin alike.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from . import tokenwise
from .hooks import Done, hooks, pad, trace
from .tokenwise import Alike


@dataclass
class _Cache:
    """Stands in for a transformers cache, with {layer: [n, heads, P, head width]} of P tokens in front."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def update(self, key, value, layer_idx, *args, **kwargs):
        if layer_idx not in self.keys:
            return key, value
        return torch.cat([self.keys[layer_idx], key], 2), torch.cat([self.values[layer_idx], value], 2)


@dataclass
class _Recorder(_Cache):
    """The one that is filled. Nothing is read behind the last layer's keys and values: there the pass ends."""

    last: int = 0

    def update(self, key, value, layer_idx, *args, **kwargs):
        self.keys[layer_idx], self.values[layer_idx] = key, value
        if layer_idx == self.last:
            raise Done
        return key, value


@dataclass
class Tails:
    """Rows of prompts cut at their lookup token.

    hidden     [n, T, d_model] what enters layer `first`, at the tail tokens
    behind     [n, T, d_model] what leaves it unedited, where only the lookup token changes in it; else None
    positions  [n, T] absolute positions; mask [n, 1, T, P + T] additive attention mask
    prefix     keys and values of the P tokens before the lookup, by layer
    """

    model: object
    first: int
    hidden: Tensor
    behind: Tensor | None
    positions: Tensor
    mask: Tensor
    prefix: _Cache

    @classmethod
    @torch.no_grad()
    def of(cls, model, ids, lookup, tail, first: int, alone=False, inputs=(), outputs=()):
        """Run the prompts `ids` once and keep what steps from layer `first` on need.

        lookup[i]: index of the subject's last token; tail[i]: tokens needed from there on, itself included.
        alone: in layer `first` nothing but the lookup token will change.
        inputs, outputs: modules, no later than those layers, whose input or output at the lookup is wanted too.
        Returns the tails, {module: [n, width]} of the inputs and {module: [n, width]} of the outputs.
        """
        device, longest, before = model.device, max(tail), max(lookup)
        batch, look = pad(ids, device), torch.tensor(lookup, device=device)
        # What enters layer `first`: the output of the layer below, or (first = 0) the input of layer 0.
        below, own = model.layers[max(first - 1, 0)], model.layers[min(first, model.n_layers - 1)]
        mlps, alike = [model.mlp(i) for i in range(model.n_layers)], Alike(ids, batch.shape[1], device)
        with alike.together(mlps):
            last = own if alone else below
            seen_in, seen_out = trace(model.hf, batch, [*inputs, below], [*outputs, below, own], last=last)
        entry = (seen_out if first else seen_in)[below]
        at = (look[:, None] + torch.arange(longest, device=device)).clamp(max=batch.shape[1] - 1)

        def tails_of(x: Tensor) -> Tensor:
            return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))

        n = len(ids)
        in_prefix = (torch.arange(before, device=device)[None] < look[:, None])[:, None].expand(n, longest, before)
        in_tail = _causal(longest, device)[None].expand(n, -1, -1)
        made = cls(
            model,
            first,
            tails_of(entry),
            tails_of(seen_out[own]) if alone else None,
            at,
            _additive(torch.cat([in_prefix, in_tail], 2)[:, None], entry.dtype),
            _prefix(model, entry[:, :before], first, [row[:end] for row, end in zip(ids, lookup, strict=True)]),
        )
        here, within = torch.arange(n, device=device) * batch.shape[1] + look, {p for m in mlps for p in m.modules()}

        def at_lookups(seen: dict, modules) -> dict:
            return {m: seen[m].flatten(0, 1)[alike.back[here] if m in within - {*mlps} else here] for m in modules}

        return made, at_lookups(seen_in, inputs), at_lookups(seen_out, outputs)

    @cached_property
    def rotary(self) -> list:
        """What each layer is told of the positions."""
        return self.model.rotary(self.hidden, self.positions)

    def select(self, rows: Tensor) -> Tails:
        """The same with some of the rows."""
        keys, values = ({i: x[rows] for i, x in part.items()} for part in (self.prefix.keys, self.prefix.values))
        behind = None if self.behind is None else self.behind[rows]
        cut = self.hidden[rows], behind, self.positions[rows], self.mask[rows]
        return Tails(self.model, self.first, *cut, _Cache(keys, values))

    def run(self, hidden: Tensor, stops, add=(), only=None) -> dict[int, Tensor]:
        """Layers from `first` on, on the tails: [n, T, d_model] → {stop: the residual stream after that layer}.

        add    pairs (module, vectors [n, d_model]) added to that module's output at the lookup token
        only   {layer: indices into n·T} of the tokens that its MLP is run on; what leaves such a layer at the
               others is of no meaning (None, or no entry: all)
        """
        found, only = {}, only or {}
        with hooks(*[(module, _adding(vectors)) for module, vectors in add]):
            for i in range(self.first, max(stops) + 1):
                if i == self.first and self.behind is not None:
                    hidden = torch.cat([self._layer(i, hidden[:, :1]), self.behind[:, 1:]], 1)
                elif only.get(i) is not None:
                    with tokenwise.only(self.model.mlp(i), only[i]):
                        hidden = self._layer(i, hidden)
                else:
                    hidden = self._layer(i, hidden)
                if i in stops:
                    found[i] = hidden
        return found

    def _layer(self, i: int, hidden: Tensor) -> Tensor:
        """Layer i on the first tokens of the tails, as many as `hidden` has."""
        t, before = hidden.shape[1], self.mask.shape[-1] - self.mask.shape[-2]
        mask, rotary = self.mask[:, :, :t, : before + t], self.rotary[i]
        rotary = None if rotary is None else tuple(x[:, :t] for x in rotary)
        return _run_layer(self.model, i, hidden, mask, self.positions[:, :t], rotary, self.prefix)


def _run_layer(model, i: int, hidden: Tensor, mask: Tensor, positions: Tensor, rotary, cache) -> Tensor:
    extra = {} if rotary is None else {"position_embeddings": rotary}
    extra[model.layout.cache] = cache
    out = model.layers[i](hidden, attention_mask=mask, position_ids=positions, use_cache=True, **extra)
    return out[0] if isinstance(out, tuple) else out


def _prefix(model, entry: Tensor, first: int, ids: list[tuple[int, ...]]) -> _Cache:
    """Keys and values of the layers from `first` on; [n, P, d_model] is what enters it at the tokens `ids` in front of
    the lookup, P of them at most."""
    cache, (n, length, _) = _Recorder(last=model.n_layers - 1), entry.shape
    if length and first < model.n_layers:
        positions = torch.arange(length, device=entry.device)[None].expand(n, -1)
        mask = _additive(_causal(length, entry.device)[None, None], entry.dtype).expand(n, -1, -1, -1)
        rotary, hidden, layers = model.rotary(entry, positions), entry, range(first, model.n_layers)
        with contextlib.suppress(Done), Alike(ids, length, entry.device).together([model.mlp(i) for i in layers]):
            for i in layers:
                hidden = _run_layer(model, i, hidden, mask, positions, rotary[i], cache)
    return _Cache(cache.keys, cache.values)


def _causal(n: int, device) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


def _additive(seen: Tensor, dtype) -> Tensor:
    """0 where a token is seen, the lowest number where it is not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _adding(vectors: Tensor):
    def hook(module, args, output):
        return at_lookup(output, vectors)

    return hook


def at_lookup(hidden: Tensor, vectors: Tensor) -> Tensor:
    """`hidden` [n, T, d] with `vectors` [n, d] added at the first tail token, in hidden's dtype."""
    first = (hidden[:, :1].to(vectors.dtype) + vectors[:, None]).to(hidden.dtype)
    return torch.cat([first, hidden[:, 1:]], 1)
