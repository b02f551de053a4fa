"""Work side by side on Dask: on workers of this machine, or on those of the scheduler that SCHEDULER names."""

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
from typing import Any

import dask
import torch
from distributed import Client, Reschedule, Status, as_completed, get_worker

from ..data.config import Profile
from ..data.provenance import ALGORITHMS, key_of
from ..errors import KeditError, first_line
from ..streams import interrupts
from ..streams.bench import Bench

LOCAL = {
    "distributed.scheduler.worker-saturation": 1.0,  # tasks wait for a free worker, the first one first
    "distributed.worker.profile.enabled": False,
    # Dask's own setting makes glibc ask the system for each larger tensor anew: half as fast, or less.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    # A worker beyond its memory is ended and its task goes on elsewhere; it could not spill what torch holds.
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}


def in_workers(tasks: dict[str, tuple], profile: Profile, took: Callable = lambda name, result: result) -> list[Any]:
    """Call work(bench of the profile, *arguments) for each {name: (work, *arguments)}, one at a time on each worker.

    took    (name, result), called here: what is printed and returned in place of the result

    The results, in the order in which they come. A task whose worker dies begins again on another one. KeditError when
    a task fails, after the others have finished, or when the scheduler is lost. After Ctrl-C no task is begun, and a
    stream that is running finishes its edit and writes a checkpoint.
    """
    begun, found, failures = time.monotonic(), [], []
    group = f"kedit-{key_of(profile=profile.model_dump(), algorithms=ALGORITHMS)}"
    with _client(profile) as client:
        futures = {client.submit(_task, *task, key=(group, name)): name for name, task in tasks.items()}
        try:
            for n, future in enumerate(as_completed(futures), 1):
                name, at = futures[future], f"[{n}/{len(futures)}, {time.monotonic() - begun:.0f} s]"
                try:
                    found.append(took(name, future.result()))
                    print(f"{at} {name}: {found[-1]}", flush=True)
                except CancelledError:
                    raise KeditError(
                        f"scheduler {client.scheduler.address}: is lost; the same command goes on from what is done"
                    ) from None
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
        try:
            client = Client(address, timeout=10)
        except (OSError, ValueError) as error:
            raise KeditError(
                f"scheduler {address!r}: cannot be reached ({first_line(error)}); start one by `dask scheduler` and "
                "give its tcp://host:port, or leave SCHEDULER out"
            ) from None
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
