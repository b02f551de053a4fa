"""Do the updates of different edits point against each other? Cosines of updates, of their keys and of their targets.

Each edit is made alone on the unedited model, so nothing here is the answer of one edit to another. Keys are compared
in the metric that decides what one update does at another's key: Δ_j k_i = r_j · k_jᵀC⁻¹k_i / (λ + k_jᵀC⁻¹k_j), so

    cos(k_i, k_j) = k_iᵀC⁻¹k_j / √(k_iᵀC⁻¹k_i · k_jᵀC⁻¹k_j)
"""

from __future__ import annotations

import warnings
from math import sqrt

import pandas as pd
import torch
from torch import Tensor

from ..editing.compute_z import Doubtful
from ..streams.bench import Bench

N_EDITS = 100
TIGHT = 0.3  # a cosine beyond which two vectors are near each other, or opposed
OPPOSED, ALIKE = f"below −{TIGHT}", f"above {TIGHT}"
RARE = 0.01  # a share of all pairs


def directions(bench: Bench, name: str, order: int = 0, n: int = N_EDITS) -> pd.DataFrame:
    """The first n edits of a stream (all, if it has fewer), each alone.

    A row a layer, kind of vector and which pairs (successive edits, all), with median and mean cosine, its 5 % and 95 %
    quantiles, the shares below −TIGHT and above TIGHT, and `chance`, the standard deviation of the cosine of two random
    vectors of that size (NaN for keys: the metric's effective size is not the width).
    """
    model, method, edits = bench.model, bench.method(name), bench.edits(order)[:n]
    given = {"moments": bench.moments if method.needs_moments else None, "contexts": bench.contexts(method, order)}
    updates, keys, targets = ({layer: [] for layer in method.layers} for _ in range(3))
    for edit in edits:
        with model.temporarily(), warnings.catch_warnings():
            warnings.simplefilter("ignore", Doubtful)
            model.restore()
            outcome = method.apply(model, [edit], **given)
        for layer in method.layers:
            updates[layer].append(outcome.deltas[model.weight_name(layer)].flatten())
            keys[layer].append(outcome.targets[0].key_per_layer[layer])
            targets[layer].append(outcome.targets[0].delta)
    rows = []
    for layer in method.layers:
        k = torch.stack(keys[layer]).double()
        found = {
            "updates": _cosines(*[torch.stack(updates[layer])] * 2),
            "keys, C⁻¹": _cosines(k, bench.moments.solve(layer, k).double()),
            "targets δ": _cosines(*[torch.stack(targets[layer])] * 2),
        }
        sizes = {"updates": model.d_ff * model.d_model, "targets δ": model.d_model}
        for kind, cosines in found.items():
            chance = 1 / sqrt(sizes[kind]) if kind in sizes else float("nan")
            for pairs, values in (("successive", cosines.diagonal(1)), ("all", _upper(cosines))):
                row = {"stream": name, "layer": layer, "of": kind, "pairs": pairs}
                rows.append({**row, **_said(values), "chance": chance})
    return pd.DataFrame(rows)


def sentence(table: pd.DataFrame) -> str:
    """Whether updates conflict: the shares of opposed pairs, and of keys that are near each other."""
    every = table[table.pairs == "all"]
    said = []
    for (stream, layer), rows in every.groupby(["stream", "layer"], sort=False):
        by = rows.set_index("of")
        update, key, target = by.loc["updates"], by.loc["keys, C⁻¹"], by.loc["targets δ"]
        said.append(
            f"- **{stream}**, layer {layer}: {update[OPPOSED]:.1%} of all pairs of updates are opposed (cosine below "
            f"−{TIGHT}; median {update['median']:.3f}, nine in ten between {update['5 %']:.2f} and "
            f"{update['95 %']:.2f}), {target[OPPOSED]:.0%} of the pairs of targets, {key[ALIKE]:.1%} of the pairs of "
            "keys are near each other."
        )
    worst = every[every.of == "updates"][OPPOSED].max()
    verdict = (
        "Updates of single edits do not point against each other."
        if worst < RARE
        else f"Up to {worst:.1%} of the pairs of updates are opposed."
    )
    return "\n".join([f"**{verdict}**", "", *said])


def _cosines(x: Tensor, metric_x: Tensor) -> Tensor:
    """[n, n] cosines of the rows of x in a metric: metric_x [n, d] are the rows times its matrix."""
    inner = x @ metric_x.T
    size = inner.diagonal().sqrt()
    return (inner / size[:, None] / size).double()


def _upper(square: Tensor) -> Tensor:
    n = len(square)
    return square[tuple(torch.triu_indices(n, n, 1))]


def _said(values: Tensor) -> dict[str, float]:
    low, median, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    return {
        "median": median,
        "mean": values.mean().item(),
        "5 %": low,
        "95 %": high,
        OPPOSED: (values < -TIGHT).double().mean().item(),
        ALIKE: (values > TIGHT).double().mean().item(),
    }
