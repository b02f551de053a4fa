"""Execute the notebooks that are stale: `kedit reproduce --help`.

A profile says what is run. Its streams of edits run first, in parallel, into results/ (`report.sweep`). Then each stale
notebook runs in a process of its own by papermill, with the profile's fields as its parameters. Only a notebook that
ran to its end replaces the earlier output; a failed one is kept aside, and the others still finish.

What is stale is decided by stamps: small files in an ignored folder with a hash of the *content* of everything that an
output was made from, and of the output itself. A fresh clone has none, and executes everything.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ..data.atomic import checksum
from ..data.config import LAB_MODELS, REPOSITORY, find_model_params, params_folder
from ..data.provenance import key_of
from ..errors import KeditError
from ..streams.bench import Bench
from . import notebooks
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

    def work(source: Path) -> None:
        start, before, stamp = time.monotonic(), key(source), stamp_of(source)  # edited while it runs, it stays stale
        stamp.unlink(missing_ok=True)
        error = execute(run, source, parameters[source])
        if error is None and not failed:  # what another failure may have left incomplete stays stale
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
                for process in psutil.Process().children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.terminate()  # its kernel notices by itself that it is alone
                time.sleep(0.1)
            raise


def execute(run: Run, source: Path, parameters: dict[str, Any]) -> str | None:
    """Run one notebook; None if it is in place, else what went wrong, in one line."""
    output, failed = run.executed / source.name, run.results / "failed" / f"{source.stem}.failed.ipynb"
    running = output.with_suffix(".running.ipynb")
    for folder in (run.executed, run.figures, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for left in (running, failed):
        left.unlink(missing_ok=True)
    asked = {"input_path": str(source), "output_path": str(running), "cwd": str(run.sources), "parameters": parameters}
    for _ in range(2):  # twice: a kernel may find its ports taken by one that starts beside it
        code, printed = call([sys.executable, "-m", notebooks.__name__, str(run.root), json.dumps(asked)], run)
        if "Kernel died before replying" not in printed:
            break
    if code == 0:
        os.replace(running, output)
        return None
    error = (printed or f"exit code {code}").splitlines()[-1]
    if not running.exists():
        return error
    os.replace(running, failed)
    return f"{error} (kept: {failed.relative_to(run.root)})"


def call(command: list[str], run: Run) -> tuple[int, str]:
    """Run a command of a notebook to its end: exit code, and what it printed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        log = Path(scratch) / "log"  # a pipe would wait for the command's children too
        with log.open("wb") as printed:
            options = {"stdout": printed, "stderr": subprocess.STDOUT, "env": environment(run, scratch)}
            code = subprocess.run(command, cwd=run.sources, check=False, **options).returncode
        return code, log.read_text(errors="replace").strip()


def environment(run: Run, scratch: str) -> dict[str, str]:
    """The environment of a notebook's process: where outputs go, and nothing of the user's own set-up."""
    threads = str(run.profile.threads)
    inherited = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # figures must go inline
    return inherited | {
        "KEDIT_PARAMS": str(params_folder()),
        "KEDIT_RESULTS": str(run.results),
        "KEDIT_FIGURES": str(run.figures),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",  # sets print in the same order each time
        "TQDM_DISABLE": "1",  # progress bars would put times into the output
        "KEDIT_STATIC": "1",  # nobody is there to press the knobs of live cells
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one in the home folder
        "JUPYTER_RUNTIME_DIR": f"{scratch}/runtime",
        "IPYTHONDIR": f"{scratch}/ipython",  # no start-up files, no shared history
    }
