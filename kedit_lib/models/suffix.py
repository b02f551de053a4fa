"""The forward pass restricted to what an added vector can change: later tokens, in the layers above it. δ is added at
the subject's last token of every prompt, in or after layer z. The tokens before it and the layers up to z are run once.
Each step runs the layers above z on the *tail* of each prompt, from the subject's last token on, with the keys and
values of the tokens before it kept, and MLPs on the tokens that count."""

import contextlib
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from . import tokenwise
from .hooks import Done, hooks, pad, trace
from .layer_arguments import LayerArguments, layer_calls
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

    def get_seq_length(self, *args) -> int:
        return 0  # asked by Llama 4, which scales queries at some thousands of tokens alone


@dataclass
class _Recorder(_Cache):
    """The cache while it is filled; the pass ends with the last layer's keys and values."""

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
    arguments  what layers are called with beside the stream
    prefix     keys and values of the P tokens before the lookup, by layer
    """

    model: object
    first: int
    hidden: Tensor
    behind: Tensor | None
    arguments: LayerArguments
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

        n, calls = len(ids), layer_calls(model, batch)
        in_prefix = (torch.arange(before, device=device)[None] < look[:, None])[:, None].expand(n, longest, before)
        in_tail = _causal(longest, device)[None].expand(n, -1, -1)
        made = cls(
            model,
            first,
            tails_of(entry),
            tails_of(seen_out[own]) if alone else None,
            LayerArguments.at(calls, at, before, torch.cat([in_prefix, in_tail], 2), entry.dtype),
            _prefix(model, entry[:, :before], first, calls, [r[:end] for r, end in zip(ids, lookup, strict=True)]),
        )
        here, within = torch.arange(n, device=device) * batch.shape[1] + look, {p for m in mlps for p in m.modules()}

        def at_lookups(seen: dict, modules, alone: set) -> dict:
            return {
                m: seen[m].reshape(-1, seen[m].shape[-1])[alike.back[here] if m in alone else here] for m in modules
            }

        return made, at_lookups(seen_in, inputs, within), at_lookups(seen_out, outputs, within - {*mlps})

    def select(self, rows: Tensor) -> Self:
        keys, values = ({i: x[rows] for i, x in part.items()} for part in (self.prefix.keys, self.prefix.values))
        behind = None if self.behind is None else self.behind[rows]
        return Tails(
            self.model, self.first, self.hidden[rows], behind, self.arguments.select(rows), _Cache(keys, values)
        )

    def run(self, hidden: Tensor, stops, add=(), only=None) -> dict[int, Tensor]:
        """Layers from `first` on, on the tails: [n, T, d_model] → {stop: the residual stream after that layer}.

        add    pairs (module, vectors [n, d_model]) added to that module's output at the lookup token
        only   {layer: indices into n·T} of the tokens that its MLP is run on; what leaves such a layer at the
               others is of no meaning (None, or no entry: all)
        """
        found, only = {}, only or {}
        with hooks(*[(module, lambda _, args, output, v=v: at_lookup(output, v)) for module, v in add]):
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
        return run_layer(self.model, i, hidden, self.arguments.layer(i, hidden.shape[1], self.prefix))


def run_layer(model, i: int, hidden: Tensor, said: dict) -> Tensor:
    """Layer i on the stream [n, T, d_model]; said: what it is handed beside that."""
    out = model.layers[i](hidden, **said)
    return out[0] if isinstance(out, tuple) else out


def _prefix(model, entry: Tensor, first: int, calls: list[dict], ids: list[tuple[int, ...]]) -> _Cache:
    """Keys and values of the layers from `first` on; [n, P, d_model] is what enters it at the tokens `ids` in front of
    the lookup, P of them at most; calls: what layers are called with on the whole prompts."""
    cache, (n, length, _) = _Recorder(last=model.n_layers - 1), entry.shape
    if length and first < model.n_layers:
        places, causal = torch.arange(length, device=entry.device).expand(n, -1), _causal(length, entry.device)
        arguments = LayerArguments.at(calls, places, 0, causal.expand(n, -1, -1), entry.dtype)
        hidden, layers = entry, range(first, model.n_layers)
        with contextlib.suppress(Done), Alike(ids, length, entry.device).together([model.mlp(i) for i in layers]):
            for i in layers:
                hidden = run_layer(model, i, hidden, arguments.layer(i, length, cache))
    return _Cache(cache.keys, cache.values)


def _causal(n: int, device) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


def at_lookup(hidden: Tensor, vectors: Tensor) -> Tensor:
    """`hidden` [n, T, d] with `vectors` [n, d] added at the first tail token, in hidden's dtype; [n·T, d] as well."""
    if hidden.dim() == 2:
        return at_lookup(hidden.view(len(vectors), -1, hidden.shape[-1]), vectors).flatten(0, 1)
    first = (hidden[:, :1].to(vectors.dtype) + vectors[:, None]).to(hidden.dtype)
    return torch.cat([first, hidden[:, 1:]], 1)
