"""Run the streams of a profile side by side: `kedit sweep --help` (make sweep).

`make reproduce` runs the live orders through here. Further orders and other λ run once in a while, and their tables are
committed in figures/data.
"""

import pandas as pd

from ..data.config import LAST_ORDER, Profile, load_profile
from ..errors import KeditError
from ..streams.bench import Bench, committed_runs
from ..streams.cost import batch_cost
from ..streams.named_streams import groups_of, streams_of
from ..streams.run import Run
from ..streams.store import RunFolder, write_tables
from .execution import PACKAGE, hash_files, parse_orders
from .workers import in_workers

AGAIN = 40  # edits of a committed stream that is run again
BESIDE = ("memit", "rome")  # streams of the model beside that are run again each time
CHECK_FACTS = 0.15  # largest accepted difference in unrelated facts right: three standard errors of a share of 100
CHECK_MARGIN = 0.05  # largest accepted median difference of the optimised probability over them


def run_streams(profile: Profile, orders, names=None, commit: bool = False) -> None:
    """Run `names` (default: the profile's live streams) for each order on the workers, into results/; with the live
    streams also the single edits, the single batches, and the beginning of committed streams.

    Errors and Ctrl-C as in `in_workers`.
    """
    if not orders:
        return
    bench = Bench(profile, progress=False)
    bench.moments  # measured once, before the workers want them  # noqa: B018
    # The costliest first, so that the last worker does not run alone: single edits, of these ROME's with 21 contexts.
    which = [(bench.streams[name], name, order) for name in names or streams_of(profile) for order in orders]
    which.sort(key=lambda one: (one[0].batch_size != 1, "rome" not in one[0].method))
    asked = {f"{name} order {order}": (name, order) for _, name, order in which}
    tasks = {task: (Bench.run, profile, *stream) for task, stream in asked.items()}
    if names is None:
        if profile.beside:
            beside = load_profile(profile.beside)
            again = {f"{beside.name} {n}, first edits again": (_again, beside, n, beside.orders[0]) for n in BESIDE}
            tasks = again | tasks
        if there := [run[1:] for run in committed_runs() if run[0] == bench.label and run[1] in bench.streams]:
            other = there[int(hash_files(sorted(PACKAGE.rglob("*.py"))), 16) % len(there)]  # for each version of kedit
            tasks["committed {} order {}, first edits again".format(*other)] = (_again, profile, *other)
        for name in ("memit", "rome"):
            tasks[f"{profile.n_single} single edits, {name}"] = (_singles, profile, name)
        for size in sorted(profile.mass_sizes, reverse=True):
            tasks[f"one batch of {size}"] = (_batch, profile, size)

    def took(task: str, result) -> str:
        return _store(bench, *asked[task], result, commit) if task in asked else result

    in_workers(tasks, profile, took)


def _store(bench: Bench, name: str, order: int, run: Run, commit: bool) -> str:
    """Store the tables of a finished run here, in case its worker has a results folder of its own; a line about it."""
    if run.path is not None and not (ours := RunFolder(bench.results / "streams" / run.path.name)).finished():
        write_tables(ours.path, "", run.edits, run.checkpoints, run.manifest)
    if commit:
        bench.commit(name, order, run=run)
    seconds, last = run.edits.seconds.mean(), run.edits.probability_last.iloc[-25:].median()
    probes = run.curve("seconds", "probes").sum()
    return f"{len(run.edits)} edits, {seconds:.2f} s/edit, probes {probes:.0f} s, median p of the last 25 {last:.3g}"


def _singles(bench: Bench, name: str) -> str:
    return f"{bench.singles_of(name).edit.mean():.0%} of the edits right"


def _batch(bench: Bench, size: int) -> str:
    row = batch_cost(bench.profile, size, bench.results)
    return f"{row['seconds_per_edit']:.2f} s/edit, at most {row['peak_mb']:.0f} MB"


def _again(bench: Bench, name: str, order: int) -> str:
    """Run the first edits of a committed stream again; KeditError when they differ by more than the margin."""
    old = bench.committed(name, order)
    if old is None or (old.edits.batch > AGAIN).any():
        return "not run again: it is of another model or size, or one larger batch"
    new = bench.run(name, order, n_edits=AGAIN)
    difference = (new.edits.probability_last - old.edits.probability_last[: len(new.edits)]).abs()
    facts = (new.curve("accuracy", "untouched") - old.curve("accuracy", "untouched")).abs().max()
    found = f"|Δp| median {difference.median():.1e}, largest {difference.max():.1e}, unrelated facts {facts:.2f}"
    if not difference.median() <= CHECK_MARGIN or facts > CHECK_FACTS:
        raise KeditError(
            f"the committed stream {name} order {order} is not reproduced: {found}; run make sweep and commit "
            "figures/data"
        )
    return f"reproduced: {found}"


def run(profile_name: str, which_orders: str, which: str, plan_only: bool = False) -> None:
    """`kedit sweep`: the streams `which` of a profile for orders such as "1,2", after what that costs."""
    profile, orders = load_profile(profile_name), sorted(set(parse_orders(which_orders)))
    if orders[-1] > LAST_ORDER:
        raise KeditError(f"--orders {which_orders}: the last order is {LAST_ORDER}")
    bench, names = Bench(profile, progress=False), list(groups_of(profile).get(which, dict.fromkeys(which.split(","))))
    plan = pd.DataFrame([_cost(bench, name) for name in names], names, ["edits", "s/edit", "minutes"])
    print(plan.round(2).to_string())
    minutes, unknown = plan.minutes.sum() * len(orders), plan.minutes.isna().sum()
    print(
        f"{len(orders)} orders of these, about {minutes:.0f} minutes of one core, probes included, as the same streams "
        f"took before; {unknown} of {len(plan)} never ran and are not counted"
    )
    if not plan_only:
        run_streams(profile, orders, names, commit=True)


def _cost(bench: Bench, name: str) -> dict:
    """Edits of a stream; seconds per edit and minutes with all probes, if there is a committed run of it."""
    row = {"edits": len(bench.edits_of(name))}
    for known in filter(None, (bench.committed(name, order) for order in bench.profile.orders)):
        each, probes = known.edits.seconds.mean(), known.curve("seconds", "probes").sum()
        return row | {"s/edit": each, "minutes": (row["edits"] * each + probes) / 60}
    return row
