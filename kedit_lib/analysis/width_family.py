"""Does the collapse wait longer in a wider model? The same streams on a family of lab models, width by width.

The table has one row per model, stream and order: role ("d_ff 512" for a member of the family that differs from the
others in width alone), d_ff, both collapse points (NA: not reached), and the means of the model's single edits, "single
edit" and so on. A model that misses a bar with these has one row and no stream.

Held: d_model : d_ff (1 : 8), four layers of which the lab's are edited, λ/d_ff, facts for each parameter of the layers,
how many people share a name part, for that is what most spills come from, and how long a step of the optimisation is
against the states it moves. The widest member is the lab model itself. One member has half the people of its width: a
control, for the number of facts need not matter. A model whose single edits by MEMIT as published miss a bar is left
out: its streams are not run. `make sweep STREAMS=scaling` trains what is missing in results/family and runs the rest.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.provenance import ALGORITHMS, now, versions
from ..editing import method_for
from ..editing.contexts import generate_contexts
from ..editing.second_moments import SecondMoments
from ..errors import KeditError
from ..evaluation.single_edits import single_edits
from ..lab import moment_texts, world_of
from ..lab.edits import lab_around, lab_edits
from ..lab.train import RECALL_BAR, RECIPES, Recipe, train
from ..models.loading import load_model
from ..streams.lab_facts import lab_probes
from ..streams.named_streams import LONG_STEPS
from ..streams.run import Run, collapse_point
from ..streams.runner import run_stream
from ..streams.store import write_parquet

BARS = {"edit": 0.95, "templates": 0.80, "near": 0.98}  # of single edits: below, a model is left out
POINTS = ("N_optimisation", "N_model")
LAB = RECIPES["lab"]
LAMBDA = 15000 / 11008  # λ/d_ff as published
TRAINED = {  # d_ff: steps, peak rate
    256: (5000, 5e-3),
    512: (2500, 3.5e-3),
    640: (3500, 3.2e-3),
    768: (6000, 2.9e-3),
}
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
    """The member of that width: as many people for each parameter of its layers as the lab model has, or half.

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
    """The members by what they are there for."""
    width, steps = CONTROL
    return {
        **{f"d_ff {d_ff}": recipe_of(d_ff, *trained) for d_ff, trained in TRAINED.items()},
        f"d_ff {LAB.d_ff}": LAB,
        HALVED: recipe_of(width, steps, TRAINED[width][1], halved=True),
    }


def member(recipe: Recipe, results: Path):
    """The model of a recipe, trained in results/family when it is not there. KeditError when it recalls too little."""
    if recipe == LAB:
        return load_model("lab")
    folder = results / "family" / recipe.name
    if not _trained(recipe, folder):
        train(recipe, folder, workers=1)
    return load_model(folder)


def _trained(recipe: Recipe, folder: Path) -> bool:
    """Whether the folder holds a model of this very recipe that met the bar of recall."""
    try:
        found = json.loads((folder / "provenance.json").read_text())
        return found["recipe"] == dataclasses.asdict(recipe) and found["recall_min"] >= RECALL_BAR
    except (OSError, ValueError, KeyError, TypeError):
        return False


def measure(model, role: str, results: Path, orders=ORDERS) -> pd.DataFrame:
    """Both collapse points, and the means of single edits by MEMIT as published: one row per stream and order. A model
    that misses a bar gets one row, without a stream. Checkpoints lie as close for the width as the report's own."""
    world, rows = world_of(model), []
    every = sorted({layer for layers, *_ in STREAMS.values() for layer in layers})
    moments = SecondMoments.estimate(model, moment_texts(model), every, cache=results / "moments")
    (layers, changed, _), *_ = STREAMS.values()
    method, near = _method(model, layers, changed), partial(lab_around, world)
    some = lab_edits(world, min(SINGLES, len(world.streamed)), 0)
    alone = single_edits(model, method, some, moments, generate_contexts(model, 0, style=method.context_style), near)
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
    streams = STREAMS if all(about[f"single {bar}"] >= value for bar, value in BARS.items()) else {}
    for name, (layers, changed, length) in streams.items():
        n = min(round(length * model.d_ff), int(EDITED * len(world.streamed)))
        method = _method(model, layers, changed)
        contexts = generate_contexts(model, 0, style=method.context_style)
        alone = single_edits(model, method, some[:OWN], moments, contexts, near)
        about |= {f"own {bar}": alone[bar].mean() for bar in BARS}
        for order in orders:
            run = _run(model, method, lab_edits(world, n, order), moments, order, results)
            points = dict(zip(POINTS, (collapse_point(run), collapse_point(run, "model")), strict=True))
            rows.append({**about, "stream": name, "edits": n, "order": order, **points})
    rows = rows or [{**about, "stream": "", "edits": 0, "order": 0, **dict.fromkeys(POINTS)}]
    return pd.DataFrame(rows).astype(dict.fromkeys(POINTS, "Float64"))


def _method(model, layers, changed):
    return method_for("lab", "memit", layers=layers, mom2_update_weight=LAMBDA * model.d_ff, **changed)


def _run(model, method, edits, moments, order: int, results: Path) -> Run:
    spacing = max(1, round(10 * model.d_ff / LAB.d_ff))
    return run_stream(
        model,
        edits,
        method,
        moments=moments,
        contexts=generate_contexts(model, seed=order, style=method.context_style),
        probes=lab_probes(model, edits, UNTOUCHED, seed=order, every=5 * spacing, families=False),
        store=results / "streams",
        checkpoint_every=5 * spacing,
        dense_every=spacing,
        progress=False,
        known=results / "known",
    )


def keep(tables: list[pd.DataFrame], folder: Path) -> None:
    """The members' tables as one, with a manifest. KeditError when no member recalls what it was taught."""
    if not (there := [table for table in tables if len(table)]):
        raise KeditError("scaling: no member of the family recalls what it was taught")
    recipes = {role: dataclasses.asdict(recipe) for role, recipe in family().items()}
    manifest = {"finished": now(), "algorithms": ALGORITHMS, "versions": versions(), "recipes": recipes}
    write_parquet(pd.concat(there, ignore_index=True), folder / "scaling.parquet")
    with replacing(folder / "scaling.manifest.json") as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")


def committed(folder: Path) -> pd.DataFrame | None:
    """The table that `sweep` kept, or None."""
    path = folder / "scaling.parquet"
    return pd.read_parquet(path) if path.exists() else None
