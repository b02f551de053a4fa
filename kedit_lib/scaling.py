"""Does the collapse wait longer in a wider model? The same streams on a family of lab models, width by width.

Held: d_model : d_ff (1 : 8), four layers of which the lab's are edited, λ/d_ff, facts for each parameter of the layers,
how many people share a name part, for that is what most spills come from, and how long a step of the optimisation is
against the states it moves. The widest member is the lab model itself. One member has half the people of its width: a
control, for the number of facts need not matter. `make sweep STREAMS=scaling` trains what is missing in results/family
and runs the streams.
"""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .catalogue import LONG_STEPS
from .contexts import generate_contexts
from .durable import replacing
from .errors import KeditError
from .experiments import Run, collapse_point, run_stream
from .lab import world_of
from .lab.edits import lab_edits
from .lab.single import lab_moments, single_edits
from .lab.train import RECALL_BAR, RECIPES, Recipe, train
from .methods import method_for
from .model import load_model
from .probes import lab_probes
from .store import ALGORITHMS, now, versions

LAB = RECIPES["lab"]
LAMBDA = 15000 / 11008  # λ/d_ff as published
TRAINED = {256: (5000, 5e-3), 384: (2500, 4.1e-3), 512: (2500, 3.5e-3)}  # d_ff: steps, peak rate
CONTROL = 512, 3000  # d_ff and steps of the member with half the people
HALVED = "half the facts"
STREAMS = {"MEMIT": ([1], {}), "MEMIT, three layers, long steps": ([0, 1, 2], LONG_STEPS)}  # layers, what else
LONGEST, UNTOUCHED, SINGLES = 1000, 200, 50
BARS = {"edit": 0.95, "templates": 0.80, "near": 0.98}  # of single edits by the same method
POINTS = ("N_optimisation", "N_model")
SEED_WIDTH, SEED_EDITS = 11008, 450  # of the report


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


def measure(model, role: str, results: Path, orders=(0, 1, 2)) -> pd.DataFrame:
    """A row a stream and order: both collapse points, and the means of single edits by the same method. Half of the
    people are edited, at most LONGEST; checkpoints lie as close for the width as the report's own."""
    world, rows = world_of(model), []
    every = sorted({layer for layers, _ in STREAMS.values() for layer in layers})
    moments = lab_moments(model, every, cache=results / "moments")
    n = min(LONGEST, len(world.streamed) // 2)
    about = {
        "model": model.name.split("/")[-1],
        "role": role,
        "d_ff": model.d_ff,
        "people": len(world.people),
        "sharing": len(world.people) / len(world.names[0]),
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "checksum": model.checksum,
        "edits": n,
    }
    for name, (layers, changed) in STREAMS.items():
        method = method_for("lab", "memit", layers=layers, mom2_update_weight=LAMBDA * model.d_ff, **changed)
        some = lab_edits(world, min(SINGLES, n), 0)
        alone = single_edits(model, method, some, moments, generate_contexts(model, 0, style=method.context_style))
        health = {f"single {bar}": alone[bar].mean() for bar in (*BARS, "same_subject")}
        for order in orders:
            run = _stream(model, method, lab_edits(world, n, order), moments, order, results)
            points = dict(zip(POINTS, (collapse_point(run), collapse_point(run, "model")), strict=True))
            rows.append({**about, "stream": name, "order": order, **points, **health})
    return pd.DataFrame(rows).astype(dict.fromkeys(POINTS, "Float64"))


def _stream(model, method, edits, moments, order: int, results: Path) -> Run:
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


def sweep(results: Path, folder: Path, workers: int, threads: int) -> pd.DataFrame:
    """Train and measure every member, `workers` side by side, and keep the table with its manifest in `folder`."""
    # The widest first, so that the last worker does not run alone.
    asked = sorted(family().items(), key=lambda item: -item[1].d_ff)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(partial(_measured, results=results, threads=threads), asked))
    if not (there := [part for part in parts if part is not None]):
        raise KeditError("scaling: no member of the family recalls what it was taught")
    table = pd.concat(there, ignore_index=True)
    recipes = {role: dataclasses.asdict(recipe) for role, recipe in family().items()}
    manifest = {"finished": now(), "algorithms": ALGORITHMS, "versions": versions(), "recipes": recipes}
    with replacing(folder / "scaling.parquet") as part:
        table.to_parquet(part, index=False)
    with replacing(folder / "scaling.manifest.json") as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")
    return table


def _measured(asked: tuple[str, Recipe], results: Path, threads: int) -> pd.DataFrame | None:
    """None for a member below the bar of recall: what it cannot recall it cannot forget."""
    torch.set_num_threads(threads)
    role, recipe = asked
    try:
        model = member(recipe, results)
    except KeditError as error:
        print(f"{role} is left out: {error}", flush=True)
        return None
    found = measure(model, role, results)
    print(found.drop(columns=["checksum", "parameters"]).to_string(index=False), flush=True)
    return found


def committed(folder: Path) -> pd.DataFrame | None:
    """The table that `sweep` kept, or None."""
    path = folder / "scaling.parquet"
    return pd.read_parquet(path) if path.exists() else None


def healthy(table: pd.DataFrame) -> pd.Series:
    """Whether single edits of the row's model and method meet every one of BARS."""
    return pd.concat([table[f"single {bar}"] >= value for bar, value in BARS.items()], axis=1).all(axis=1)


def widths(table: pd.DataFrame, point: str) -> pd.Series:
    """{d_ff: geometric mean over orders of a collapse point} of the members that differ in width alone and reached the
    point in every order: orders of one model are no models of their own."""
    family = table[table.role.str.startswith("d_ff")]
    found = {d: rows[point].astype(float) for d, rows in family.groupby("d_ff") if rows[point].notna().all()}
    return pd.Series({d: float(np.exp(np.log(n).mean())) for d, n in found.items()}, dtype=float)


def fit(points: pd.Series, at: float = SEED_WIDTH, level: float = 0.9, draws: int = 200_000) -> dict[str, float]:
    """log N = a + b·log d_ff by least squares over models, and the prediction interval of N for one more at width `at`.

    points: {d_ff: N}. Returns b, its standard error, and low, median, high:

        N(at) = exp(x₀ᵀβ ± t·s·√(1 + x₀ᵀ(XᵀX)⁻¹x₀)),   t of n − 2 degrees of freedom

    (Draper & Smith, Applied Regression Analysis, ch. 1.4; t from `draws` seeded samples.) All NaN with fewer than
    three widths: a line through two points has no error.
    """
    if len(points) < 3:
        return dict.fromkeys(("b", "error", "low", "median", "high"), float("nan"))
    x, y = np.log(points.index.to_numpy(float)), np.log(points.to_numpy(float))
    X, x0, free = np.column_stack([np.ones_like(x), x]), np.array([1.0, np.log(at)]), len(y) - 2
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    s2 = ((y - X @ beta) ** 2).sum() / free
    t = np.quantile(np.random.default_rng(0).standard_t(free, draws), (1 + level) / 2)
    half = t * np.sqrt(s2 * (1 + x0 @ inverse @ x0))
    low, median, high = np.exp(x0 @ beta + half * np.array([-1.0, 0.0, 1.0]))
    return {"b": beta[1], "error": np.sqrt(s2 * inverse[1, 1]), "low": low, "median": median, "high": high}


def fit_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row a stream, collapse point and choice of members (all, or those whose single edits meet every bar)."""
    rows = []
    for stream, of_stream in table.groupby("stream", sort=False):
        for members, some in (("all", of_stream), ("healthy", of_stream[healthy(of_stream)])):
            for point in POINTS:
                points = widths(some, point)
                found = fit(points)
                inside = found["low"] <= SEED_EDITS <= found["high"] if len(points) > 2 else pd.NA
                rows.append((stream, point, members, len(points), *found.values(), inside))
    columns = ["stream", "point", "members", "widths", "b", "error", "low", "median", "high", f"{SEED_EDITS} inside"]
    return pd.DataFrame(rows, columns=columns)


def sentence(table: pd.DataFrame, fits: pd.DataFrame) -> str:
    """What the fits over all members say of the report's width, and how many members are healthy."""
    said = []
    for row in fits[fits.members == "all"].itertuples():
        what = f"{row.point} of {row.stream}"
        if np.isnan(row.b):
            said.append(
                f"{what} is not identifiable ({row.widths} of {len(TRAINED) + 1} widths reached it in every order)"
            )
        else:
            inside = "inside" if row.low <= SEED_EDITS <= row.high else "outside"
            said.append(
                f"{what} grows as d_ff to the {row.b:.2f} ± {row.error:.2f}; at {SEED_WIDTH} that is "
                f"{row.low:,.0f} to {row.high:,.0f} edits (90 %), and {SEED_EDITS} lies {inside}"
            )
    per_model = table.drop_duplicates(["model", "stream"])
    good = f"{healthy(per_model).sum()} of {len(per_model)}"
    worst = ", ".join(f"{bar} {per_model[f'single {bar}'].min():.2f}" for bar in BARS)
    return "; ".join(said) + f". Single edits meet every bar in {good} pairs of model and stream (lowest: {worst})."


def answer(fits: pd.DataFrame) -> str:
    """What an engineer takes from it, in two sentences."""
    known = fits[(fits.members == "all") & fits.b.notna()]
    if known.empty:
        return "**Wider?** Not identifiable from this family. Do not carry a number of edits from one width to another."
    powers = f"{known.b.min():.2g}" + (f" to {known.b.max():.2g}" if len(known) > 1 else "")
    inside = f"{known[f'{SEED_EDITS} inside'].astype(bool).sum()} of {len(known)}"
    return (
        f"**Wider?** How many edits a lab model survives grows with d_ff to the power of {powers}; the report's "
        f"{SEED_EDITS} at {SEED_WIDTH} lies inside {inside} prediction intervals, which together span "
        f"{known.low.min():,.0f} to {known.high.max():,.0f}. Do not carry an edit count to your model: measure it."
    )


def control(table: pd.DataFrame) -> str:
    """What half the facts do at one width: medians of N_model."""
    said = []
    for stream, rows in table.groupby("stream", sort=False):
        half, whole = (rows[rows.role == r].N_model.astype(float).median() for r in (HALVED, f"d_ff {CONTROL[0]}"))
        said.append(f"{half:.0f} with half the facts and {whole:.0f} with all for {stream}")
    return f"The control, d_ff {CONTROL[0]}: N_model is {'; '.join(said)}."
