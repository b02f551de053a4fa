"""What a stream piles up, edit after edit: in the weight, and in what flows behind it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..streams.runner import Run, collapse_point

HEALTH = ("condition number", "largest singular", "hidden drift")
IN_ROWS = {"written fraction": "written_", "cosine with all before": "along_"}  # of each edit: columns of its row
LATEST = 25
START, DEAD, END = "the start", "half of the untouched facts lost", "the end"


def growth_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """Which law ‖W‖ follows: R² of log‖W‖ and of ‖W − W₀‖² ≈ ‖W‖² as straight lines in the number of edits, at the
    last edited layer; a feedback of ‖W‖ on itself makes the first straight, steps that do not know of each other the
    second."""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            column = [c for c in run.edits if c.startswith("W_")][-1]
            n, w = run.edits.edit.to_numpy(float), run.edits[column].to_numpy(float)
            rows.append(
                {
                    "stream": name,
                    "order": order,
                    "‖W‖ at the end / at the first edit": w[-1] / w[0],
                    "R² of log ‖W‖": np.corrcoef(n, np.log(w))[0, 1] ** 2,
                    "R² of ‖W‖²": np.corrcoef(n, w**2)[0, 1] ** 2,
                    "‖δ‖/‖v₀‖, first 25": run.edits.delta_ratio.iloc[:25].median(),
                    "‖δ‖/‖v₀‖, last 25": run.edits.delta_ratio.iloc[-25:].median(),
                    "steps, first 25": run.edits.steps.iloc[:25].median(),
                    "steps, last 25": run.edits.steps.iloc[-25:].median(),
                }
            )
    return pd.DataFrame(rows)


def health_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """A row a stream, order and moment (START, DEAD, END), each at the
    nearest checkpoint that asked: HEALTH of the last edited layer (hidden drift: of the last layer), the median written
    fraction and cosine of an update with all before it of the latest 25 edits; NaN for what a method does not tell.
    Streams that measured no health are left out."""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            asked = run.checkpoints[run.checkpoints.metric.isin(HEALTH)]
            if asked.empty:
                continue
            by = asked.groupby(["metric", "edits_done"]).value.last().unstack("metric")  # the last layer's
            died = collapse_point(run, "model")
            moments = {START: 0, DEAD: died, END: len(run.edits)}
            for moment, at in moments.items():
                if at is not None:
                    done = min(by.index, key=lambda n, at=at: abs(n - at))
                    latest = run.edits[max(0, done - LATEST) : done]
                    row = {"stream": name, "order": order, "moment": moment, "edits": done, **by.loc[done]}
                    rows.append({**row, **{title: _median(latest, c) for title, c in IN_ROWS.items()}})
    return pd.DataFrame(rows, columns=["stream", "order", "moment", "edits", *HEALTH, *IN_ROWS])


def _median(edits: pd.DataFrame, prefix: str) -> float:
    columns = [c for c in edits if c.startswith(prefix)]
    return float(edits[columns[-1]].median()) if columns and len(edits) else float("nan")


def sentence(table: pd.DataFrame) -> str:
    """From the start to the loss of half of the untouched facts, by stream, medians over orders."""
    said = [] if len(table) else ["No stream here measured it."]
    for name, rows in table.groupby("stream", sort=False):
        by = rows.drop(columns=["stream", "order"]).groupby("moment", sort=False).median()
        moment = DEAD if DEAD in by.index else END
        at, start = by.loc[moment], by.loc[START]
        later = f" ({by.loc[END]['condition number']:.0f} at the end)" if moment == DEAD else ""
        written = f", {at['written fraction']:.0%} written" if at["written fraction"] == at["written fraction"] else ""
        said.append(
            f"- **{name}**, {moment} (edit {at.edits:.0f}): condition number {start['condition number']:.0f} → "
            f"{at['condition number']:.0f}{later}; hidden drift "
            f"{at['hidden drift']:.2f}{written}; cosine of an update with all before it "
            f"{at['cosine with all before']:+.3f}."
        )
    return "\n".join(said)


def growth_sentence(table: pd.DataFrame) -> str:
    """Which of the two is the straighter line in which streams, and what became of the targets' relative size."""
    if table.empty:
        return "No stream here was long enough."
    fed = table.assign(fed=table["R² of log ‖W‖"] > table["R² of ‖W‖²"]).groupby("stream", sort=False)
    kinds = {"log ‖W‖": [n for n, rows in fed if rows.fed.all()]}
    kinds["‖W‖²"] = [n for n, rows in fed if not rows.fed.any()]
    named = {what: ", ".join(names) for what, names in kinds.items() if names}
    said = [f"{what} is the straighter line in every order of {names}" for what, names in named.items()]
    by = table.groupby("stream", sort=False)
    first, last = (by[f"‖δ‖/‖v₀‖, {part} 25"].median() for part in ("first", "last"))
    shrunk = ", ".join(f"{first[n]:.2g} → {last[n]:.2g} ({n})" for n in first.index)
    walk = ": there updates add up as if they did not know of each other" if kinds["‖W‖²"] else ""
    return (
        f"{'; '.join(said) or 'Neither is the straighter line in every order of any stream'}{walk}. ‖δ‖/‖v₀‖ of the "
        f"first and the last 25 edits: {shrunk}."
    )
