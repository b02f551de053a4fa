"""What streams showed, as tables and sentences: every number comes from the runs handed in."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..streams.runner import WINDOW, Run, collapse_point

COLLAPSE = ["stream", "order", "edits", "N_optimisation", "N_model"]  # and what was true at the end:
COLLAPSE += ["p first 25", "p last 25", "edits kept", "untouched", "perplexity"]


def collapse_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """A row a stream and order: both collapse points, and what was true at the end."""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            last, first = run.edits.iloc[-WINDOW:], run.edits.iloc[:WINDOW]
            end = (
                run.checkpoints[run.checkpoints.edits_done == run.checkpoints.edits_done.max()]
                .set_index(["metric", "cohort"])
                .value
            )
            rows.append(
                {
                    "stream": name,
                    "order": order,
                    "edits": len(run.edits),
                    "N_optimisation": collapse_point(run),
                    "N_model": collapse_point(run, "model"),
                    "p first 25": first.probability_last.median(),
                    "p last 25": last.probability_last.median(),
                    "edits kept": end.get(("accuracy", "edits"), np.nan),
                    "untouched": end.get(("accuracy", "untouched"), np.nan),
                    "perplexity": end.get(("perplexity", "plain text"), np.nan),
                }
            )
    return pd.DataFrame(rows, columns=COLLAPSE).astype({"N_optimisation": "Int64", "N_model": "Int64"})


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """A table for readers: rounded, a point that was not reached as "> N"."""
    out = table.copy()
    for column in ("N_optimisation", "N_model"):
        if column in out and "edits" in out:  # else they are words already
            out[column] = [f"> {n}" if pd.isna(v) else str(v) for v, n in zip(out[column], out["edits"], strict=True)]
    return out.map(lambda v: f"{v:.3g}" if isinstance(v, float) else v)


def spread(values, unit: str = "", digits: int = 3) -> str:
    """Orders in words: "62 (54–71)" is the median and the range; a missing one counts as not reached."""
    known = [v for v in values if not pd.isna(v)]
    if not known:
        return "not reached"
    if len(known) < len(list(values)):
        return f"{min(known):.{digits}g}{unit} at the earliest, in {len(known)} of {len(list(values))} orders"
    middle = f"{np.median(known):.{digits}g}"
    return f"{middle}{unit}" if len(known) == 1 else f"{middle} ({min(known):.{digits}g}–{max(known):.{digits}g}){unit}"


def provenance(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """Where the orders come from: executed by this run, or committed data with their date."""
    rows = [
        {
            "stream": name,
            "order": order,
            "from": f"committed data of {run.manifest['finished'][:10]}" if run.path is None else "this run",
            "edits": len(run.edits),
            "device": run.manifest["device"],
            "torch": run.manifest["versions"]["torch"].split("+")[0],
        }
        for name, runs in streams.items()
        for order, run in runs.items()
    ]
    return (
        pd.DataFrame(rows)
        .groupby(["stream", "from", "edits", "device", "torch"], sort=False)
        .order.agg(list)
        .reset_index()
    )


def warning_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """The edit at which each measure first fell below half its value at its start; order by order."""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            row = {"stream": name, "order": order, "edits": len(run.edits)}
            for cohort in ("same subjects", "edits", "paraphrases", "neighbors", "untouched", "latest edits"):
                row[cohort] = _halved(run.curve("accuracy", cohort))
            row["perplexity doubled"] = _doubled(run.curve("perplexity", "plain text"))
            row["optimised probability"] = collapse_point(run)
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(table.columns[2:], "Int64"))


def _halved(curve: pd.Series):
    below = curve[curve < curve.iloc[0] / 2] if len(curve) else curve
    return int(below.index[0]) if len(below) else pd.NA


def _doubled(curve: pd.Series):
    above = curve[curve > 2 * curve.iloc[0]] if len(curve) else curve
    return int(above.index[0]) if len(above) else pd.NA


def optimisation_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """Medians over the first and the last 25 edits: does the optimisation still move the probability?"""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            for when, part in (("first 25", run.edits[:WINDOW]), ("last 25", run.edits[-WINDOW:])):
                rows.append(
                    {
                        "stream": name,
                        "order": order,
                        "edits": when,
                        "p at the first step": part.probability_first.median(),
                        "p at the last step": part.probability_last.median(),
                        "smallest p at the last step": part.probability_last.min(),
                        "steps": part.steps.median(),
                        "‖δ‖/‖v₀‖": part.delta_ratio.median(),
                        "on the clamp": part.clamped.mean(),
                    }
                )
    return pd.DataFrame(rows)


# ---- sentences ---------------------------------------------------------------------------------------


def collapse_sentence(table: pd.DataFrame) -> str:
    """Both collapse points of each stream in words."""
    parts = []
    for name, rows in table.groupby("stream", sort=False):
        parts.append(
            f"{name}: the optimised probability halves at {_points(rows, 'N_optimisation')}, the model is dead at "
            f"{_points(rows, 'N_model')}"
        )
    return "; ".join(parts) + "."


def _points(rows: pd.DataFrame, column: str) -> str:
    known = rows[column].dropna().astype(int)
    if known.empty:
        return f"no edit up to {rows.edits.max()}"
    if len(known) < len(rows):
        return f"edit {known.min()} at the earliest (in {len(known)} of {len(rows)} orders)"
    return (
        f"edit {known.iloc[0]}"
        if len(known) == 1
        else f"edit {known.median():.0f} ({known.min()}–{known.max()} over {len(known)} orders)"
    )


def kept_sentence(streams: dict[str, dict[int, Run]]) -> str:
    """What is left at the end of each stream, the median over orders."""
    parts = []
    for name, runs in streams.items():
        kept, untouched = (
            np.median([r.curve("accuracy", c).iloc[-1] for r in runs.values()]) for c in ("edits", "untouched")
        )
        n = next(iter(runs.values())).edits.edit.max()
        parts.append(f"{name}: {kept:.0%} of {n} edits and {untouched:.0%} of the untouched facts")
    return "Right at the end: " + "; ".join(parts) + "."


def growth_sentence(streams: dict[str, dict[int, Run]]) -> str:
    parts = []
    for name, runs in streams.items():
        column = [c for c in next(iter(runs.values())).edits if c.startswith("W_")][-1]
        growth = np.median([r.edits[column].iloc[-1] / r.edits[column].iloc[0] for r in runs.values()])
        text = np.median([r.curve("perplexity", "plain text").iloc[-1] for r in runs.values()])
        parts.append(f"{name}: the norm grows {growth:.3g}-fold, perplexity ends at {text:.3g}")
    start = next(iter(next(iter(streams.values())).values())).curve("perplexity", "plain text").iloc[0]
    return "; ".join(parts) + f" (from {start:.3g})."


def hidden_sentence(data: pd.DataFrame) -> str:
    """How often a dead model still reports a high optimised probability, stream by stream."""
    parts = []
    for name, rows in data.groupby("stream", sort=False):
        dead = rows[rows.untouched < 0.5]
        high = (dead["optimised probability"] > 0.5).mean() if len(dead) else float("nan")
        parts.append(f"{name}: no checkpoint with a dead model" if dead.empty else f"{name}: {high:.0%} of {len(dead)}")
    return (
        "Checkpoints at which fewer than half of the untouched facts are right, and which still report p > 0.5: "
        + "; ".join(parts)
        + "."
    )


def verdict_collapse(table: pd.DataFrame, bench) -> str:
    """Whether and how far the report's collapse shows."""
    out, d_ff = [], bench.model.d_ff
    for name, rows in table.groupby("stream", sort=False):
        n = rows.N_optimisation.dropna().astype(float)
        known = f"{len(n)} of {len(rows)} orders"
        if n.empty:
            out.append(
                f"**{name}: the optimised probability does not collapse** within {rows.edits.max()} edits in any order."
            )
            continue
        down = int((rows["p last 25"] < rows["p first 25"] / 2).sum())
        stays = "" if down == len(rows) else "; elsewhere it dips and comes back, which is no collapse"
        model = rows.N_model.dropna().astype(float)
        early = (rows.N_model.astype("Float64") < rows.N_optimisation.astype("Float64")).fillna(False).sum()
        out.append(
            f"**{name}: the optimised probability halves in {known}**, at {_points(rows, 'N_optimisation')}; "
            f"as a share of the width that is N/d_ff = {n.median() / d_ff:.2f} (the report: 450/11,008 = 0.04). "
            f"It ends at a median of {rows['p last 25'].median():.2g}; the report saw 4.66e-08. "
            f"At the end it is below half of its start in "
            f"{down} of {len(rows)} orders{stays}. "
            f"The model is dead first in {early} of {len(rows)} orders"
            + (f", at {_points(rows, 'N_model')}." if len(model) else ".")
        )
    return "\n\n".join(out)


def verdict_rome(table: pd.DataFrame, hidden: pd.DataFrame) -> str:
    """Whether ROME's probability outlasts MEMIT's, and what that is worth."""
    by = dict(iter(table.groupby("stream", sort=False)))
    memit, out = by.pop("MEMIT"), []
    for name, rows in by.items():
        both = rows.merge(memit, on="order", suffixes=("", " memit"))
        longer = sum(
            (pd.isna(a) and not pd.isna(b)) or (not pd.isna(a) and not pd.isna(b) and a > b)
            for a, b in zip(both.N_optimisation, both["N_optimisation memit"], strict=True)
        )
        neither = both[["N_optimisation", "N_optimisation memit"]].isna().all(axis=1).sum()
        high = (rows["p last 25"] > rows["p first 25"] / 2).sum()
        none_halves = f" (in {neither} neither halves)" if neither else ""
        out.append(
            f"- **{name}**: its optimised probability outlasts MEMIT's in {longer} of {len(both)} orders{none_halves} "
            f"and is still above half of its start after {rows.edits.max()} edits in {high}; it ends "
            f"at {rows['p last 25'].median():.2g} with "
            f"{rows['edits kept'].median():.0%} of the edits and {rows.untouched.median():.0%} of the untouched facts "
            f"right (MEMIT: {memit['p last 25'].median():.2g}, {memit['edits kept'].median():.0%}, "
            f"{memit.untouched.median():.0%})."
        )
    dead = hidden[hidden.untouched < 0.5]
    share = (dead["optimised probability"] > 0.5).mean() if len(dead) else 0.0
    out.append(
        f"\nOver all streams, {share:.0%} of the {len(dead)} checkpoints with a dead model still report an optimised "
        "probability above one half. It measures whether a vector held by hand can push the answer out of the model, "
        "not whether the model knows anything."
    )
    return "\n".join(out)


def verdict_regime(table: pd.DataFrame) -> str:
    """In which of several regimes the optimised probability halves, and where it ends lowest."""
    ends = table.groupby("stream", sort=False)["p last 25"].median()
    halved = [
        f"{name} ({_points(rows, 'N_optimisation')})"
        for name, rows in table.groupby("stream", sort=False)
        if rows.N_optimisation.notna().any()
    ]
    lowest = f"it ends lowest with {ends.idxmin()}: a median of {ends.min():.2g}"
    if halved:
        return f"**The optimised probability halves with {'; '.join(halved)}**; {lowest}."
    return f"In none of these regimes does the optimised probability halve within {table.edits.max()} edits; {lowest}."


def hidden_by(name: str, streams: dict[str, dict[int, Run]]) -> str:
    """What is true of the model at the last checkpoint at which a stream still reports p > 0.9."""
    rows = []
    for run in streams[name].values():
        untouched = run.curve("accuracy", "untouched")
        for done in reversed(untouched.index[untouched.index > 0]):
            p = run.edits.probability_last[max(0, done - WINDOW) : done].median()
            if p > 0.9:
                at = {}
                for cohort in ("edits", "untouched", "same subjects"):  # asked more seldom: its latest value
                    so_far = run.curve("accuracy", cohort).loc[:done]
                    at[cohort] = so_far.iloc[-1] if len(so_far) else np.nan
                rows.append({"edits_done": done, "p": p, **at})
                break
    if not rows:
        return f"{name} reports p > 0.9 at no checkpoint."
    t = pd.DataFrame(rows)
    others = t["same subjects"].median()
    return (
        f"**The last time {name} reports p > 0.9** (edit {spread(t.edits_done)} over {len(t)} orders; p = "
        f"{t.p.median():.2f}), {t.edits.median():.0%} of its edits, {t.untouched.median():.0%} of the untouched facts"
        + ("" if pd.isna(others) else f", {others:.0%} of the edited subjects' other facts")
        + " are right."
    )


def verdict_contrast(table: pd.DataFrame, settings: dict[str, tuple[str, str]]) -> str:
    """Where ROME's optimised probability outlasts MEMIT's, and what their models know meanwhile; medians over orders.

    table: a `collapse_table`; settings: {what is said of it: (MEMIT's stream, ROME's)}. A probability lasts where it
    halves in fewer than half of the orders. Settings with a stream that was not run are left out.
    """
    lasts, said = {"ROME's alone": [], "MEMIT's alone": [], "both": [], "neither": []}, []
    for setting, names in settings.items():
        memit, rome = (table[table.stream == name] for name in names)
        if memit.empty or rome.empty:
            continue
        up = [rows.N_optimisation.notna().mean() < 0.5 for rows in (memit, rome)]
        which = {(False, True): "ROME's alone", (True, False): "MEMIT's alone", (True, True): "both"}
        lasts[which.get(tuple(up), "neither")].append(setting)
        each = [
            f"{method} p = {rows['p last 25'].median():.2g}, {rows.untouched.median():.0%} of the untouched facts right"
            for method, rows in (("MEMIT", memit), ("ROME", rome))
        ]
        said.append(f"- {setting}, after {memit.edits.max()} edits: {'; '.join(each)}.")
    if not said:
        return "The streams of this comparison were not run in this profile."
    found = "; ".join(f"{who}: {', '.join(where)}" for who, where in lasts.items() if where)
    return f"**Whose optimised probability lasts? {found[0].upper() + found[1:]}.**\n\n" + "\n".join(said)


def leads(single: dict[int, Run], whole: dict[int, Run]) -> str:
    """What is right at the end after single edits and after one batch of them: a line a group of questions, medians
    over the orders that both have."""
    out = []
    for cohort in ("edits", "paraphrases", "untouched", "same subjects"):
        pairs = [
            (single[o].curve("accuracy", cohort).iloc[-1], whole[o].curve("accuracy", cohort).iloc[-1])
            for o in single
            if o in whole and len(single[o].curve("accuracy", cohort)) and len(whole[o].curve("accuracy", cohort))
        ]
        if not pairs:  # not every data set asks about this
            continue
        better = sum(b > a for a, b in pairs)
        a, b = np.median([a for a, _ in pairs]), np.median([b for _, b in pairs])
        out.append(
            f"- {cohort}: {a:.0%} after single edits, {b:.0%} after one batch; the batch is ahead in {better} of "
            f"{len(pairs)} orders."
        )
    return "\n".join(out)


def verdict_mass(streams: dict[str, dict[int, Run]], mass: pd.DataFrame, bench) -> str:
    """Whether one batch keeps more than single edits, at equal N, and what memory it took."""
    names = list(streams)
    n = bench.profile.n_edits
    fine = mass[(mass.edits >= 0.8) & (mass.untouched >= 0.8)]
    regime = (
        f"One batch keeps both, its edits and the untouched facts, at 80 % or more up to **{fine.batch.max()} edits, "
        f"N/d_ff = {fine['N/d_ff'].max():.2f}**"
        if len(fine)
        else "No measured batch keeps both its edits and the untouched facts at 80 %"
    )
    first, last = mass.iloc[0], mass.iloc[-1]
    return (
        f"At N = {n} (N/d_ff = {n / bench.model.d_ff:.2f}; the report's 1,000 are 0.09):\n\n"
        + leads(streams[names[0]], streams[names[-1]])
        + f"\n\n{regime}. No batch ran out of memory: "
        f"{last.batch:.0f} edits at once peaked at {last.peak_mb:.0f} MB against {first.peak_mb:.0f} MB for one, "
        "because targets are optimised a few at a time and the solve needs N × N numbers."
    )
