"""What decides the claims: numbers of runs, order by order, and three measurements that no stream makes.

A quantity is a function of a Bench that gives {order: value}; `each` and `difference` make one of a function of a Run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from ..data.cached import cached
from ..data.provenance import ALGORITHMS, key_of
from ..editing import method_for
from ..streams.bench import Bench
from ..streams.named_streams import ROME_VARIANTS
from ..streams.runner import WINDOW, Run, collapse_point

HELD = ("edits", "paraphrases", "untouched")  # efficacy, generalisation, locality: right answers by free generation
N_INTERFERENCE = 20  # single edits an order for the interference of one layer and of several
Quantity = Callable[[Bench], dict[int, float]]


def kept(run: Run) -> float:
    """Median optimised probability of the last 25 edits over that of the first 25."""
    p = run.edits.probability_last
    return p.iloc[-WINDOW:].median() / p.iloc[:WINDOW].median()


def last_probability(run: Run) -> float:
    """Median optimised probability of the last 25 edits."""
    return run.edits.probability_last.iloc[-WINDOW:].median()


def right(run: Run, cohort: str, n: int | None = None, metric: str = "accuracy") -> float:
    """Right answers of a cohort, or another metric of it, at the last checkpoint or after n edits: between two
    checkpoints on the straight line through them, NaN before the first and where nobody asked."""
    curve = run.curve(metric, cohort)
    curve = curve[curve.index > 0]
    if curve.empty:
        return float("nan")
    return float(curve.iloc[-1] if n is None else np.interp(n, curve.index, curve, left=np.nan, right=np.nan))


def overall(run: Run) -> float:
    """Mean of the right answers to edits, paraphrases and untouched facts at the end."""
    return sum(right(run, cohort) for cohort in HELD) / len(HELD)


def precise(run: Run, n: int) -> float:
    """Mean of the right answers to edits and untouched facts after n edits; paraphrases are not asked that early."""
    return (right(run, "edits", n) + right(run, "untouched", n)) / 2


def forgotten(run: Run) -> float:
    """Right answers of the newest 25 edits, averaged over the stream's length, minus those of all edits at the end."""
    latest = run.curve("accuracy", "latest edits")
    latest = latest[latest.index > 0]
    grid = np.arange(latest.index.min(), latest.index.max() + 1)  # checkpoints are not evenly spaced
    return float(np.interp(grid, latest.index, latest).mean()) - right(run, "edits")


def along(run: Run) -> float:
    """Mean cosine of an edit's ΔW with the sum of what the edits before it wrote, at the last edited layer."""
    column = [c for c in run.edits if c.startswith("along_")][-1]
    return float(run.edits[column].mean())


def each(stream: str, value: Callable[[Run], float]) -> Quantity:
    """One number of one stream, order by order."""
    return lambda bench: {order: value(run) for order, run in bench.runs(stream).items()}


def difference(a: str, b: str, value: Callable[[Run], float]) -> Quantity:
    """The same number of two streams subtracted, for the orders that both have."""

    def measure(bench: Bench) -> dict[int, float]:
        one, other = bench.runs(a), bench.runs(b)
        return {order: value(one[order]) - value(other[order]) for order in one if order in other}

    return measure


def lead_of_mass(bench: Bench) -> dict[int, float]:
    """Smallest lead of one batch over single edits among edits, paraphrases and untouched facts."""
    parts = [difference("memit-mass", "memit", lambda run, c=c: right(run, c))(bench) for c in HELD]
    return {order: min(part[order] for part in parts) for order in parts[0]}


def rank_correlation(bench: Bench) -> dict[int, float]:
    """Spearman's ρ over the checkpoints of all streams of an order: optimised probability against untouched facts."""
    found = {}
    for order in bench.profile.orders:
        rows = []
        for name in ("memit", "pmet", *ROME_VARIANTS):
            if (run := bench.runs(name).get(order)) is None:
                continue
            for done, value in run.curve("accuracy", "untouched").items():
                if done:
                    rows.append((run.edits.probability_last[max(0, done - WINDOW) : done].median(), value))
        if rows:
            table = pd.DataFrame(rows, columns=["probability", "untouched"])
            found[order] = table.probability.corr(table.untouched, method="spearman")
    return found


def memory_growth(bench: Bench) -> dict[int, float]:
    """Peak memory of the largest batch over that of the smallest; a batch that ran out of it would have raised."""
    mass = bench.mass_table()
    return {0: mass.peak_mb.iloc[-1] / mass.peak_mb.iloc[0]}


def first_batch(run: Run) -> float:
    """Right answers to the edits of the first batch of a stream, each asked by itself."""
    return right(run, "edits", int(run.edits.batch.iloc[0]))


def interference_ratio(bench: Bench) -> dict[int, float]:
    """tr(Δ C Δᵀ) for each achieved edit of MEMIT over PMET's layers, over that of the last of them
    alone, where both have the same z; single edits."""
    found, several = {}, bench.method("memit-layers")
    one = method_for(bench.model, "memit", layers=several.layers[-1:])
    for order in bench.profile.orders:
        edits = bench.edits(order, min(N_INTERFERENCE, bench.profile.n_single))

        def cost(method, edits=edits, order=order):
            table = bench.single_edits(method, edits, order)
            return table.interference.sum() / max(table.edit.sum(), 1)

        parts = [bench.model.checksum, several.hyperparameters, one.hyperparameters, list(map(repr, edits)), ALGORITHMS]
        found[order] = _kept(bench, "interference", parts, lambda: cost(several) / cost(one))  # noqa: B023
    return found


def untouched_by_the_sum(bench: Bench) -> dict[int, float]:
    """Untouched facts right when the ΔW of independent single edits, each made on the unedited model, are added up:
    as many as kill MEMIT's stream. If the sum kills too, errors need not feed on each other to do harm.
    """
    found, method = {}, bench.method("memit")
    for order, run in bench.runs("memit").items():
        n = collapse_point(run, "model") or len(run.edits)
        edits, contexts = bench.edits(order, bench.profile.n_edits), bench.contexts(method, order)
        panel = bench.probes(edits, order)
        panel = next(p for p in panel if getattr(p, "cohort", "") == "untouched")

        def share(edits=edits[:n], contexts=contexts, panel=panel):
            total = {}
            for edit in edits:
                outcome = method.apply(bench.model, [edit], moments=bench.moments, contexts=contexts)
                bench.model.restore()
                for name, delta in outcome.deltas.items():
                    total[name] = total.get(name, 0) + delta
            with bench.model.temporarily():
                bench.model.add(total)
                return panel(bench.model, edits)[0]["value"]

        parts = [bench.model.checksum, method.hyperparameters, list(map(repr, edits)), n, panel.identity, ALGORITHMS]
        found[order] = _kept(bench, "sum", parts, share)
    return found


def _kept(bench: Bench, name: str, parts, compute: Callable[[], float]) -> float:
    """A number that takes a while, kept in results/claims."""
    path = bench.results / "claims" / f"{name}-{key_of(parts=[bench.model.setting, *parts])}.json"
    return cached(path, compute)


def tested_singly(bench: Bench) -> dict[int, float]:
    """Right answers to the first batch of the second largest size, each edit asked by itself."""
    sizes = sorted(bench.profile.batch_sizes)[:-1] or [1]
    return each("memit" if sizes[-1] == 1 else f"memit-b{sizes[-1]}", first_batch)(bench)
