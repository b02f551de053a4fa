"""The floor of a metric: its value on a model that knows nothing any more."""

from __future__ import annotations

import contextlib

import pandas as pd
import torch


@contextlib.contextmanager
def destroyed(model, layers=None, seed: int = 0):
    """Inside: the unedited model with Gaussian noise of W's own Frobenius norm in place of W in `layers` (None: all);
    then the weights at entry, bit for bit. KeditError for a layer that does not exist."""
    generator, deltas = torch.Generator().manual_seed(seed), {}
    with model.temporarily():
        for layer in range(model.n_layers) if layers is None else model.check_layers(layers):
            weight = model.weight(layer).detach()
            noise = torch.randn(weight.shape, generator=generator).to(weight.device, model.math_dtype)
            deltas[model.weight_name(layer)] = noise * (weight.to(model.math_dtype).norm() / noise.norm()) - weight
        model.add(deltas)
        yield model


def floors(model, probes, edits, layers=None, seed: int = 0) -> pd.DataFrame:
    """Every metric of `probes` for `edits` on a destroyed model: columns metric, cohort, value, n. Draw these beside
    the curves: success of two answers levels off near a half, token accuracy above 0. Another seed shows how firm it
    is."""
    with destroyed(model, layers, seed):
        return pd.DataFrame([row for probe in probes for row in probe(model, list(edits))])
