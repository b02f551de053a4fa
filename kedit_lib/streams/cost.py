"""What one big batch costs, measured in a process of its own."""

import os
import re
import resource
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch

from ..data.atomic import cached
from ..data.config import Profile
from ..data.provenance import ALGORITHMS, key_of, versions
from ..errors import KeditError
from .bench import Bench


def batch_cost(profile: Profile, size: int, results: Path) -> dict:
    """One MEMIT batch of `size` edits on the original weights, kept in results/mass: batch, N/d_ff, seconds_per_edit,
    peak_mb (of a process that does only this), perplexity, and by cohort the accuracy by free generation."""
    asked = profile.model_dump(exclude={"live_orders", "workers"})
    key = key_of(profile=asked, name="memit", size=size, algorithms=ALGORITHMS, versions=versions())

    def measured() -> dict:
        with ProcessPoolExecutor(1, get_context("spawn"), _begin, (profile.threads,)) as process:
            try:
                return process.submit(_batch, profile, size, results).result()
            except (BrokenProcessPool, KeditError) as error:
                raise KeditError(f"mass of memit, {size} edits: {error}") from error

    return cached(Path(results) / "mass" / f"memit{size}-{key}.json", measured)


def _begin(threads: int) -> None:
    """The process ends with the one that began it, however that one ends."""
    torch.set_num_threads(threads)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB. On Linux by /proc: getrusage also counts the process that
    started this one."""
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _batch(profile: Profile, size: int, results: Path) -> dict:
    bench = Bench(profile, results=results, progress=False)
    method, edits = bench.method("memit"), bench.edits(0, size)
    given = bench.inputs(method)
    method.apply(bench.model, edits[:1], **given)  # factorises C, which a stream does once
    bench.model.restore()
    begin = time.perf_counter()
    method.apply(bench.model, edits, **given)
    row = {"batch": size, "N/d_ff": size / bench.model.d_ff}
    row |= {"seconds_per_edit": (time.perf_counter() - begin) / size, "peak_mb": peak_memory()}
    for found in (found for probe in bench.probes(edits, families=False) for found in probe(bench.model, edits)):
        if found["metric"] == "perplexity":
            row["perplexity"] = found["value"]
        elif found["metric"] == "accuracy" and found["cohort"] != "latest edits":
            row[found["cohort"]] = found["value"]
    return row
