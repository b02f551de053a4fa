"""Why a stream collapses, as tables and sentences: causes taken out, settings moved, collapses foretold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.atomic import replacing
from ..streams.bench import Bench, data_folder
from ..streams.named_streams import COLLAPSING, CONTEXTS, DEPTHS, FACTORS, SENSITIVITY
from ..streams.runner import Run, collapse_point
from .decomposition import Anatomy, foresight, measured_on, shares
from .forecast import foretell
from .tables import collapse_table, spread

INTERVENTIONS = {  # what is done: the stream
    "nothing (the stream itself)": COLLAPSING,
    "each edit made on the unedited model, updates added": "why-superposed",
    "a memory of earlier keys (history)": "why-history",
    "z from the unedited model": "why-frozen-z",
    "both: history, z from the unedited model": "why-frozen-history",
    "norm of the target anchored": "why-anchored",
    "clamp 0.75 for 4": "why-clamp",
    "clean prompt only, for keys and target": "why-clean-keys",
    "one layer, MEMIT's own": "memit-steps",
    "λ ten times larger": "vary-scale=10",
    "steps as long as published": "memit-layers",
}
PMET = {
    "PMET itself": "pmet",
    "PMET, share R/(m−i) for R/√(m−i)": "why-pmet-linear",
    "PMET, start token left in the target": "why-pmet-start",
    "PMET, padded left and looked up as if right": "why-pmet-left",
    "PMET, both bugs": "why-pmet-bugs",
}
FORETOLD = (
    "memit-long",
    "pmet-long",
    "rome-long",
    "memit-steps",
    "pmet-steps",
    "rome-steps",
    "memit-layers",
    COLLAPSING,
    "memit@0.1",
    "memit@10",
    "pmet@0.1",
    "memit-clamp",
)
SHARES = ("spills", "agreement", "response", "growth", "turning")
NEVER_HIGH = 0.1  # an optimised probability that starts below has nothing to lose
BY_CONSTRUCTION = (  # p is measured on the unedited model, where nothing can lower it
    "each edit made on the unedited model, updates added",
    "z from the unedited model",
    "both: history, z from the unedited model",
)
LATER, HARDLY, EARLIER, MOVED = "later", "hardly moved", "earlier", 1.5  # the factor that makes the difference
PREDICTED = {  # of INTERVENTIONS, before they were run: the halving of the optimised probability, the loss of half of
    "each edit made on the unedited model, updates added": (None, HARDLY),  # the untouched facts
    "a memory of earlier keys (history)": (LATER, HARDLY),
    "z from the unedited model": (None, HARDLY),
    "norm of the target anchored": (LATER, HARDLY),
    "clamp 0.75 for 4": (EARLIER, LATER),
    "clean prompt only, for keys and target": (HARDLY, HARDLY),
    "one layer, MEMIT's own": (LATER, HARDLY),
    "λ ten times larger": (LATER, LATER),
    "steps as long as published": (LATER, LATER),
}
# fields of the sensitivity beside hyperparameters
LAMBDA, DEPTH, WORDINGS = "λ/d_ff, times the published", "layers", "contexts"
VALUES = 3  # of a hyperparameter, at least, before anything is said of it
SAMPLE, STRANGERS = 30, 100  # edits made apart, and facts asked, to foretell a stream


def interventions(bench: Bench, which: dict[str, str] = INTERVENTIONS) -> pd.DataFrame:
    """`collapse_table` of the streams with one thing changed; those that were not run are left out."""
    found = {title: bench.runs(name) for title, name in which.items()}
    return collapse_table({title: runs for title, runs in found.items() if runs})


def sensitivity(bench: Bench) -> pd.DataFrame:
    """A row a hyperparameter, value (the base stream's among them) and order that was run: field, value, base, order,
    and what came out: N_optimisation, N_model, p_end (median optimised probability of the last 25 edits), edits kept,
    untouched (right answers at the end), edits (the stream's length)."""
    method = bench.method(COLLAPSING)
    names = {(field, v): f"vary-{field}={v:g}" for field, values in SENSITIVITY.items() for v in values}
    names |= {("clamp_norm_factor", 0.75): "why-clamp", ("v_lr", 0.5): "memit-layers"}
    names |= {(LAMBDA, v): f"vary-scale={v:g}" for v in FACTORS} | {(DEPTH, n): f"vary-layers={n}" for n in DEPTHS}
    names |= {(WORDINGS, n): f"vary-contexts={n}" for n in CONTEXTS} | {(WORDINGS, 1): "why-clean-keys"}
    names |= {(field, float(getattr(method, field))): COLLAPSING for field in SENSITIVITY}
    names |= {(LAMBDA, 1.0): COLLAPSING, (DEPTH, len(method.layers)): COLLAPSING}
    names |= {(WORDINGS, len(bench.contexts(method))): COLLAPSING}
    rows = []
    for (field, value), name in names.items():
        about = {"field": field, "value": float(value), "base": name == COLLAPSING}
        rows += [{**about, "order": order, **_outcome(run)} for order, run in bench.runs(name).items()]
    columns = ["field", "value", "base", "order", "N_optimisation", "N_model"]
    columns += ["p_end", "edits kept", "untouched", "edits"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["field", "value", "order"], ignore_index=True)
    return table.astype({"N_optimisation": "Int64", "N_model": "Int64"})


def settings_table(moved: pd.DataFrame) -> pd.DataFrame:
    """`sensitivity` to act on, a row a value: both points with their range over orders, medians of the rest."""
    rows = []
    for (field, value), part in moved.groupby(["field", "value"]):
        points = {column: _point(part, column) for column in ("N_optimisation", "N_model")}
        rest = part[["p_end", "edits kept", "untouched"]].median()
        star = "*" if part.base.all() else ""
        rows.append({"setting": field, "value": f"{value:g}{star}", "orders": len(part), **points, **rest})
    return pd.DataFrame(rows)


def _point(part: pd.DataFrame, column: str) -> str:
    return spread(part[column]) if part[column].notna().any() else f"> {part.edits.max()}"


def _outcome(run: Run) -> dict:
    return {
        "N_optimisation": collapse_point(run),
        "N_model": collapse_point(run, "model"),
        "p_end": run.edits.probability_last.iloc[-25:].median(),
        "edits kept": run.curve("accuracy", "edits").iloc[-1],
        "untouched": run.curve("accuracy", "untouched").iloc[-1],
        "edits": len(run.edits),
    }


def foretold(bench: Bench, names=FORETOLD) -> pd.DataFrame:
    """A row a stream and order that was run: foretold N_model (`foretell` with the stream's first edits), and the
    observed one (NaN: not within its length). From figures/data where it is there; a live order is worked out else."""
    rows = []
    for name in names:
        for order, run in bench.runs(name).items():
            if (found := _foretold(bench, name, order)) is not None:
                observed = collapse_point(run, "model")
                rows.append({"stream": name, "order": order, **found, "observed": observed, "length": len(run.edits)})
    columns = ["stream", "order", "N", "theta", "spill", "observed", "length"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"N": "foretold"})


def _foretold(bench: Bench, name: str, order: int) -> dict | None:
    for folder in (data_folder(), bench.results / "foretold"):
        if (path := _path(folder, bench, name, order)).exists():
            return json.loads(path.read_text())
    return keep_foretold(bench, name, order) if order in bench.profile.live_orders else None


def _path(folder: Path, bench: Bench, name: str, order: int) -> Path:
    return folder / f"{measured_on(folder, bench, name, order)}foretold-{SAMPLE}x{STRANGERS}.json"


def keep_foretold(bench: Bench, name: str, order: int, folder: Path | None = None) -> dict:
    """Work it out and write it into a folder (results/foretold)."""
    method, edits = bench.method(name), bench.edits_of(name, order)
    found = foretell(
        bench.model,
        method,
        edits[:SAMPLE],
        bench.facts.strangers(edits, STRANGERS, order),
        moments=bench.moments if method.needs_moments else None,
        contexts=bench.contexts(method, order),
        seed=order,
    )
    path = _path(folder or bench.results / "foretold", bench, name, order)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(found))
    return found


def foretold_sentence(table: pd.DataFrame) -> str:
    """How near the foretold points come to the observed ones, in a sentence."""
    table = table.astype({"foretold": float, "observed": float})
    seen = table[table.observed.notna() & np.isfinite(table.foretold)]
    if len(seen) < 3:
        return "Too few of these streams lost half of the untouched facts to judge what was foretold."
    off = np.exp(np.log(seen.foretold / seen.observed).abs())
    late = table[table.observed.isna()]
    lasting = f"; of {len(late)} that never lost half, {(late.foretold > late.length).sum()} were foretold to last"
    return (
        f"Foretold from {SAMPLE} edits made apart, N_model was off by a factor of {off.median():.2f} in the median of "
        f"{len(seen)} streams and orders (at most {off.max():.2f}; rank correlation of foretold and observed "
        f"{seen.foretold.corr(seen.observed, method='spearman'):.2f}){lasting if len(late) else ''}."
    )


def shares_table(found: dict[str, dict[int, Anatomy]], streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """A row a stream, order and moment: the shares of untouched facts' squared shift (`anatomy.shares`) when half of
    the untouched facts were lost, and at the end. streams: the runs behind the anatomies."""
    rows = []
    for name, orders in found.items():
        for order, one in orders.items():
            died = collapse_point(streams[name][order], "model") if order in streams.get(name, {}) else None
            for moment, at in (("the loss of half of them", died), ("the end", None)):
                if at is not None or moment == "the end":
                    rows.append({"stream": name, "order": order, "moment": moment, **shares(one, at)})
    return pd.DataFrame(rows, columns=["stream", "order", "moment", *SHARES])


def foresight_table(found: dict[str, dict[int, Anatomy]]) -> pd.DataFrame:
    """A row a stream and order: how far what was known before the first edit foretells each edit's fate."""
    return pd.DataFrame(
        [{"stream": n, "order": o, **foresight(one)} for n, orders in found.items() for o, one in orders.items()]
    )


def kinship_table(found: dict[int, Anatomy]) -> pd.DataFrame:
    """Who undoes whom, over all orders ({order: Anatomy}): each kin's share of all pairs of an earlier and a later
    edit, and of the spills on the earlier one; by what their subjects share, and by how near their keys are."""
    every = pd.concat([one.kin for one in found.values()])
    table = every.groupby(["by", "kin"], sort=False)[["later", "spills"]].sum()
    table = table / table.groupby("by").transform("sum")
    table.columns = ["share of the pairs", "share of the spills"]
    table["times its share"] = table["share of the spills"] / table["share of the pairs"]
    return table.reset_index()


def kinship_sentence(table: pd.DataFrame) -> str:
    """Which kin spill most for how many they are, and which spill most in all."""
    said = []
    for by, rows in table[table["share of the pairs"] > 0].groupby("by", sort=False):
        near, most = (rows.loc[rows[column].idxmax()] for column in ("times its share", "share of the spills"))
        said.append(
            f"by {by}, pairs of *{near.kin}* spill {near['times its share']:.3g} times their share "
            f"({near['share of the pairs']:.1%} of the pairs, {near['share of the spills']:.0%} of the spills), and "
            f"most of all comes from *{most.kin}* ({most['share of the spills']:.0%})"
        )
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def verdict_interventions(table: pd.DataFrame, base: str = next(iter(INTERVENTIONS))) -> str:
    """What became of both collapse points with each change, the stream `base` itself first (medians over orders)."""
    if base not in set(table.stream):
        return "The streams with one cause taken out were not run in this profile."
    return "\n".join(_said(title, rows) for title, rows in table.groupby("stream", sort=False))


def against_predictions(table: pd.DataFrame, base: str = next(iter(INTERVENTIONS))) -> str:
    """Which of PREDICTED held, medians over orders; what was not reached counts as the stream's length."""
    points = {"the optimised probability": "N_optimisation", "untouched facts": "N_model"}
    filled = table.assign(**{c: table[c].astype(float).fillna(table.edits) for c in points.values()})
    by, failed, asked = filled.groupby("stream")[list(points.values())].median(), [], 0
    for title, predicted in PREDICTED.items():
        for (what, column), foreseen in zip(points.items(), predicted, strict=True):
            if foreseen is not None and {title, base} <= set(by.index):
                factor, asked = by.loc[title, column] / by.loc[base, column], asked + 1
                came = LATER if factor >= MOVED else EARLIER if factor <= 1 / MOVED else HARDLY
                if came != foreseen:
                    failed.append(f"*{title}*: {what}, foreseen {foreseen}, came {came} (× {factor:.2g})")
    return (
        f"**Of {asked} predictions {asked - len(failed)} held** (later, earlier: by a factor of {MOVED:g} at least). "
        f"{'These did not: ' + '; '.join(failed) + '.' if failed else ''}"
    )


def _said(title: str, rows: pd.DataFrame) -> str:
    n, first, last = len(rows), rows["p first 25"].median(), rows["p last 25"].median()
    points = {"half of the untouched facts lost": rows.N_model}
    if first > NEVER_HIGH:
        points = {"optimised probability halved": rows.N_optimisation, **points}
    said = [
        f"{what} at {spread(at)}" if at.notna().any() else f"{what} not within {rows.edits.max()} edits"
        for what, at in points.items()
    ]
    low = "" if first > NEVER_HIGH else "optimised probability never high; "
    return (
        f"- **{title}** ({n} order{'s' if n > 1 else ''}): {low}{'; '.join(said)}; "
        f"p {first:.2g} in the first 25 edits, {last:.2g} in the last; edits kept {rows['edits kept'].median():.0%}, "
        f"untouched {rows.untouched.median():.0%}."
    )
