"""Does the collapse wait longer in a wider model? The same streams on a family of lab models, width by width.

d_model : d_ff is 1 : 8, four layers, the edited ones the lab's; facts for each parameter and λ/d_ff are held. One
member has half the people of its width: a control, for the number of facts need not matter. `make sweep
STREAMS=scaling` trains what is missing in results/family and runs the streams into figures/data/scaling.csv.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .durable import replacing
from .experiments import Run, collapse_point, run_stream
from .lab.edits import lab_edits
from .lab.single import lab_moments, single_edits
from .lab.train import RECIPES, Recipe, train
from .methods import method_for
from .model import load_model
from .probes import lab_probes
from .streams import data_folder

LAMBDA = 15000 / 11008  # λ/d_ff as published
WIDTHS = {256: 2000, 384: 2500, 512: 3000, 768: 5000, 1024: None}  # d_ff: steps of training (None: the shipped model)
CONTROL = 512
STREAMS = {  # layers, factor on λ/d_ff
    "memit": ("memit", [0], 1.0),
    "memit@both@0.1": ("memit", [0, 1], 0.1),
    "rome": ("rome", [1], None),
}
UNTOUCHED = 200
SINGLES = 30
SEED_WIDTH, SEED_EDITS = 11008, 450  # of the original report
COLUMNS = [
    "model",
    "d_ff",
    "stream",
    "order",
    "N_optimisation",
    "N_model",
    "single_edit",
    "single_templates",
    "single_near",
]
BARS = {"edit": 0.95, "templates": 0.80, "near": 0.98}


def recipe_of(d_ff: int, people: int | None = None) -> Recipe:
    """The member of that width; people: None for as many for each parameter as the shipped model has."""
    lab = RECIPES["lab"]
    held = round(lab.n_people * (d_ff / lab.d_ff) ** 2)  # parameters of the layers grow with the square of the width
    n = people or held
    return Recipe(
        f"lab-{d_ff}-{n}",
        n_people=n,
        d_model=d_ff // 8,
        d_ff=d_ff,
        n_layers=lab.n_layers,
        steps=WIDTHS[d_ff],
        lr=lab.lr,
    )


def family() -> list[Recipe | None]:
    """The members by width, the control behind them; None is the shipped model."""
    members = [recipe_of(width) if steps else None for width, steps in WIDTHS.items()]
    control = recipe_of(CONTROL)
    return [*members, recipe_of(CONTROL, control.n_people // 2)]


def member(recipe: Recipe | None, results: Path):
    """The trained model; it is trained in results/family when it is not there."""
    if recipe is None:
        return load_model("lab")
    folder = results / "family" / recipe.name
    if not (folder / "provenance.json").exists():
        train(recipe, folder, workers=1)
    return load_model(folder)


def measure(model, results: Path, orders=(0, 1, 2)) -> pd.DataFrame:
    """A row a stream and order: where it collapsed, and how healthy single edits are. Half of the people are edited."""
    from .lab import world_of

    world, rows = world_of(model), []
    moments = lab_moments(model, [0, 1], cache=results / "moments")
    n = min(450, len(world.streamed) // 2)
    for name, (kind, layers, scale) in STREAMS.items():
        weight = {} if scale is None else {"mom2_update_weight": LAMBDA * scale * model.d_ff}
        method = method_for("lab", kind, layers=layers, **weight)
        health = single_edits(model, method, lab_edits(world, min(SINGLES, n), 0), moments, method.contexts(model))
        for order in orders:
            run = _stream(model, method, lab_edits(world, n, order), moments, order, results)
            rows.append(
                {
                    "model": model.name,
                    "d_ff": model.d_ff,
                    "people": len(world.people),
                    "parameters": sum(p.numel() for p in model.hf.parameters()),
                    "stream": name,
                    "order": order,
                    "edits": n,
                    "N_optimisation": collapse_point(run),
                    "N_model": collapse_point(run, "model"),
                    **{f"single_{bar}": health[bar].mean() for bar in BARS},
                }
            )
    return pd.DataFrame(rows)


def _stream(model, method, edits, moments, order: int, results: Path) -> Run:
    from .contexts import generate_contexts

    return run_stream(
        model,
        edits,
        method,
        moments=moments,
        contexts=generate_contexts(model, seed=order, style=method.context_style),
        probes=lab_probes(model, edits, UNTOUCHED, seed=order, layers=method.layers, every=50, families=False),
        store=results / "streams",
        checkpoint_every=50,
        dense_every=max(2, len(edits) // 45),
        progress=False,
    )


def sweep(results: Path, out: Path) -> None:
    """Measure every member that is not yet in the table `out`, smallest first."""
    for recipe in family():
        name = recipe.name if recipe else "lab"
        done = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["model"])
        if name in set(done.model):
            continue
        table = measure(member(recipe, results), results)
        with replacing(out) as partial:
            pd.concat([done, table]).to_csv(partial, index=False)
        print(table.to_string(index=False), flush=True)


def healthy(table: pd.DataFrame) -> pd.Series:
    """Whether single edits of the row's model and method meet every one of BARS."""
    return pd.concat([table[f"single_{bar}"] >= value for bar, value in BARS.items()], axis=1).all(axis=1)


def fit(table: pd.DataFrame, point: str = "N_model", level: float = 0.9, draws: int = 200_000) -> dict[str, float]:
    """log N = a + b·log d_ff by least squares over members that reached the point, and what that says of the report.

    Returns b, its standard error, and low, median, high: the prediction interval of N at d_ff 11008 at this level.
    All NaN with fewer than three widths.
    """
    known = table.dropna(subset=[point])
    if known.d_ff.nunique() < 3:
        return dict.fromkeys(("b", "error", "low", "median", "high"), float("nan"))
    x, y = np.log(known.d_ff.to_numpy(float)), np.log(known[point].to_numpy(float))
    design = np.column_stack([np.ones_like(x), x])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    free = len(y) - 2
    sigma2 = ((y - design @ beta) ** 2).sum() / free
    at = np.array([1.0, np.log(SEED_WIDTH)])
    width = np.sqrt(sigma2 * (1 + at @ inverse @ at))
    t = np.quantile(np.random.default_rng(0).standard_t(free, draws), (1 + level) / 2)
    low, median, high = np.exp(at @ beta + width * np.array([-t, 0.0, t]))
    return {"b": beta[1], "error": np.sqrt(sigma2 * inverse[1, 1]), "low": low, "median": median, "high": high}


def table(profile: str = "lab") -> pd.DataFrame:
    """The committed measurements, nothing for a profile of another model."""
    path = data_folder() / "scaling.csv"
    found = pd.read_csv(path) if path.exists() and profile == "lab" else pd.DataFrame(columns=COLUMNS)
    return found.astype({"N_optimisation": float, "N_model": float})


def fits(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """`fit` of both points for every stream, without the control: {"memit N_model": …}."""
    held = table[~table.model.isin([r.name for r in family()[-1:]])]
    return {
        f"{stream} {point}": fit(rows, point)
        for stream, rows in held.groupby("stream", sort=False)
        for point in ("N_optimisation", "N_model")
    }


def sentence(table: pd.DataFrame, found: dict[str, dict[str, float]]) -> str:
    """What the fits say of the report's width, and how many of the models are healthy."""
    if table.empty:
        return (
            "No other widths have been measured for this model; `make sweep STREAMS=scaling` trains and measures them."
        )
    said = []
    for name, one in found.items():
        if np.isfinite(one["b"]):
            inside = "inside" if one["low"] <= SEED_EDITS <= one["high"] else "outside"
            said.append(
                f"{name} grows as d_ff^({one['b']:.2f} ± {one['error']:.2f}), at {SEED_WIDTH} it would be "
                f"{one['low']:.0f} to {one['high']:.0f}: {SEED_EDITS} lies {inside}"
            )
        else:
            said.append(f"{name} is not identifiable, too few widths reached it")
    fit_for_it = healthy(table).sum()
    return (
        "; ".join(said) + f". Of {len(table)} rows {fit_for_it} belong to a model whose single edits meet every bar; "
        "with those alone it is not identifiable."
        if fit_for_it < len(table)
        else "; ".join(said) + "."
    )
