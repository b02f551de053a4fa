"""Run the streams of a profile side by side on Dask: `make reproduce` the live orders, `kedit sweep` further orders and
settings, into figures/data. Workers are processes of this machine, or those of the scheduler that SCHEDULER names."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import pandas as pd
import torch
from distributed import Client, Reschedule, Status, as_completed, get_worker

from ..data.config import LAST_ORDER, Profile, groups_of, load_profile, read_yaml, streams_of
from ..data.provenance import ALGORITHMS, key_of
from ..errors import KeditError, explained
from ..streams import interrupts
from ..streams.bench import Bench, batch_cost, committed_runs
from ..streams.store import Run, RunFolder, write_tables
from .reproduce import PACKAGE, hash_files, parse_orders

AGAIN = 40  # edits of a committed stream that is run again
BESIDE = ("memit", "rome")  # streams of the model beside that are run again each time
CHECK_FACTS = 0.15  # largest accepted difference in unrelated facts right: three standard errors of a share of 100
CHECK_MARGIN = 0.05  # largest accepted median difference of the optimised probability over them
LOCAL = read_yaml(Path(__file__).with_name("dask.yaml"))


def run_streams(profile: Profile, orders, names=None, commit: bool = False) -> None:
    """Run `names` (default: the profile's live streams) for each order on the workers, into results/; with the live
    streams also the single edits, the single batches, and the beginning of committed streams. See `in_workers`."""
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
        problem = f"the committed stream {name} order {order} is not reproduced: {found}"
        raise KeditError(f"{problem}; run make sweep and commit figures/data")
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
    took = f"about {minutes:.0f} minutes of one core, probes included, as the same streams took before"
    print(f"{len(orders)} orders of these, {took}; {unknown} of {len(plan)} never ran and are not counted")
    if not plan_only:
        run_streams(profile, orders, names, commit=True)


def _cost(bench: Bench, name: str) -> dict:
    """Edits of a stream; seconds per edit and minutes with all probes, if there is a committed run of it."""
    row = {"edits": len(bench.edits_of(name))}
    for known in filter(None, (bench.committed(name, order) for order in bench.profile.orders)):
        each, probes = known.edits.seconds.mean(), known.curve("seconds", "probes").sum()
        return row | {"s/edit": each, "minutes": (row["edits"] * each + probes) / 60}
    return row


# ---- workers ---------------------------------------------------------------------------------------------------------


def in_workers(tasks: dict[str, tuple], profile: Profile, took: Callable = lambda name, result: result) -> list[Any]:
    """The results of work(bench of the profile, *arguments) for each {name: (work, *arguments)}, one at a time on each
    worker, as they come. took(name, result), called here, gives what is printed and returned instead. A task whose
    worker dies begins again on another one. KeditError when a task fails, after the others have finished, or when the
    scheduler is lost. After Ctrl-C no task is begun; a running stream finishes its edit and writes a checkpoint."""
    begun, found, failures = time.monotonic(), [], []
    group = f"kedit-{key_of(profile=profile.model_dump(exclude={'workers'}), algorithms=ALGORITHMS)}"
    with _client(profile) as client:
        futures = {client.submit(_task, *task, key=(group, name)): name for name, task in tasks.items()}
        try:
            for n, future in enumerate(as_completed(futures), 1):
                name, at = futures[future], f"[{n}/{len(futures)}, {time.monotonic() - begun:.0f} s]"
                try:
                    found.append(took(name, future.result()))
                    print(f"{at} {name}: {found[-1]}", flush=True)
                except CancelledError:
                    lost = f"scheduler {client.scheduler.address}: is lost"
                    raise KeditError(f"{lost}; the same command goes on from what is done") from None
                except Exception as error:  # one task's failure must not lose the others
                    failures.append(f"{name}: {error}")
                    print(f"{at} FAILED {failures[-1]}", flush=True)
        except KeyboardInterrupt:
            print("stopping after this edit; Ctrl-C again stops at once", file=sys.stderr)
            client.cancel(list(futures))
            client.run(_finished, {future.key for future in futures})
            raise
    if failures:
        raise KeditError(f"{len(failures)} of {len(futures)} tasks failed, first: {failures[0]}")
    return found


def _client(profile: Profile) -> Client:
    """A client of the scheduler at SCHEDULER; without one, of `workers` processes that end with it."""
    if address := os.environ.get("SCHEDULER"):
        remedy = "start one by `dask scheduler` and give its tcp://host:port, or leave SCHEDULER out"
        with explained(f"scheduler {address!r}: cannot be reached", remedy):
            client = Client(address, timeout=10)
    else:
        options = {"silence_logs": logging.CRITICAL, "env": {"OMP_NUM_THREADS": profile.threads}}
        options |= {"n_workers": profile.workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        with _deaf(), dask.config.set(LOCAL):
            client = Client(**options)
    shown = client.dashboard_link if find_spec("bokeh") else client.scheduler.address
    print(f"{len(client.scheduler_info(n_workers=-1)['workers'])} workers: {shown}", flush=True)
    return client


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Threads that begin inside, and their processes, never see Ctrl-C; here it waits for the end of the block."""
    resource_tracker.ensure_running()  # it would let Ctrl-C through again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _task(work: Callable, profile: Profile, *arguments) -> Any:
    """`work` in a thread of a worker; a stream stops when nobody waits for it any more or the worker closes."""
    worker = get_worker()
    task = worker.state.tasks[worker.get_current_task()]
    interrupts.unwanted.set(lambda: task.state == "cancelled" or worker.status not in (Status.running, Status.paused))
    multiprocessing.current_process()._config["daemon"] = False  # what a batch needs is measured in its own process
    torch.set_num_threads(profile.threads)
    try:
        return work(Bench(profile, progress=False), *arguments)
    except KeyboardInterrupt:
        raise Reschedule from None  # to go on elsewhere, if it is still wanted


async def _finished(keys, dask_worker) -> None:
    """On a worker: wait until a stream among the cancelled tasks has written its checkpoint."""
    while interrupts.under_way and keys & dask_worker.state.tasks.keys():
        await asyncio.sleep(0.1)
