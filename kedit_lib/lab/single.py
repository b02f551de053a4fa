"""Independent single edits, weights restored between: whether one edit is healthy on this model.

`python -m kedit_lib.lab.single --model lab` sweeps the layers on the development people.
"""

from __future__ import annotations

import argparse
import itertools
import random
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from ..contexts import generate_contexts
from ..methods import method_class, method_for
from ..metrics import generation_accuracy
from ..model import load_model
from ..moments import SecondMoments
from . import world_of
from .corpus import texts
from .edits import DEVELOPMENT, ask, lab_edits, near_facts, other_facts

MOMENT_TEXTS = 2000  # documents, about 100,000 tokens: a hundred times d_ff


def lab_moments(model, layers, cache=None, progress: bool = False) -> SecondMoments:
    """C over the lab's own text mixture (seed 1, not the training's documents)."""
    return SecondMoments.estimate(model, texts(world_of(model), MOMENT_TEXTS), layers, cache=cache, progress=progress)


def single_edits(model, method, edits, moments, contexts, seed: int = 0) -> pd.DataFrame:
    """Each edit alone on the original weights. A row an edit, shares of right answers by free generation:

    edit          the edit prompt gives the new object (0 or 1)
    templates     the other phrasings of the relation give it
    near          facts of other subjects that share a name part or the relation are still right
    same_subject  the subject's other relations are still right
    """
    world, rng, rows = world_of(model), random.Random(f"single-{seed}"), []
    for edit in edits:
        near, own = near_facts(world, edit, rng), other_facts(world, edit)
        asked = [(edit.text, edit.target_new)] + [(p, edit.target_new) for p in edit.paraphrases]
        asked += [(ask(world, f, rng), f.object) for f in near + own]
        outcome = method.apply(model, [edit], moments=moments, contexts=contexts)
        right = iter(generation_accuracy(model, [p for p, _ in asked], [a for _, a in asked]))
        model.restore()
        target = outcome.targets[0]
        rows.append(
            {
                "method": method.name,
                "layers": "-".join(map(str, method.layers)),
                "edit": float(next(right)),
                "templates": _mean(list(islice(right, len(edit.paraphrases)))),
                "near": _mean(list(islice(right, len(near)))),
                "same_subject": _mean(list(islice(right, len(own)))),
                "probability_last": target.probabilities[-1],
                "steps": target.steps,
                "clamped": target.clamped,
                "relation": edit.relation,
                "prompt": edit.prompt,
                **{f"s_{i}": s[0].item() for i, s in outcome.s.items()},
            }
        )
    return pd.DataFrame(rows)


def layer_sweep(model, n: int = 20, cache=None, threads: int = 1) -> pd.DataFrame:
    """Mean of `single_edits` for ROME at every layer and MEMIT at every run of 1 to 4 adjacent layers.

    On edits of the development people, which nothing else uses.
    """
    torch.set_num_threads(threads)
    world = world_of(model)
    edits = lab_edits(world, n, seed=1, people=world.people[:DEVELOPMENT])
    moments = lab_moments(model, list(range(model.n_layers)), cache)
    runs = [("rome", [i]) for i in range(model.n_layers)]
    runs += [
        ("memit", list(range(a, b)))
        for a, b in itertools.combinations(range(model.n_layers + 1), 2)
        if b - a <= 4 and b < model.n_layers
    ]
    rows = []
    for name, layers in runs:
        method = method_for(model, name, layers=layers)
        contexts = generate_contexts(model, seed=0, style=method_class(name).context_style)
        table = single_edits(model, method, edits, moments, contexts)
        rows.append(
            {"method": method.name, "layers": "-".join(map(str, layers)), "n": n, **table.mean(numeric_only=True)}
        )
        print(pd.DataFrame(rows[-1:]).round(3).to_string(header=len(rows) == 1, index=False), flush=True)
    return pd.DataFrame(rows)


def _mean(values) -> float:
    return sum(values) / len(values) if values else float("nan")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description="Sweep the edited layers on people whom no stream edits.")
    parser.add_argument("--model", default="lab")
    parser.add_argument("--n", type=int, default=20, help="edits for each choice of layers")
    parser.add_argument("--out", type=Path, help="CSV file (default: layers.csv beside the weights)")
    args = parser.parse_args(argv)
    model = load_model(args.model)
    table = layer_sweep(model, args.n, cache="results/moments")
    table.round(4).to_csv(args.out or model.folder / "layers.csv", index=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
