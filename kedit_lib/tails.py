"""Running only what an added vector can change.

δ is added at the subject's last token of every prompt, at layer L. Attention is causal, so the tokens
before it and the layers up to L stay as they are at every optimisation step: they are run once. Each
step runs the layers above L on the *tail* of each prompt, from the subject's last token on, with the
keys and values of the tokens before it kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from .trace import hooks, pad, trace


class _Prefix:
    """Stands in for a transformers cache: puts the kept keys and values in front of the tail's own."""

    def __init__(self, keys: dict[int, Tensor], values: dict[int, Tensor]):
        self.keys, self.values = keys, values

    def update(self, key, value, layer_idx, *args, **kwargs):
        return torch.cat([self.keys[layer_idx], key], 2), torch.cat([self.values[layer_idx], value], 2)


@dataclass
class Tails:
    """Rows of prompts cut at their lookup token.

    hidden     [n, T, d_model] what enters layer `first`, at the tail tokens
    positions  [n, T] absolute positions; mask [n, 1, T, P + T] additive attention mask
    keys, values   {layer: [n, heads, P, head width]} of the tokens before the lookup
    """

    model: object
    first: int
    hidden: Tensor
    positions: Tensor
    mask: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model, ids: list[tuple[int, ...]], lookup: list[int], tail: list[int], first: int) -> Tails:
        """Run the prompts `ids` once and keep what steps from layer `first` on need.

        lookup[i]: index of the subject's last token; tail[i]: tokens needed from there on, itself included.
        """
        device = model.device
        batch = pad(ids, device)
        look = torch.tensor(lookup, device=device)
        cache = DynamicCache()
        # What enters layer `first`: the output of the layer below, or (first = 0) the input of layer 0.
        below = model.layers[first - 1] if first else model.layers[0]
        where = {"outputs" if first else "inputs": [below]}
        seen_in, seen_out = trace(model.hf, batch, last=model.layers[-1], past_key_values=cache, **where)
        entry = (seen_out if first else seen_in)[below]
        n, longest, before = len(ids), max(tail), max(lookup)
        at = (look[:, None] + torch.arange(longest, device=device)).clamp(max=batch.shape[1] - 1)
        hidden = entry.gather(1, at[..., None].expand(-1, -1, entry.shape[-1]))
        seen_prefix = (torch.arange(before, device=device)[None] < look[:, None])[:, None].expand(n, longest, before)
        seen_tail = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()[None].expand(n, -1, -1)
        seen = torch.cat([seen_prefix, seen_tail], 2)[:, None]
        mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=device)
        mask = mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)
        above = range(first, model.n_layers)
        return cls(
            model,
            first,
            hidden,
            at,
            mask,
            {i: cache.layers[i].keys[:, :, :before].clone() for i in above},
            {i: cache.layers[i].values[:, :, :before].clone() for i in above},
        )

    def select(self, rows: Tensor) -> Tails:
        """The same with some of the rows."""
        return Tails(
            self.model,
            self.first,
            self.hidden[rows],
            self.positions[rows],
            self.mask[rows],
            {i: k[rows] for i, k in self.keys.items()},
            {i: v[rows] for i, v in self.values.items()},
        )

    def run(self, hidden: Tensor, stop: int, add=()) -> Tensor:
        """Layers `first` … `stop` on the tails: [n, T, d_model] → the residual stream after `stop`.

        add: pairs (module, vectors [n, d_model]) added to that module's output at the lookup token.
        """
        model, at = self.model, self.positions
        extra = {"attention_mask": self.mask, "position_ids": at, "use_cache": True}
        extra[model.layout.cache] = _Prefix(self.keys, self.values)
        rotary = model.rotary(hidden, at)
        with hooks(*[(module, _adding(vectors)) for module, vectors in add]):
            for i in range(self.first, stop + 1):
                turned = {} if rotary[i] is None else {"position_embeddings": rotary[i]}
                out = model.layers[i](hidden, **extra, **turned)
                hidden = out[0] if isinstance(out, tuple) else out
        return hidden


def _adding(vectors: Tensor):
    def hook(module, args, output):
        return at_lookup(output, vectors)

    return hook


def at_lookup(hidden: Tensor, vectors: Tensor) -> Tensor:
    """`hidden` [n, T, d] with `vectors` [n, d] added at the first tail token, in hidden's dtype."""
    first = (hidden[:, :1].to(vectors.dtype) + vectors[:, None]).to(hidden.dtype)
    return torch.cat([first, hidden[:, 1:]], 1)
