"""Run the streams of a profile in worker processes: `kedit sweep --help` (make sweep).

`make reproduce` runs the live orders through here; further orders and other λ run once in a while and
their tables are committed in figures/data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import pandas as pd

from ..data.atomic import replacing
from ..data.config import LAST_ORDER, Profile, load_profile, results_folder
from ..data.provenance import ALGORITHMS, commit, now, versions
from ..errors import KeditError
from ..streams.bench import Bench, committed_runs, data_folder
from ..streams.cost import keep_memory
from ..streams.named_streams import every_stream, groups_of, streams_of
from .stamps import PACKAGE, hash_files

MEASUREMENTS = ("decomposition", "foretold", "lifting", "memory", "scaling")
CHECK_EDITS = 50  # edits of the committed stream that is run again
CHECK_FACTS = 0.15  # and of unrelated facts right: three standard errors of a share of a hundred
SLICE, SLICE_EDITS = ("memit", "rome"), 40  # streams of the model beside, and how many of their edits, run each time
CHECK_MARGIN = 0.05  # largest accepted median difference of the optimised probability over them


def run_streams(profile: Profile, orders, workers: int, names=None, commit: bool = False) -> None:
    """Run `names` (default: the profile's live streams) for each order, `workers` one-thread processes
    side by side, into results/; with the live streams also the single edits and the single batches.
    Raises KeditError when one fails, after the others have finished. After Ctrl-C the streams that run finish their
    edit and write a checkpoint, and no other is begun.
    """
    names = list(streams_of(profile)) if names is None else names
    # Long ones first, so that the last worker does not run alone.
    tasks = sorted(((name, order) for name in names for order in orders), key=lambda task: _weight(profile, task[0]))
    if not tasks:
        return
    Bench(profile, progress=False).moments  # measured once, before the workers want it  # noqa: B018
    live = names == list(streams_of(profile)) and not commit
    checks = [_rotation(profile)] if live else []
    begun, failures = time.monotonic(), []
    os.environ.setdefault("OMP_NUM_THREADS", str(profile.threads))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_wait_for_tasks) as pool:
        futures = {}
        if live and profile.beside:
            futures[pool.submit(_task, _slice, load_profile(profile.beside))] = f"{profile.beside}, first edits again"
        for name, order in tasks:
            futures[pool.submit(_task, _work, profile, name, order, commit)] = f"{name} order {order}"
        for check in filter(None, checks):
            futures[pool.submit(_task, _check, profile, *check)] = (
                f"committed {check[0]} order {check[1]}, first {CHECK_EDITS} again"
            )
        for name in ("memit", "rome") if live else ():
            futures[pool.submit(_task, _singles, profile, name)] = f"{profile.n_single} single edits, {name}"
        for size in sorted(profile.mass_sizes, reverse=True) if live else ():
            futures[pool.submit(_task, _batch, profile, size)] = f"one batch of {size}"
        try:
            for n, future in enumerate(as_completed(futures), 1):
                try:
                    print(
                        f"[{n}/{len(futures)}, {time.monotonic() - begun:.0f} s] {futures[future]}: {future.result()}",
                        flush=True,
                    )
                except Exception as error:  # one stream's failure must not lose the others
                    failures.append(f"{futures[future]}: {error}")
                    print(f"[{n}/{len(futures)}] FAILED {failures[-1]}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise KeditError(f"{len(failures)} streams failed, first: {failures[0]}")


def _wait_for_tasks() -> None:
    """What a worker does at Ctrl-C between tasks: it ends no process that others wait for, and begins nothing more."""
    signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.SIG_IGN))


def budget(bench: Bench, names, orders) -> pd.DataFrame:
    """A row a stream and order: edits, seconds an edit and minutes with all probes, as in the committed run of that
    stream of the lowest order (NaN: there is none)."""
    rows = []
    for name in names:
        runs = (bench.committed(name, order) for order in bench.profile.orders)
        known = next((run for run in runs if run is not None), None)
        each = known.edits.seconds.mean() if known else float("nan")
        probes = known.curve("seconds", "probes").sum() if known else float("nan")
        n = len(bench.edits_of(name))
        rows += [(name, order, n, each, (n * each + probes) / 60) for order in orders]
    return pd.DataFrame(rows, columns=["stream", "order", "edits", "s/edit", "minutes"]).round(2)


def _task(work, *arguments) -> str:
    """`work` in a worker, where Ctrl-C ends it, and keeps this worker from beginning another."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = work(*arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise
    except BaseException:
        _wait_for_tasks()
        raise
    _wait_for_tasks()
    return done


def run_measurements(profile: Profile, orders, which: str) -> None:
    """What notebooks read beside streams, into figures/data: "decomposition", "foretold" or "lifting" of their streams
    for each order; the "memory" of every method, or the "scaling" of a family of lab models, once."""
    from ..analysis import width_family

    if which == "scaling":
        width_family.sweep(results_folder(), data_folder(), profile.workers, profile.threads)
        return
    if which == "memory":
        print(keep_memory(Bench(profile, progress=False), data_folder()).to_string())
        return
    bench = Bench(profile, progress=False)
    bench.moments  # measured once, before the workers want it  # noqa: B018
    names = _measured_streams(which)
    tasks = [(profile, which, name, order) for name in names for order in orders]
    os.environ.setdefault("OMP_NUM_THREADS", str(profile.threads))
    with ProcessPoolExecutor(profile.workers, mp_context=get_context("spawn")) as pool:
        for task, said in zip(tasks, pool.map(_measurement, *zip(*tasks, strict=True)), strict=True):
            print(f"{which} of {task[2]} order {task[3]}: {said}", flush=True)
    about = {"streams": list(names), "orders": orders, "finished": now(), "algorithms": ALGORITHMS}
    with replacing(data_folder() / f"{bench.label}.{which}.manifest.json") as part:
        part.write_text(json.dumps({**about, "versions": versions(), "commit": commit()}, indent=1) + "\n")


def _measured_streams(which: str) -> tuple[str, ...]:
    from ..analysis import decomposition, forecast, recovery

    return {"decomposition": decomposition, "foretold": forecast, "lifting": recovery}[which].STREAMS


def planned(profile: Profile, orders, which: str) -> str:
    """What `run_measurements` would make, in edits."""
    from ..analysis import decomposition, forecast, recovery, width_family

    if which == "scaling":
        edits = sum(width_family.planned(recipe, len(width_family.ORDERS)) for recipe in width_family.family().values())
        return f"{edits} edits at most, on {len(width_family.family())} models; all but the lab model are trained first"
    if which == "memory":
        return "a few edits of each method, each in a process of its own"
    tried = len(recovery.HEALED) + 3
    each = {
        "decomposition": 2 * min(decomposition.EDITS, profile.n_edits),
        "foretold": forecast.SAMPLE,
        "lifting": max(recovery.AT) + len(recovery.AT) * recovery.SAMPLE * tried,
    }[which]
    return f"{each * len(_measured_streams(which)) * len(orders)} edits in {len(orders)} orders"


def _measurement(profile: Profile, which: str, name: str, order: int) -> str:
    import torch

    from ..analysis import decomposition, recovery
    from ..analysis.forecast import keep_foretold
    from ..analysis.measured import keep

    torch.set_num_threads(profile.threads)
    bench, folder = Bench(profile, progress=False), data_folder()
    if which == "decomposition":
        table = keep(bench, name, order, decomposition.WHAT, lambda: decomposition.measure(bench, name, order), folder)
        found = decomposition.shares(table).iloc[-1].to_dict()
    elif which == "lifting":
        kept = keep(bench, name, order, recovery.WHAT, lambda: recovery.measure(bench, name, order), folder)
        found = kept[kept.edits_done == kept.edits_done.max()].groupby("budget", sort=False).p_last.median().to_dict()
    else:
        found = keep_foretold(bench, name, order, folder)
    return ", ".join(f"{key} {value:.3g}" for key, value in found.items())


def _weight(profile: Profile, name: str) -> int:
    """Sort key, the costliest first: 21 contexts cost more than 6, single edits more than batches."""
    stream = every_stream(profile)[name]
    if stream.pruned:
        return 3  # made of another one, which is then finished
    return (0 if "rome" in stream.method else 1) if stream.batch_size == 1 else 2


def _work(profile: Profile, name: str, order: int, commit: bool) -> str:
    import torch

    torch.set_num_threads(profile.threads)
    bench = Bench(profile, progress=False)
    run = bench.run(name, order)
    if commit:
        bench.commit(name, order)
    last = run.edits.iloc[-25:]
    probes = run.checkpoints.query("cohort == 'probes'")["value"].sum()
    return (
        f"{len(run.edits)} edits, {run.edits.seconds.mean():.2f} s/edit, probes {probes:.0f} s, "
        f"median p of the last 25 {last.probability_last.median():.3g}"
    )


def _singles(profile: Profile, name: str) -> str:
    import torch

    torch.set_num_threads(profile.threads)
    table = Bench(profile, progress=False).singles_of(name)
    return f"{table.edit.mean():.0%} of the edits right"


def _batch(profile: Profile, size: int) -> str:
    from ..streams.cost import batch_cost

    row = batch_cost(profile, size, Bench(profile, progress=False).results)
    return f"{row['seconds_per_edit']:.2f} s/edit, at most {row['peak_mb']:.0f} MB"


def _rotation(profile: Profile) -> tuple[str, int] | None:
    """The committed stream whose beginning is run again this time: another one after every change of the library."""
    label = profile.label or profile.model.split("/")[-1]
    there = [(n, o) for model, n, o in committed_runs() if model == label and n in every_stream(profile)]
    if not there:
        return None
    digest = hash_files(sorted(PACKAGE.rglob("*.py")))
    return there[int(hashlib.sha256(digest.encode()).hexdigest(), 16) % len(there)]


def _slice(profile: Profile) -> str:
    """The live part of the model beside: the beginning of its committed streams, run again."""
    return "; ".join(f"{name} {_check(profile, name, profile.orders[0], SLICE_EDITS)}" for name in SLICE)


def _check(profile: Profile, name: str, order: int, edits: int = CHECK_EDITS) -> str:
    """Run the first edits of a committed stream again; KeditError when they differ by more than the margin."""
    import torch

    torch.set_num_threads(profile.threads)
    bench = Bench(profile, progress=False)
    old = bench.committed(name, order)
    if old is None:
        return "is of another model or size; not compared"
    if len(old.edits.batch) and old.edits.batch[0] > edits:
        return f"is one batch of {old.edits.batch[0]}; not run again"
    new = bench.run(name, order, n_edits=edits)
    difference = (new.edits.probability_last - old.edits.probability_last[: len(new.edits)]).abs()
    if not difference.median() <= CHECK_MARGIN:
        raise KeditError(
            f"the committed stream {name} order {order} does not come out again: its optimised probability differs by "
            f"{difference.median():.3f} in the median of {len(new.edits)} edits; run make sweep and commit figures/data"
        )
    apart = (new.curve("accuracy", "untouched") - old.curve("accuracy", "untouched")).abs().max()
    if apart > CHECK_FACTS:
        raise KeditError(f"the committed stream {name} order {order}: its unrelated facts differ by {apart:.2f}")
    return f"comes out again: |Δp| median {difference.median():.1e}, largest {difference.max():.1e}, facts {apart:.2f}"


def run(profile_name: str, which_orders: str, which: str, plan_only: bool = False) -> None:
    """`kedit sweep`: the streams or measurements `which` of a profile for orders such as "1,2", or what that costs."""
    profile = load_profile(profile_name)
    known = every_stream(profile)
    groups = groups_of(profile)
    names = list(groups.get(which, which.split(",")))
    if which not in MEASUREMENTS and (unknown := [n for n in names if n not in known]):
        raise KeditError(f"stream {unknown[0]!r}: is unknown; there are {', '.join(known)}")
    if not re.fullmatch(r"\d+(,\d+)*", which_orders):
        raise KeditError(f"--orders {which_orders}: must be numbers with commas, such as 1,2")
    names, orders = list(dict.fromkeys(names)), sorted({int(o) for o in which_orders.split(",")})
    if orders[-1] > LAST_ORDER:
        raise KeditError(f"--orders {which_orders}: the last order is {LAST_ORDER}")
    if which in MEASUREMENTS:
        print(f"{which}: {planned(profile, orders, which)}", flush=True)
        if not plan_only:
            run_measurements(profile, orders, which)
        return
    plan = budget(Bench(profile, progress=False), names, orders)
    print(plan.to_string())
    print(
        f"{plan.edits.sum()} edits, about {plan.minutes.sum():.0f} minutes of one core, probes included, as the same "
        f"streams took before; {plan.minutes.isna().sum()} of {len(plan)} never ran, and are not in it"
    )
    if not plan_only:
        run_streams(profile, orders, profile.workers, names, commit=True)
