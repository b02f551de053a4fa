"""Run the streams of a profile side by side: `kedit sweep --help` (make sweep).

`make reproduce` runs the live orders through here. Further orders and other λ run once in a while, and their tables are
committed in figures/data.
"""

import hashlib

import pandas as pd

from ..data.config import LAST_ORDER, Profile, load_profile
from ..errors import KeditError
from ..streams.bench import Bench, committed_runs
from ..streams.cost import batch_cost
from ..streams.named_streams import Stream, every_stream, groups_of, streams_of
from ..streams.run import Run
from ..streams.store import RunFolder, write_tables
from .execution import parse_orders
from .stamps import PACKAGE, hash_files
from .workers import in_workers

CHECK_EDITS = 50  # edits of the committed stream that is run again
CHECK_FACTS = 0.15  # largest accepted difference in unrelated facts right: three standard errors of a share of 100
CHECK_MARGIN = 0.05  # largest accepted median difference of the optimised probability over them
SLICE, SLICE_EDITS = ("memit", "rome"), 40  # streams of the model beside, and how many of their edits, run each time


def run_streams(profile: Profile, orders, names=None, commit: bool = False) -> None:
    """Run `names` (default: the profile's live streams) for each order on the workers, into results/; with the live
    streams also the single edits, the single batches, and the beginning of committed streams.

    Errors and Ctrl-C as in `in_workers`.
    """
    if not orders:
        return
    bench, live = Bench(profile, progress=False), names is None
    bench.moments  # measured once, before the workers want them  # noqa: B018
    asked = [(name, order) for name in (streams_of(profile) if live else names) for order in orders]
    asked.sort(key=lambda stream: _weight(bench.streams[stream[0]]))
    asked = {f"{name} order {order}": (name, order) for name, order in asked}
    tasks = {task: (_stream, profile, *which) for task, which in asked.items()}
    if live:
        if profile.beside:
            tasks = {f"{profile.beside}, first edits again": (_slice, load_profile(profile.beside))} | tasks
        if again := _rotation(bench):
            tasks[f"committed {again[0]} order {again[1]}, first {CHECK_EDITS} again"] = (_check, profile, *again)
        for name in ("memit", "rome"):
            tasks[f"{profile.n_single} single edits, {name}"] = (_singles, profile, name)
        for size in sorted(profile.mass_sizes, reverse=True):
            tasks[f"one batch of {size}"] = (_batch, profile, size)

    def took(task: str, result) -> str:
        return _store(bench, *asked[task], result, commit) if task in asked else result

    in_workers(tasks, profile, took)


def _weight(stream: Stream) -> int:
    """Sort key, the costliest first, so that the last worker does not run alone: 21 contexts cost more than 6, single
    edits more than batches."""
    return (0 if "rome" in stream.method else 1) if stream.batch_size == 1 else 2


def _store(bench: Bench, name: str, order: int, run: Run, commit: bool) -> str:
    """Store the tables of a finished run here, in case its worker has a results folder of its own; a line about it."""
    if run.path is not None and not (ours := RunFolder.at(bench.results / "streams" / run.path.name)).finished():
        write_tables(ours.path, "", run.edits, run.checkpoints, run.manifest)
    if commit:
        bench.commit(name, order, run=run)
    seconds, last = run.edits.seconds.mean(), run.edits.probability_last.iloc[-25:].median()
    probes = run.curve("seconds", "probes").sum()
    return f"{len(run.edits)} edits, {seconds:.2f} s/edit, probes {probes:.0f} s, median p of the last 25 {last:.3g}"


# ---- on a worker -----------------------------------------------------------------------------------------------------


def _stream(bench: Bench, name: str, order: int) -> Run:
    return bench.run(name, order)


def _singles(bench: Bench, name: str) -> str:
    return f"{bench.singles_of(name).edit.mean():.0%} of the edits right"


def _batch(bench: Bench, size: int) -> str:
    row = batch_cost(bench.profile, size, bench.results)
    return f"{row['seconds_per_edit']:.2f} s/edit, at most {row['peak_mb']:.0f} MB"


# ---- committed streams, run again ------------------------------------------------------------------------------------


def _rotation(bench: Bench) -> tuple[str, int] | None:
    """The committed stream whose beginning is run again: another one after every change of the library."""
    there = [(n, o) for model, n, o in committed_runs() if model == bench.label and n in bench.streams]
    if not there:
        return None
    digest = hash_files(sorted(PACKAGE.rglob("*.py")))
    return there[int(hashlib.sha256(digest.encode()).hexdigest(), 16) % len(there)]


def _slice(bench: Bench) -> str:
    """The beginning of some committed streams of the model beside, run again."""
    return "; ".join(f"{name} {_check(bench, name, bench.profile.orders[0], SLICE_EDITS)}" for name in SLICE)


def _check(bench: Bench, name: str, order: int, edits: int = CHECK_EDITS) -> str:
    """Run the first edits of a committed stream again; KeditError when they differ by more than the margin."""
    old = bench.committed(name, order)
    if old is None:
        return "is of another model or size; not compared"
    if len(old.edits.batch) and old.edits.batch[0] > edits:
        return f"is one batch of {old.edits.batch[0]}; not run again"
    new = bench.run(name, order, n_edits=edits)
    difference = (new.edits.probability_last - old.edits.probability_last[: len(new.edits)]).abs()
    if not difference.median() <= CHECK_MARGIN:
        raise KeditError(
            f"the committed stream {name} order {order} is not reproduced: its optimised probability differs by "
            f"{difference.median():.3f} in the median of {len(new.edits)} edits; run make sweep and commit figures/data"
        )
    apart = (new.curve("accuracy", "untouched") - old.curve("accuracy", "untouched")).abs().max()
    if apart > CHECK_FACTS:
        raise KeditError(f"the committed stream {name} order {order}: its unrelated facts differ by {apart:.2f}")
    return f"reproduced: |Δp| median {difference.median():.1e}, largest {difference.max():.1e}, facts {apart:.2f}"


# ---- what it will cost -----------------------------------------------------------------------------------------------


def budget(bench: Bench, names, orders) -> pd.DataFrame:
    """One row per stream and order: edits, seconds per edit and minutes with all probes, as in the committed run of
    that stream of the lowest order (NaN: there is none)."""
    rows = []
    for name in names:
        runs = (bench.committed(name, order) for order in bench.profile.orders)
        known, each, probes = next((run for run in runs if run is not None), None), float("nan"), float("nan")
        if known:
            each, probes = known.edits.seconds.mean(), known.curve("seconds", "probes").sum()
        n = len(bench.edits_of(name))
        rows += [(name, order, n, each, (n * each + probes) / 60) for order in orders]
    return pd.DataFrame(rows, columns=["stream", "order", "edits", "s/edit", "minutes"]).round(2)


def run(profile_name: str, which_orders: str, which: str, plan_only: bool = False) -> None:
    """`kedit sweep`: the streams `which` of a profile for orders such as "1,2", or what that costs."""
    profile = load_profile(profile_name)
    names, known = list(dict.fromkeys(groups_of(profile).get(which, which.split(",")))), every_stream(profile)
    if unknown := [n for n in names if n not in known]:
        raise KeditError(f"stream {unknown[0]!r}: is unknown; there are {', '.join(known)}")
    orders = sorted(set(parse_orders(which_orders)))
    if orders[-1] > LAST_ORDER:
        raise KeditError(f"--orders {which_orders}: the last order is {LAST_ORDER}")
    plan = budget(Bench(profile, progress=False), names, orders)
    print(plan.to_string())
    print(
        f"{plan.edits.sum()} edits, about {plan.minutes.sum():.0f} minutes of one core, probes included, as the same "
        f"streams took before; {plan.minutes.isna().sum()} of {len(plan)} never ran and are not counted"
    )
    if not plan_only:
        run_streams(profile, orders, names, commit=True)
