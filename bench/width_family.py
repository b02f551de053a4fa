"""How many edits lab models of other widths bear, into figures/data/scaling.parquet, which notebook 12 reads:
`python bench/width_family.py`. A day of one core: five models are trained, and all edited; run again, it goes on from
what is in results/."""

import json
from dataclasses import asdict
from functools import partial

import pandas as pd
from lab_model import RECALL_BAR, RECIPES, Recipe, train

import kedit_lib as kedit
from kedit_lib.data.config import results_folder
from kedit_lib.evaluation.single_edits import single_edits
from kedit_lib.lab.edits import lab_around, lab_edits
from kedit_lib.lab.world import moment_texts, world_of
from kedit_lib.streams.bench import data_folder
from kedit_lib.streams.store import write_parquet

LAB, REPORT = RECIPES["lab"], 11008  # d_ff of the report's model
TRAINED = {256: (5000, 5e-3), 512: (2500, 3.5e-3), 640: (3500, 3.2e-3), 768: (6000, 2.9e-3)}  # d_ff: steps, peak rate
CONTROL = 768  # d_ff of the member with half the people
BARS = {"edit": 0.95, "templates": 0.80, "near": 0.98}  # of single edits: below, a model is left out
POINTS = ["N_optimisation", "N_model"]
STREAMS = {  # layers, v_lr, edits for each unit of d_ff
    "MEMIT": ([1], 0.5, 1.0),
    "MEMIT, three layers, long steps": ([0, 1, 2], 2.0, 0.5),
}


def recipe_of(d_ff: int, steps: int, lr: float, halved: bool = False) -> Recipe:
    """A member: people as its layers have parameters, or half of them; states longer with √d_model, as steps of v_lr in
    every coordinate are."""
    people = round(LAB.n_people * (d_ff / LAB.d_ff) ** 2 / (2 if halved else 1))
    size = {"n_people": people, "d_model": d_ff * LAB.d_model // LAB.d_ff, "d_ff": d_ff, "n_layers": LAB.n_layers}
    scale = {"sharing": LAB.sharing, "stream_norm": LAB.stream_norm * (d_ff / LAB.d_ff) ** 0.5}
    return Recipe(f"lab-{d_ff}-{people}", steps=steps, lr=lr, **size, **scale)


def recipes() -> dict[str, Recipe]:
    """{role: recipe} of every member."""
    widths = {f"d_ff {d_ff}": recipe_of(d_ff, *trained) for d_ff, trained in TRAINED.items()}
    return widths | {f"d_ff {LAB.d_ff}": LAB, "half the facts": recipe_of(CONTROL, 3500, TRAINED[CONTROL][1], True)}


def member(recipe: Recipe):
    """Its model, trained in results/family where it is not there yet."""
    folder = results_folder() / "family" / recipe.name
    made = json.loads((folder / "provenance.json").read_text()) if (folder / "provenance.json").exists() else {}
    if recipe != LAB and (made.get("recipe") != asdict(recipe) or made["recall_min"] < RECALL_BAR):
        train(recipe, folder, "cpu")
    return kedit.load_model("lab" if recipe == LAB else folder)


def sequence(model, method, moments, n: int, order: int) -> dict:
    """One edit sequence and its two collapse points (NA: not reached); checkpoints are spaced in proportion to the
    width."""
    edits, spacing = lab_edits(world_of(model), n, order), max(1, round(10 * model.d_ff / LAB.d_ff))
    run = kedit.run_stream(
        model,
        edits,
        method,
        moments=moments,
        contexts=kedit.generate_contexts(model, order, style=method.context_style),
        probes=kedit.lab_probes(model, edits, 200, seed=order, every=5 * spacing, families=False),
        checkpoint_every=5 * spacing,
        dense_every=spacing,
        store=results_folder() / "streams",
        known=results_folder() / "known",
        progress=False,
    )
    points = {point: kedit.collapse_point(run, point.removeprefix("N_")) for point in POINTS}
    return {"edits": n, "order": order, **points}


def measure(model, role: str, orders=(0, 1, 2), n_single: int = 200) -> pd.DataFrame:
    """A row for each edit sequence and order; for a model whose single edits miss a bar one row, without a sequence."""
    world, layers = world_of(model), sorted({layer for layers, *_ in STREAMS.values() for layer in layers})
    moments = kedit.SecondMoments.estimate(model, moment_texts(model), layers, cache=results_folder() / "moments")
    measured, weight = [*BARS, "same_subject"], 15000 / REPORT * model.d_ff
    methods = {
        name: kedit.method_for("lab", "memit", layers=some, v_lr=v_lr, mom2_update_weight=weight)
        for name, (some, v_lr, _) in STREAMS.items()
    }

    def singles(method, n):
        contexts = kedit.generate_contexts(model, 0, style=method.context_style)
        edits = lab_edits(world, min(n_single, len(world.streamed)), 0)[:n]
        return single_edits(model, method, edits, moments, contexts, partial(lab_around, world))[measured].mean()

    alone = singles(methods["MEMIT"], n_single)
    about = {"model": model.name.split("/")[-1], "role": role, "d_ff": model.d_ff}
    about |= {"people": len(world.people), "sharing": len(world.people) / len(world.names[0])}
    about |= {"parameters": sum(p.numel() for p in model.hf.parameters()), "checksum": model.checksum}
    about |= alone.add_prefix("single ")
    rows = []
    for name, method in methods.items() if all(alone[bar] >= value for bar, value in BARS.items()) else ():
        own = singles(method, n_single // 4)[[*BARS]].add_prefix("own ")
        # No more edits than three quarters of the people: facts of the others must not be lost.
        n = min(round(STREAMS[name][2] * model.d_ff), int(0.75 * len(world.streamed)))
        rows += [{**about, **own, "stream": name, **sequence(model, method, moments, n, order)} for order in orders]
    rows = rows or [{**about, "stream": "", "edits": 0, "order": 0, **dict.fromkeys(POINTS)}]
    return pd.DataFrame(rows).astype(dict.fromkeys(POINTS, "Float64"))


if __name__ == "__main__":
    tables = [measure(member(recipe), role) for role, recipe in recipes().items()]
    write_parquet(pd.concat(tables, ignore_index=True), data_folder() / "scaling.parquet")
