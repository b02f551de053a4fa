"""What one big batch costs, and what memory a method needs: each measured in a process of its own."""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import pandas as pd
import torch

from ..data.atomic import replacing
from ..data.cached import cached
from ..data.config import Profile
from ..data.provenance import ALGORITHMS, key_of, versions
from ..errors import KeditError
from .bench import Bench
from .named_streams import groups_of

SOME = 10  # edits one at a time that are measured


def batch_cost(profile: Profile, size: int, results: Path) -> dict:
    """One MEMIT batch of `size` edits on the original weights: a row with batch, seconds_per_edit, peak_mb (largest
    resident memory of a process that does only this), and accuracies by free generation, edit by edit."""
    return _apart(_batch, profile, "memit", size, results, "mass")


def keep_memory(bench: Bench, folder: Path) -> pd.DataFrame:
    """What each main and other stream needs beside the model, into `<folder>/<label>.memory.<n>.csv`.

    A row each: edits (SOME one at a time, or the whole batch), seconds_per_edit (CPU time, after a first edit has
    factorised what a stream factorises once), and memory_mb, the peak above what the model alone takes.
    """
    bench.moments  # measured here, not in a process whose memory is read  # noqa: B018
    groups = groups_of(bench.profile)
    streams = [*groups["main"].values(), *groups["others"].values()]
    # PRUNE and the anchored norm only bound what another method finds, and cost what it costs.
    names = [s.name for s in streams if not (s.pruned or s.anchored)]
    table = pd.DataFrame([_apart(_memory, bench.profile, name, 0, bench.results, "memory") for name in names])
    with replacing(folder / f"{bench.label}.memory.{bench.profile.n_edits}.csv") as partial:
        table.to_csv(partial, index=False)
    return table


def _apart(measure, profile: Profile, name: str, size: int, results: Path, what: str) -> dict:
    """The row that `measure` gives in a process of its own, kept in results/`what`."""
    asked = profile.model_dump(exclude={"live_orders", "workers"})
    key = key_of(profile=asked, name=name, size=size, algorithms=ALGORITHMS, versions=versions())

    def measured() -> dict:
        begin = {"initializer": _begin, "initargs": (profile.threads,)}
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **begin) as process:
            try:
                return process.submit(measure, profile, name, size, results).result()
            except (BrokenProcessPool, KeditError) as error:
                raise KeditError(f"{what} of {name}{f', {size} edits' if size else ''}: {error}") from error

    return cached(Path(results) / what / f"{name}{size or ''}-{key}.json", measured)


def _begin(threads: int) -> None:
    """In the process apart, which ends with the one that began it, however that one ends."""
    torch.set_num_threads(threads)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB. On Linux by /proc: getrusage also counts the process that
    started this one."""
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory(profile: Profile, name: str, _: int, results: Path) -> dict:
    bench = Bench(profile, results=results, progress=False)
    stream, method = bench.streams[name], bench.method(name)
    n = SOME if stream.batch_size == 1 else stream.batch_size or profile.n_edits
    edits, contexts = bench.edits(0, n), bench.contexts(method)
    bench.model.hf(bench.model.tokenizer(edits[0].text, return_tensors="pt").input_ids)  # what torch itself keeps
    if (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")  # Linux counts the peak from here on
    before = peak_memory()
    given = {"moments": bench.moments if method.needs_moments else None, "contexts": contexts}
    method.apply(bench.model, edits[:1], **given, history=method.new_history(bench.model, given["moments"]))
    bench.model.restore()
    history, step = method.new_history(bench.model, given["moments"]), stream.batch_size or n
    begin = time.process_time()
    for i in range(0, n, step):
        method.apply(bench.model, edits[i : i + step], **given, history=history)
    seconds = (time.process_time() - begin) / n
    return {"stream": name, "edits": n, "seconds_per_edit": seconds, "memory_mb": peak_memory() - before}


def _batch(profile: Profile, name: str, size: int, results: Path) -> dict:
    bench = Bench(profile, results=results, progress=False)
    method, edits = bench.method(name), bench.edits(0, size)
    given = bench.inputs(method)
    method.apply(bench.model, edits[:1], **given)  # factorises C, which a stream does once
    bench.model.restore()
    begin = time.perf_counter()
    method.apply(bench.model, edits, **given)
    row = {
        "batch": size,
        "N/d_ff": size / bench.model.d_ff,
        "seconds_per_edit": (time.perf_counter() - begin) / size,
        "peak_mb": peak_memory(),
    }
    for probe in bench.probes(edits, families=False):
        for found in probe(bench.model, edits):
            if found["metric"] in ("accuracy", "perplexity") and found["cohort"] != "latest edits":
                row["perplexity" if found["metric"] == "perplexity" else found["cohort"]] = found["value"]
    return row
