"""Execute the notebooks that are stale: `kedit reproduce --help`.

A profile says what is run. Its streams of edits run first, in parallel, into results/ (`report.sweep`). Then each stale
notebook runs in a kernel of its own, with the profile's fields as its parameters (`report.notebooks`). Only one that
ran to its end replaces the earlier output; a failed one is kept aside, and the others still finish.

What is stale is decided by stamps: small files in an ignored folder with a hash of the *content* of everything that an
output was made from, and of the output itself. A fresh clone has none, and executes everything.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ..data.atomic import checksum
from ..data.config import LAB_MODELS, REPOSITORY, find_model_params
from ..data.provenance import key_of
from ..errors import KeditError
from ..streams.bench import Bench
from .execution import HOW_ONLY, Run, hash_files, library_files, make_run, parameters_for

CHECKED = 40  # facts that a model without parameters is asked about
LAST = {"00_start_here"}  # shows what the others found, and is run when they have


def find_sources(root: Path, only: str | None = None) -> list[Path]:
    """The notebooks in reading order, or those whose names begin with `only`."""
    every = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in every if path.name.startswith(only or "")]
    if not chosen:
        there = ", ".join(path.stem for path in every) or "none"
        raise KeditError(f"notebooks/: there is no notebook beginning with {only!r}; there are: {there}")
    return chosen


def reproduce_run(*run_arguments, only: str | None = None, force: bool = False) -> int:
    """`reproduce` for the arguments of `make_run`; the exit code: 0, 1 a notebook failed, 2 wrong parameters."""
    try:
        sources = find_sources(REPOSITORY, only)
        run = make_run(REPOSITORY, *run_arguments)
        parameters = {source: parameters_for(run, source) for source in sources}
        prepare(run)
    except KeditError as error:
        print(f"kedit: {error}", file=sys.stderr)
        return 2
    return 1 if reproduce(run, parameters, only, force) else 0


def prepare(run: Run) -> None:
    """Before anything runs on a model that is not the lab's: KeditError when edits or texts do not fit it or it knows
    too few of them; hyperparameters are proposed for one that has none (results/models/<name>.yaml)."""
    profile = run.profile
    if profile.model in LAB_MODELS and profile.edits == profile.texts == "lab":
        return
    os.environ["KEDIT_RESULTS"] = str(run.results)
    bench = Bench(profile, progress=False)
    for order in profile.live_orders:
        bench.edits(order)
    print(bench.facts.selection, flush=True)
    if find_model_params(profile.model) is None:
        from ..streams.preflight import check_model

        print(f"{profile.model} has no parameters yet: it is checked, and some are proposed", flush=True)
        print(check_model(bench.model, bench.facts.some(CHECKED), profile).to_string(), flush=True)


def reproduce(run: Run, parameters: dict[Path, dict[str, Any]], only: str | None, force: bool) -> int:
    """Run what is stale of these notebooks, each with its parameters; how many things failed."""

    def key(source: Path) -> str:
        files = [source, *library_files(run.root)]
        if source.stem in LAST:
            files += sorted(table for table in run.figures.glob("*.csv") if table.name[:2] != source.name[:2])
        values = [parameters[source], run.profile.model_dump(exclude=HOW_ONLY)]
        return key_of(files=hash_files(files), values=values)

    def stamp_of(source: Path) -> Path:
        return run.root / ".stamps" / run.label / f"{source.stem}.json"

    def outdated(source: Path) -> bool:
        stamp, output = stamp_of(source), run.executed / source.name
        there = stamp.exists() and output.exists()
        return force or not (there and stamp.read_text() == f"{key(source)} {checksum(output)}\n")

    stale = list(filter(outdated, parameters))
    print(f"profile {run.label}: {len(stale)} notebooks to run, {len(parameters) - len(stale)} current", flush=True)
    if not stale:
        return 0
    begun, done, failed = time.monotonic(), [], []
    try:
        run_streams(run, only)
    except KeditError as error:  # notebooks that do not need the lost streams can still run
        failed.append("streams")
        print(f"FAILED streams  {error}", flush=True)

    from .notebooks import execute  # takes seconds to import

    def work(source: Path) -> None:
        start, before, stamp = time.monotonic(), key(source), stamp_of(source)  # edited while it runs, it stays stale
        stamp.unlink(missing_ok=True)
        error = execute(run, source, parameters[source])
        incomplete = "streams" in failed or (source.stem in LAST and failed)  # lacks what a failure left out
        if error is None and not incomplete:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(f"{before} {checksum(run.executed / source.name)}\n")
        (done if error is None else failed).append(source.stem)
        took = f"{source.stem}  {time.monotonic() - start:.0f} s"
        print(f"ok     {took}" if error is None else f"FAILED {took}  {error}", flush=True)

    for last in (False, True):
        chosen = [s for s in parameters if (s.stem in LAST) == last and (s in stale or outdated(s))]
        side_by_side(work, chosen, run.profile.workers)
    print(f"{len(done)} done, {len(failed)} failed in {time.monotonic() - begun:.0f} s: {run.executed}")
    return len(failed)


def run_streams(run: Run, only: str | None) -> None:
    """Run the profile's streams of edits in parallel, so that notebooks find their rows, and judge the claims: in the
    lab run they are held to the accepted values.

    With `only` a notebook runs just the streams that it needs, itself; that is less work than running all of them.
    """
    if only is None:
        from . import claims, sweep

        os.environ["KEDIT_RESULTS"] = str(run.results)
        sweep.run_streams(run.profile, orders=run.profile.live_orders)
        claims.judge(Bench(run.profile, progress=False), run.figures, hold=run.committed)


def side_by_side(work: Callable[[Path], None], sources: list[Path], workers: int) -> None:
    """Do the work for each notebook, `workers` at a time. On Ctrl-C no further one is begun, and running ones end."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, source) for source in sources]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                for kernel in psutil.Process().children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        kernel.kill()
                time.sleep(0.1)
            raise
