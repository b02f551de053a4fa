"""Which method to take, for how many edits and for which need: a table computed from stored streams."""

from __future__ import annotations

import pandas as pd

from .quantities import right
from .streams import Bench

NEEDS = {  # right answers by free generation, but for the cost
    "efficacy": "latest edits",
    "retention": "edits",
    "generalisation": "paraphrases",
    "locality": "untouched",
}
COST = "cost"  # seconds an edit
ORDERS = 3  # that a clear choice takes
ONE_BY_ONE = {"MEMIT": "memit", "PMET": "pmet", "ROME": "rome", "r-ROME": "rrome"}
BATCH = "MEMIT-MASS"


def candidates(bench: Bench) -> pd.DataFrame:
    """A row a method, number of edits, need and order: columns method, edits, need, order, value.

    The streams of single edits at each of the profile's batch sizes, and one batch of exactly that many.
    """
    rows = []
    for n in sorted(set(bench.profile.batch_sizes) - {1}):
        batch = "memit-mass" if n >= bench.profile.n_edits else f"memit-b{n}"
        for method, stream in {**ONE_BY_ONE, BATCH: batch}.items():
            for order, run in bench.runs(stream).items():
                values = {need: right(run, cohort, n) for need, cohort in NEEDS.items()}
                values[COST] = run.edits.seconds[:n].mean()
                rows += [(method, n, need, order, value) for need, value in values.items()]
    return pd.DataFrame(rows, columns=["method", "edits", "need", "order", "value"]).dropna()  # not asked that early


def decide(table: pd.DataFrame) -> pd.DataFrame:
    """For every number of edits and need the best method: its value, the second best and its value, medians over
    orders, and in how many orders it is ahead of every other. Methods with fewer than three orders are left out where
    others have them. `clear`: ahead in all of at least three; a cost is never clear, it hangs on the machine's load.
    """
    rows = []
    for (n, need), part in table.groupby(["edits", "need"], sort=False):
        sign = -1 if need == COST else 1
        by = part.pivot(index="order", columns="method", values="value") * sign
        full = by.loc[:, by.count() >= ORDERS]
        by = (full if len(full.columns) > 1 else by).dropna()
        ranked = by.median().sort_values(ascending=False)
        first, second = ranked.index[:2]
        ahead = int((by[first] > by.drop(columns=first).max(axis=1)).sum())
        rows.append(
            {
                "edits": n,
                "need": need,
                "best": first,
                "its value": ranked[first] * sign,
                "second": second,
                "second's value": ranked[second] * sign,
                "ahead in orders": f"{ahead} of {len(by)}",
                "clear": need != COST and ahead == len(by) >= ORDERS,
            }
        )
    columns = ["edits", "need", "best", "its value", "second", "second's value", "ahead in orders", "clear"]
    return pd.DataFrame(rows, columns=columns)


def guide(decisions: pd.DataFrame) -> str:
    """The table as advice, one line a number of edits; needs without a clear winner are said to have none."""
    lines = []
    for n, part in decisions.groupby("edits", sort=True):
        won: dict[str, list[str]] = {}
        for row in part.itertuples():
            won.setdefault(row.best if row.clear else "no clear winner", []).append(row.need)
        lines.append(f"- **{n} edits**: " + "; ".join(f"{', '.join(needs)}: {method}" for method, needs in won.items()))
    return "\n".join(lines)
