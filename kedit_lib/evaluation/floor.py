"""The floor of a metric: its value on a model that knows nothing any more."""

from __future__ import annotations

import contextlib

import pandas as pd
import torch

from ..errors import KeditError

WAYS = ("random", "scaled")


@contextlib.contextmanager
def destroyed(model, layers=None, how: str = "random", seed: int = 0, factor: float = 100.0):
    """Inside: the unedited model with W of `layers` (None: all) made useless; then the weights at entry, bit for bit.

    random  Gaussian noise of W's own Frobenius norm: nothing written in W is left
    scaled  factor · W: the stream of a run-away edit, in which these layers drown out all others. Such a model may
            still know what sort of object a relation asks for, and guess among these

    Raises KeditError for another way or a layer that does not exist.
    """
    if how not in WAYS:
        raise KeditError(f"destroyed: how = {how!r}; use {' or '.join(map(repr, WAYS))}")
    generator = torch.Generator().manual_seed(seed)
    with model.temporarily():
        deltas = {}
        for layer in range(model.n_layers) if layers is None else model.check_layers(layers):
            weight = model.weight(layer).detach()
            ruined = weight.to(model.math_dtype) * factor
            if how == "random":
                noise = torch.randn(weight.shape, generator=generator).to(weight.device, model.math_dtype)
                ruined = noise * (weight.to(model.math_dtype).norm() / noise.norm())
            deltas[model.weight_name(layer)] = ruined - weight
        model.add(deltas)
        yield model


def floors(model, probes, edits, layers=None, how: str = "random", seed: int = 0) -> pd.DataFrame:
    """Every metric of `probes` for `edits` on a destroyed model: columns metric, cohort, value, n.

    Draw these beside the curves: success of two answers levels off near a half, token accuracy above 0. One draw of
    noise is one floor: take another seed, or the other way, to see how firm it is.
    """
    with destroyed(model, layers, how, seed):
        return pd.DataFrame([row for probe in probes for row in probe(model, list(edits))])
