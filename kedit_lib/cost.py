"""What one big batch costs: time, peak memory and what it keeps, each size in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from .durable import replacing
from .errors import KeditError, first_line, program
from .params import Profile
from .store import ALGORITHMS, key_of, versions
from .streams import Bench


def batch_cost(profile: Profile, size: int, results: Path) -> dict:
    """One MEMIT batch of `size` edits on the original weights: a row with batch, seconds_per_edit, peak_mb (largest
    resident memory of a process that does only this), and accuracies by free generation, edit by edit.
    """
    folder = Path(results) / "mass"
    folder.mkdir(parents=True, exist_ok=True)
    asked = profile.model_dump(exclude={"live_orders", "workers"})
    path = folder / f"batch{size}-{key_of(profile=asked, size=size, algorithms=ALGORITHMS, versions=versions())}.json"
    if not path.exists():
        handed = folder / f".profile-{os.getpid()}-{size}.json"
        handed.write_text(profile.model_dump_json())
        command = [sys.executable, "-m", "kedit_lib.cost", str(handed), str(size), str(results), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        handed.unlink()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise KeditError(f"batch of {size} edits: {last}")
    return json.loads(path.read_text())


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB.

    Linux tells it for the program that is running now; getrusage also counts the process it was started from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(profile: Profile, size: int, results: Path) -> dict:
    import torch

    torch.set_num_threads(profile.threads)
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


@program
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description="Measure one batch; used by Bench.mass_table.")
    parser.add_argument("profile", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    try:
        profile = Profile.model_validate_json(args.profile.read_text())
    except (OSError, ValueError) as error:
        raise KeditError(f"{args.profile}: is no profile in JSON ({first_line(error)}); give one") from None
    if args.size < 1:
        raise KeditError(f"size {args.size}: must be at least 1")
    row = _measure(profile, args.size, args.results)
    with replacing(args.out) as partial:
        partial.write_text(json.dumps(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
