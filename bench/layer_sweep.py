"""Which layers to edit, and the scale of the residual stream: single edits of the development people.

    python bench/layer_sweep.py lab

writes layers.csv and scales.csv beside the weights, measured with the published hyperparameters. No stream edits these
people or asks about them.
"""

from __future__ import annotations

import copy
import itertools
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from lab_model import fix_scale

from kedit_lib.editing import method_class, method_for
from kedit_lib.editing.compute_k import generate_contexts
from kedit_lib.editing.second_moments import SecondMoments
from kedit_lib.evaluation.single_edits import single_edits
from kedit_lib.lab.edits import lab_around, lab_edits
from kedit_lib.lab.world import moment_texts, world_of
from kedit_lib.models.loading import load_model
from kedit_lib.models.model import EditableModel

WIDEST = 4  # adjacent layers at most
SCALES = (8.0, 16.0, 22.0, 32.0, 45.0, 64.0)  # mean norms of the stream in the middle; v_lr is 0.5 whatever it is


def layer_sweep(model, n: int) -> pd.DataFrame:
    """Mean of `single_edits` for ROME at every layer, MEMIT and PMET at every run of adjacent layers below the last."""
    runs = [("rome", [i]) for i in range(model.n_layers)]
    spans = [list(range(a, b)) for a, b in itertools.combinations(range(model.n_layers), 2) if b - a <= WIDEST]
    runs += [(method, layers) for method in ("memit", "pmet") for layers in spans]
    moments = SecondMoments.estimate(model, moment_texts(model), range(model.n_layers), cache="results/moments")
    return _table(_means(model, method_for(model, name, layers=layers), n, moments) for name, layers in runs)


def scale_sweep(model, n: int) -> pd.DataFrame:
    """The same for the chosen layers at each of SCALES; what the model says does not depend on the scale."""
    return _table(_scaled(model, n))


def _scaled(model, n: int):
    methods = [method_for(model, name) for name in ("memit", "pmet", "rome")]
    layers = sorted({layer for method in methods for layer in method.layers})
    for norm in SCALES:
        hf = copy.deepcopy(model.hf)
        fix_scale(hf, model.tokenizer, world_of(model), norm)
        scaled = EditableModel(hf, model.tokenizer, model.name, model.folder)
        moments = SecondMoments.estimate(scaled, moment_texts(scaled), layers)
        for method in methods:
            yield {"norm": norm, **_means(scaled, method, n, moments)}


def _means(model, method, n: int, moments) -> dict:
    world = world_of(model)
    edits = lab_edits(world, n, seed=1, people=world.development)
    contexts = generate_contexts(model, seed=0, style=method_class(method.name).context_style)
    table = single_edits(model, method, edits, moments, contexts, partial(lab_around, world))
    layers = "-".join(map(str, method.layers))
    return {"method": method.name, "layers": layers, "n": n, **table.mean(numeric_only=True)}


def _table(rows) -> pd.DataFrame:
    kept = []
    for row in rows:
        kept.append(row)
        print(pd.DataFrame([row]).round(3).to_string(header=len(kept) == 1, index=False), flush=True)
    return pd.DataFrame(kept).round(4)


def main(name: str, n: int = 20, out: Path | None = None) -> None:
    """Both sweeps with `n` edits for each setting, into `out` (default: beside the weights)."""
    torch.set_num_threads(1)
    model = load_model(name)
    folder = out or model.folder
    layer_sweep(model, n).to_csv(folder / "layers.csv", index=False)
    scale_sweep(model, n).to_csv(folder / "scales.csv", index=False)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lab")
