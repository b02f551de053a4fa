"""Does the collapse wait longer in a wider model? The same streams on a family of lab models, width by width.

Held constant: d_model : d_ff (1 : 8), four layers of which the lab's are edited, λ/d_ff, facts per parameter of the
layers, how many people share a name part (most spills come from that), and the length of an optimisation step against
the states it moves. The widest member is the lab model itself. One member has half the people of its width: a control
for the number of facts. The streams of a model whose single edits by MEMIT as published miss a bar are not run.

`make sweep STREAMS=scaling` trains what is missing in results/family and runs the rest.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pandas as pd

from ..editing import method_for
from ..editing.contexts import generate_contexts
from ..editing.second_moments import SecondMoments
from ..evaluation.single_edits import single_edits
from ..lab import moment_texts, world_of
from ..lab.edits import lab_around, lab_edits
from ..lab.train import RECALL_BAR, RECIPES, Recipe, train
from ..models.loading import load_model
from ..streams.lab_facts import lab_probes
from ..streams.named_streams import LONG_STEPS
from ..streams.run import collapse_point
from ..streams.runner import run_stream

BARS = {"edit": 0.95, "templates": 0.80, "near": 0.98}  # of single edits: below, a model is left out
POINTS = ("N_optimisation", "N_model")
LAB = RECIPES["lab"]
LAMBDA = 15000 / 11008  # λ/d_ff as published
TRAINED = {256: (5000, 5e-3), 512: (2500, 3.5e-3), 640: (3500, 3.2e-3), 768: (6000, 2.9e-3)}  # d_ff: steps, peak rate
CONTROL = 768, 3500  # d_ff and steps of the member with half the people
HALVED = "half the facts"
STREAMS = {  # layers, what else, edits for each unit of d_ff
    "MEMIT": ([1], {}, 1.0),
    "MEMIT, three layers, long steps": ([0, 1, 2], LONG_STEPS, 0.5),
}
ORDERS = (0, 1, 2)
EDITED = 0.75  # of the people, at most; facts of the others are what must not be lost
UNTOUCHED, SINGLES, OWN = 200, 200, 50  # facts; single edits that a model is judged by, and of each stream's method


def recipe_of(d_ff: int, steps: int, lr: float, halved: bool = False) -> Recipe:
    """The member of that width: as many people per parameter of its layers as the lab model has, or half.

    Its states are longer with √d_model, as a step of v_lr in every coordinate is.
    """
    people = round(LAB.n_people * (d_ff / LAB.d_ff) ** 2 / (2 if halved else 1))
    return Recipe(
        f"lab-{d_ff}-{people}",
        n_people=people,
        d_model=d_ff * LAB.d_model // LAB.d_ff,
        d_ff=d_ff,
        n_layers=LAB.n_layers,
        steps=steps,
        lr=lr,
        sharing=LAB.sharing,
        stream_norm=LAB.stream_norm * (d_ff / LAB.d_ff) ** 0.5,
    )


def family() -> dict[str, Recipe]:
    """The members by their role."""
    width, steps = CONTROL
    return {
        **{f"d_ff {d_ff}": recipe_of(d_ff, *trained) for d_ff, trained in TRAINED.items()},
        f"d_ff {LAB.d_ff}": LAB,
        HALVED: recipe_of(width, steps, TRAINED[width][1], halved=True),
    }


def member(recipe: Recipe, results: Path):
    """The model of a recipe, trained in results/family if it is not there. KeditError when it recalls too little."""
    if recipe == LAB:
        return load_model("lab")
    folder = results / "family" / recipe.name
    try:
        made = json.loads((folder / "provenance.json").read_text())
        trained = made["recipe"] == dataclasses.asdict(recipe) and made["recall_min"] >= RECALL_BAR
    except (OSError, ValueError, KeyError, TypeError):
        trained = False
    if not trained:
        train(recipe, folder, "cpu")
    return load_model(folder)


def measure(model, role: str, results: Path, orders=ORDERS) -> pd.DataFrame:
    """One row per stream and order: what the model is, its role ("d_ff 512" where it differs from the others in width
    alone), the means of its single edits ("single edit", …; by MEMIT as published), and both collapse points (NA: not
    reached). A model that misses a bar has one row, without a stream. Checkpoints are spaced in proportion to the
    width."""
    world, spacing = world_of(model), max(1, round(10 * model.d_ff / LAB.d_ff))
    every = sorted({layer for layers, *_ in STREAMS.values() for layer in layers})
    moments = SecondMoments.estimate(model, moment_texts(model), every, cache=results / "moments")
    some = lab_edits(world, min(SINGLES, len(world.streamed)), 0)

    def method_of(layers, changed):
        return method_for("lab", "memit", layers=layers, mom2_update_weight=LAMBDA * model.d_ff, **changed)

    def contexts(method, seed: int = 0) -> list[str]:
        return generate_contexts(model, seed, style=method.context_style)

    def singles(method, edits) -> pd.DataFrame:
        return single_edits(model, method, edits, moments, contexts(method), partial(lab_around, world))

    (layers, changed, _), *_ = STREAMS.values()
    alone = singles(method_of(layers, changed), some)
    about = {
        "model": model.name.split("/")[-1],
        "role": role,
        "d_ff": model.d_ff,
        "people": len(world.people),
        "sharing": len(world.people) / len(world.names[0]),
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "checksum": model.checksum,
        **{f"single {bar}": alone[bar].mean() for bar in (*BARS, "same_subject")},
    }
    rows = []
    healthy = all(about[f"single {bar}"] >= value for bar, value in BARS.items())
    for name, (layers, changed, length) in STREAMS.items() if healthy else ():
        n, method = min(round(length * model.d_ff), int(EDITED * len(world.streamed))), method_of(layers, changed)
        alone = singles(method, some[:OWN])
        about |= {f"own {bar}": alone[bar].mean() for bar in BARS}
        for order in orders:
            edits = lab_edits(world, n, order)
            run = run_stream(
                model,
                edits,
                method,
                moments=moments,
                contexts=contexts(method, order),
                probes=lab_probes(model, edits, UNTOUCHED, seed=order, every=5 * spacing, families=False),
                store=results / "streams",
                checkpoint_every=5 * spacing,
                dense_every=spacing,
                progress=False,
                known=results / "known",
            )
            points = {point: collapse_point(run, point.removeprefix("N_")) for point in POINTS}
            rows.append({**about, "stream": name, "edits": n, "order": order, **points})
    rows = rows or [{**about, "stream": "", "edits": 0, "order": 0, **dict.fromkeys(POINTS)}]
    return pd.DataFrame(rows).astype(dict.fromkeys(POINTS, "Float64"))


def committed(folder: Path) -> pd.DataFrame | None:
    """The table that `make sweep STREAMS=scaling` kept, or None."""
    path = folder / "scaling.parquet"
    return pd.read_parquet(path) if path.exists() else None
