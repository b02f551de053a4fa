"""What one big batch costs, and what memory a method needs: each measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.cached import cached
from ..data.config import Profile
from ..data.provenance import ALGORITHMS, key_of, versions
from ..errors import KeditError, first_line
from .bench import Bench
from .named_streams import groups_of

SOME = 10  # edits one at a time that are measured


def batch_cost(profile: Profile, size: int, results: Path) -> dict:
    """One MEMIT batch of `size` edits on the original weights: a row with batch, seconds_per_edit, peak_mb (largest
    resident memory of a process that does only this), and accuracies by free generation, edit by edit.
    """
    return _apart(profile, "memit", size, results, "mass")


def memory_cost(profile: Profile, name: str, results: Path) -> dict:
    """What a stream of `every_stream` needs beside the model: a row with edits (SOME one at a time, or the whole
    batch), seconds_per_edit, which the core spent on each after a first one had factorised what a stream factorises
    once, and memory_mb, the peak over what was resident before, when only the model was there: second moments, their
    factors, targets, projections, the history of these few edits. C must have been measured before (`bench.moments`).
    """
    return _apart(profile, name, 0, results, "memory")


def keep_memory(bench: Bench, folder: Path) -> pd.DataFrame:
    """`memory_cost` of every main and other stream, one after the other, into `<folder>/<label>.memory.<n>.csv`."""
    bench.moments  # measured here, not in a process that is looked at  # noqa: B018
    groups = groups_of(bench.profile)
    streams = [*groups["main"].values(), *groups["others"].values()]
    # PRUNE and the anchored norm only bound what another method finds, and cost what it costs.
    names = [s.name for s in streams if not (s.pruned or s.anchored)]
    table = pd.DataFrame([memory_cost(bench.profile, name, bench.results) for name in names])
    with replacing(folder / f"{bench.label}.memory.{bench.profile.n_edits}.csv") as partial:
        table.to_csv(partial, index=False)
    return table


def _apart(profile: Profile, name: str, size: int, results: Path, what: str) -> dict:
    """The row that a process of its own measures, or that it left in results/`what` before."""
    asked = profile.model_dump(exclude={"live_orders", "workers"})
    key = key_of(profile=asked, name=name, size=size, algorithms=ALGORITHMS, versions=versions())

    def measured() -> dict:
        with tempfile.TemporaryDirectory() as scratch:
            handed, row = Path(scratch) / "profile.json", Path(scratch) / "row.json"
            handed.write_text(profile.model_dump_json())
            command = [sys.executable, "-m", "kedit_lib", "cost", handed, name, size, results, row]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise KeditError(f"{what} of {name}{f', {size} edits' if size else ''}: {last}")
            return json.loads(row.read_text())

    return cached(Path(results) / what / f"{name}{size or ''}-{key}.json", measured)


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB.

    Linux tells it for the program that is running now; getrusage also counts the process it was started from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """From now on `peak_memory` tells the largest from here on, where the system can (Linux)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _memory(profile: Profile, name: str, results: Path) -> dict:
    bench = Bench(profile, results=results, progress=False)
    stream, method = bench.streams[name], bench.method(name)
    n = SOME if stream.batch_size == 1 else stream.batch_size or profile.n_edits
    edits, contexts = bench.edits(0, n), bench.contexts(method)
    bench.model.hf(bench.model.tokenizer(edits[0].text, return_tensors="pt").input_ids)  # what torch itself keeps
    forget_peak()
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


def _batch(profile: Profile, size: int, results: Path) -> dict:
    import torch

    bench = Bench(profile, results=results, progress=False)
    method, edits, moments = bench.method("memit"), bench.edits(0, size), bench.moments
    contexts = bench.contexts(method)
    method.apply(bench.model, edits[:1], moments=moments, contexts=contexts)  # factorises C, which a stream does once
    bench.model.restore()
    begin = time.perf_counter()
    outcome = method.apply(bench.model, edits, moments=moments, contexts=contexts)
    seconds = time.perf_counter() - begin
    peak = peak_memory()
    row = {
        "batch": size,
        "N/d_ff": size / bench.model.d_ff,
        "seconds_per_edit": seconds / size,
        "peak_mb": peak,
        "p last (median)": float(torch.tensor([t.probabilities[-1] for t in outcome.targets]).median()),
    }
    for probe in bench.probes(edits, families=False):
        for found in probe(bench.model, edits):
            if found["metric"] in ("accuracy", "perplexity") and found["cohort"] != "latest edits":
                row["perplexity" if found["metric"] == "perplexity" else found["cohort"]] = found["value"]
    return row


def measure(asked: Path, name: str, size: int, results: Path, out: Path) -> None:
    """`kedit cost`: what `_apart` starts. Measures in this process and writes the row to `out`."""
    try:
        profile = Profile.model_validate_json(asked.read_text())
    except (OSError, ValueError) as error:
        raise KeditError(f"{asked}: is no profile in JSON ({first_line(error)}); give one") from None
    if size < 0:
        raise KeditError(f"size {size}: must be at least 0")
    import torch

    torch.set_num_threads(profile.threads)
    row = _batch(profile, size, results) if size else _memory(profile, name, results)
    with replacing(out) as partial:
        partial.write_text(json.dumps(row))
