"""Which method to take, for how many edits and for which need: a table computed from stored streams."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..streams.bench import Bench, data_folder
from ..streams.cost import memory_cost
from ..streams.runner import Run, collapse_point
from .claim_values import right

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

EVERY_METHOD = {  # of the frontier: title, stream
    "MEMIT": "memit",
    "MEMIT, history": "memit-history",
    "MEMIT, anchored": "memit-anchored",
    "MEMIT, then PRUNE": "memit-pruned",
    "MEMIT, clamp 0.75": "memit-clamp",
    "MEMIT, clamp 0.75, history": "memit-clamp-history",
    "RECT": "rect",
    "PMET": "pmet",
    "ROME": "rome",
    "r-ROME": "rrome",
    "p-ROME": "prome",
    "EMMET": "emmet",
    "AlphaEdit": "alphaedit",
    "AlphaEdit, by rank": "alphaedit-rank",
    "AlphaEdit, MEMIT's targets": "alphaedit-target",
    "FT-L": "ft-l",
    "FT-M": "ft",
    "MEMIT-MASS": "memit-mass",
    "MEMIT-MASS, clamp 0.75": "memit-clamp-mass",
    "PMET, one batch": "pmet-mass",
    "EMMET, one batch": "emmet-mass",
    "AlphaEdit, one batch": "alphaedit-mass",
    "RECT, one batch": "rect-mass",
}
PAID = {"seconds_per_edit": "core seconds an edit", "memory_mb": "memory, MB"}
HOW = {1: "one edit at a time", None: "one batch"}


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


def horizons(bench: Bench) -> tuple[int, int, int]:
    """N/2, N and 3·N with N the median N_optimisation of MEMIT's streams, or, where some order does not reach it,
    the median N_model; each at the nearest checkpoint at which everything is asked. In place of 3·N the streams' whole
    length, which the batches have."""
    whole, every = bench.profile.n_edits, bench.profile.checkpoint_every
    n = max(1, whole / 3)
    for kind in ("optimisation", "model"):
        points = [collapse_point(run, kind) for run in bench.runs("memit").values()]
        if points and all(points):
            n = pd.Series(points).median()
            break
    return *(min(whole, max(1, round(part / every)) * every) for part in (n / 2, n)), whole


def frontier(bench: Bench) -> pd.DataFrame:
    """A row a method, order and number of edits of `horizons` (a batch: of all its edits): right answers by free
    generation to the latest edits (efficacy), all edits so far (kept), their paraphrases, neighbors and untouched
    facts (locality); fluency and perplexity. NaN where nobody asked at that number."""
    rows = []
    for title, name in EVERY_METHOD.items():
        if name not in bench.streams:
            continue
        whole, how = bench.profile.n_edits, HOW[bench.streams[name].batch_size]
        for order, run in bench.runs(name).items():
            for n in sorted(set(horizons(bench))) if how == HOW[1] else [whole]:
                rows.append({"method": title, "how": how, "order": order, "edits": n, **_at(run, n)})
    return pd.DataFrame(rows)


def _at(run: Run, n: int) -> dict[str, float]:
    cohorts = {"efficacy": "latest edits", "kept": "edits", "paraphrases": "paraphrases", "neighbors": "neighbors"}
    found = {what: right(run, cohort, n) for what, cohort in {**cohorts, "untouched": "untouched"}.items()}
    for metric, cohort in (("fluency", "free text"), ("perplexity", "plain text")):
        found[metric] = right(run, cohort, n, metric)
    return found


def keep_memory(bench: Bench, folder: Path) -> pd.DataFrame:
    """Measure `memory_cost` of every method of the frontier, one after the other, into `folder`."""
    bench.moments  # measured here, not in a process that is looked at  # noqa: B018
    streams = {name: bench.streams[name] for name in EVERY_METHOD.values()}
    # PRUNE and the anchored norm only bound what another method finds, and cost what it costs.
    names = [name for name, stream in streams.items() if not (stream.pruned or stream.anchored)]
    table = pd.DataFrame([memory_cost(bench.profile, name, bench.results) for name in names])
    with replacing(_memory_path(bench, folder)) as partial:
        table.to_csv(partial, index=False)
    return table


def paid(bench: Bench, folder: Path | None = None) -> pd.DataFrame:
    """By method what `keep_memory` left: PAID; NaN for what nobody measured on this model."""
    path = _memory_path(bench, folder or data_folder())
    table = pd.read_csv(path).set_index("stream") if path.exists() else pd.DataFrame(columns=list(PAID), dtype=float)
    table = table.reindex(list(EVERY_METHOD.values()))[list(PAID)].set_axis(list(EVERY_METHOD), axis=0)
    return table.rename(columns=PAID).rename_axis("method")


def _memory_path(bench: Bench, folder: Path) -> Path:
    return folder / f"{bench.profile.model.split('/')[-1]}.memory.{bench.profile.n_edits}.csv"


def summary(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Medians over orders after n edits, the most kept and untouched together first; `orders` counts them."""
    part = table[table.edits == n]
    values = part.drop(columns=["order", "edits"]).groupby(["how", "method"], sort=False)
    out = values.median().assign(orders=values.size())
    return out.sort_values(["kept", "untouched"], ascending=False).reset_index()


def undominated(table: pd.DataFrame, n: int) -> list[str]:
    """The methods after n edits than which no other keeps both more edits and more untouched facts (medians over the
    orders there are); keeping no edit at all is no merit."""
    part = summary(table, n).dropna(subset=["kept", "untouched"])
    part = part[part.kept > 0]
    points = part[["kept", "untouched"]].to_numpy()
    best = [not ((points >= p).all(1) & (points > p).any(1)).any() for p in points]
    return [
        f"{row.method} ({row.kept:.0%} kept, {row.untouched:.0%} untouched, {_orders(row.orders)})"
        for row in part[best].itertuples()
    ]


def _orders(n: int) -> str:
    return f"{n} order{'s' if n > 1 else ''}"


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
