"""Where the two names of a person come together inside a lab model."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from ..editing.compute_k import keys_at, outputs_at
from ..models.tokenization import encode_prompt
from . import world_of


def name_shares(model, people: int = 400) -> pd.DataFrame:
    """What the state at the subject's last token says, as shares of its variance over people.

    A row a layer and place (the edited map's key; the stream after the layer). last name: variance
    between the means of those who share it; first name: between the means of those who share it, of
    what remains; the pair: the rest, which only the two together decide. The shares add up to 1.
    """
    world = world_of(model)
    names = [p.split() for p in world.people[:people]]
    template = next(iter(world.relations.values())).templates[0]
    prompts = [encode_prompt(model.tokenizer, "{}", template, " ".join(name)) for name in names]
    keys = keys_at(model, prompts, range(model.n_layers))
    rows = []
    for layer in range(model.n_layers):
        for place, x in (("key", keys[layer]), ("stream", outputs_at(model, prompts, model.layers[layer]))):
            x = x.double() - x.double().mean(0)
            family, rest = _split(x, [last for _, last in names])
            given, pair = _split(rest, [first for first, _ in names])
            whole = x.square().sum()
            shares = {"last name": family, "first name": given, "the pair": pair}
            rows.append(
                {"layer": layer, "place": place} | {k: (v.square().sum() / whole).item() for k, v in shares.items()}
            )
    return pd.DataFrame(rows)


def _split(x: Tensor, groups: list[str]) -> tuple[Tensor, Tensor]:
    """x [n, d] → the mean of each row's group, and what is left."""
    found = sorted(set(groups))
    index = torch.tensor([found.index(g) for g in groups], device=x.device)
    sums = torch.zeros(len(found), x.shape[1], dtype=x.dtype, device=x.device).index_add(0, index, x)
    means = (sums / index.bincount()[:, None])[index]
    return means, x - means
