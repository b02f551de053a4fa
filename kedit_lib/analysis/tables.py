"""What streams showed, as tables: every number comes from the runs handed in."""

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
