"""Execute the notebooks that are stale: `kedit reproduce --help`.

A profile says what is run. Its streams of edits run first, in parallel, into results/ (`kedit_lib.report.sweep`);
then each stale notebook runs in a process of its own by papermill, with the profile's fields injected as its
parameters, and reads what the streams left. Only a notebook that ran to its end replaces the earlier output; a failed
one is kept aside, the others still finish, and the exit code says so: 0 all well, 1 a notebook failed, 2 wrong
parameters, 130
stopped by Ctrl-C.
"""

import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kedit_lib.data.config import (
    BUILT_IN,
    LAB_MODELS,
    REPOSITORY,
    Profile,
    find_model_params,
    load_profile,
    params_folder,
)
from kedit_lib.data.yaml_text import dump, parse
from kedit_lib.errors import KeditError
from kedit_lib.report import notebooks, stamps
from kedit_lib.report.processes import Processes

DEFAULT_PROFILE = "lab"  # the run whose outputs are committed
LONGEST_LABEL = 120
CHECKED = 40  # facts that a model without parameters is asked about
LAST = {"00_start_here"}  # shows what the others found, and is run when they have
HOW_ONLY = {"workers", "threads", "live_orders"}  # fields that say how a run is done, not what it shows

# papermill, without an optional check of web addresses that takes 2 seconds to import each time
PAPERMILL = """\
import json, sys
sys.modules['rfc3987_syntax'] = None
import papermill
papermill.execute_notebook(**json.loads(sys.argv[1]), kernel_name='python3', start_timeout=180, progress_bar=False)
"""


@dataclass(frozen=True)
class Run:
    """One execution: an effective profile, and where its outputs go."""

    root: Path
    profile: Profile
    profile_argument: str  # what a notebook hands to load_profile: a name, or the effective profile's file
    label: str  # "lab", "smoke", "lab-n_edits-50": runs with other numbers never overwrite each other

    @property
    def committed(self) -> bool:
        return self.label == DEFAULT_PROFILE

    @property
    def sources(self) -> Path:
        return self.root / "notebooks"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def executed(self) -> Path:
        return self.sources / "executed" if self.committed else self.results / f"executed-{self.label}"

    @property
    def figures(self) -> Path:
        return self.root / "figures" if self.committed else self.results / f"figures-{self.label}"

    def stamp(self, source: Path) -> Path:
        return self.root / ".stamps" / self.label / f"{source.stem}.json"

    def failed(self, source: Path) -> Path:
        return self.results / "failed" / f"{source.stem}.failed.ipynb"


# ---- what to run ----------------------------------------------------------------------------------------------------


def make_run(
    root: Path,
    name: str = DEFAULT_PROFILE,
    model: str | None = None,
    data: str | None = None,
    texts: str | None = None,
    orders: str | None = None,
    fields: Sequence[str] = (),
) -> Run:
    """The effective profile: the one of that name or file, with what the other arguments change."""
    base = load_profile(name)
    overrides = dict(_parse_override(text) for text in fields)
    overrides |= {f: given for f, given in (("model", model), ("edits", data), ("texts", texts)) if given}
    if orders:
        overrides["live_orders"] = list(base.orders) if orders == "all" else _parse_orders(orders)
    profile = load_profile(name, **overrides)
    changed = [f for f in overrides if f not in HOW_ONLY and getattr(profile, f) != getattr(base, f)]
    file, house = Path(name).resolve(), params_folder() / "profiles" / f"{base.name}.yaml"
    parts = [base.name, *(f"{f}-{_short(getattr(profile, f))}" for f in changed)]
    own = name != base.name and file != house  # somebody's own file, whatever name it gives itself
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(["own", *parts] if own else parts)).strip("-")
    if len(label) > LONGEST_LABEL:  # systems allow names of 255 bytes
        label = f"{label[:LONGEST_LABEL].rstrip('-.')}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    if not own and not changed:
        return Run(root, profile, base.name, label)
    return Run(root, profile, _written(profile, label, root), label)


def _short(value: Any) -> str:
    """A value in the name of a folder: of a path its last part, and what tells it from others of that name."""
    if not isinstance(value, str) or value in LAB_MODELS or not os.path.exists(value):
        return str(value)
    path = Path(value).resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def _written(profile: Profile, label: str, root: Path) -> str:
    """Put an effective profile where notebooks find every field of it; its path as seen from notebooks/."""
    name = re.sub(r"[^a-z0-9_-]+", "-", label.lower())
    path = root / "results" / "profiles" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    fields = {**profile.model_dump(), "name": name}
    for field in ("model", "edits", "texts"):  # notebooks run in another folder
        if fields[field] not in LAB_MODELS and os.path.exists(fields[field]):
            fields[field] = str(Path(fields[field]).resolve())
    partial.write_text(dump(fields), encoding="utf-8")
    os.replace(partial, path)
    return os.path.relpath(path, root / "notebooks")


def _parse_override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise KeditError(f"-p {text}: is not name=value; write for example -p n_edits=50")
    if name not in Profile.model_fields or name == "name":
        known = ", ".join(f for f in Profile.model_fields if f != "name")
        raise KeditError(f"-p {text}: there is no parameter {name!r}; there are {known}")
    return name, parse(value, f"-p {text}")  # read as the profile's file is; the profile checks the type


def _parse_orders(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise KeditError(f"--orders {text}: is neither 'all' nor numbers; write for example --orders 0,1")
    return [int(order) for order in text.split(",")]


def find_sources(root: Path, only: str | None = None) -> list[Path]:
    """The notebooks in reading order, or those whose names begin with `only`."""
    every = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in every if path.name.startswith(only or "")]
    if not chosen:
        there = ", ".join(path.stem for path in every) or "none"
        wanted = f" beginning with {only!r}" if only else ""
        raise KeditError(f"notebooks/: there is no notebook{wanted}; there are: {there}")
    return chosen


def parameters_for(run: Run, source: Path) -> dict[str, Any]:
    """What is injected into a notebook: every field of the profile that its parameters cell names."""
    profile, argument = run.profile, run.profile_argument
    names = notebooks.parameters_of(source)
    if notebooks.OWN & set(names) and profile.own and profile.model in LAB_MODELS:
        profile, argument = load_profile(profile.own), profile.own
    values = {**profile.model_dump(), "profile": argument}
    for field in ("model", "edits", "texts"):  # paths are the repository's, and notebooks run in another folder
        there = [path for path in (Path(values[field]).resolve(), run.root / values[field]) if path.exists()]
        if there and values[field] not in BUILT_IN:
            values[field] = os.path.relpath(there[0], run.sources)
    values |= {name: values[field] for name, field in notebooks.RENAMED.items()}
    if unknown := [name for name in names if name not in values]:
        raise KeditError(
            f"{source.name}: parameter {unknown[0]!r} is in no profile; rename it, or add it to kedit_lib.data.config"
        )
    return {name: values[name] for name in names}


def prepare(run: Run) -> None:
    """What a model that is not the lab's is asked before anything runs: whether edits and texts fit it and it knows
    enough of them, and, if it has no hyperparameters yet, which to propose (results/models/<name>.yaml)."""
    profile = run.profile
    if profile.model in LAB_MODELS and profile.edits == profile.texts == "lab":
        return
    from kedit_lib.streams.bench import Bench
    from kedit_lib.streams.preflight import check_model

    os.environ["KEDIT_RESULTS"] = str(run.results)
    bench = Bench(profile, progress=False)
    for order in profile.live_orders:
        bench.edits(order)
    print(bench.facts.selection, flush=True)
    if find_model_params(profile.model) is None:
        print(f"no parameters for {profile.model} yet: it is checked, and some are proposed", flush=True)
        print(check_model(bench.model, bench.facts.some(CHECKED), profile).to_string(), flush=True)


# ---- running it -----------------------------------------------------------------------------------------------------


def run_streams(run: Run, only: str | None) -> None:
    """Run the profile's streams of edits in parallel, so that notebooks find their rows.

    With `--only` a notebook runs just the streams that it needs itself, one after the other: less work than all.
    """
    if only is None and importlib.util.find_spec("kedit_lib.report.sweep"):
        from kedit_lib.report import sweep

        os.environ["KEDIT_RESULTS"] = str(run.results)
        sweep.run_streams(run.profile, orders=run.profile.live_orders, workers=run.profile.workers)


def judge(run: Run, only: str | None) -> None:
    """Measure the claims on those streams and, in the lab run, hold them to the accepted values."""
    if only is None:
        from kedit_lib.report import claims
        from kedit_lib.streams.bench import Bench

        measured = claims.of_bench(Bench(run.profile, progress=False), run.figures)
        counted = claims.verdicts(measured).verdict.value_counts()
        print(f"claims: {', '.join(f'{n} {v}' for v, n in counted.items())}", flush=True)
        if run.committed:
            claims.check(measured)


def environment(run: Run, scratch: str) -> dict[str, str]:
    """The environment of a notebook's process: where outputs go, and nothing of the user's own set-up."""
    threads = str(run.profile.threads)
    changes = {
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
    inherited = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # figures must go inline
    return inherited | changes


def execute(run: Run, source: Path, parameters: dict[str, Any], processes: Processes) -> str | None:
    """Run one notebook; None if it is in place, else what went wrong, in one line."""
    output = run.executed / source.name
    running = output.with_suffix(".running.ipynb")
    failed = run.failed(source)
    for folder in (run.executed, run.figures, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)

    for _ in range(2):  # twice: a kernel may find its ports taken by one that starts beside it
        running.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            log = Path(scratch) / "log"
            asked = {"input_path": str(source), "output_path": str(running), "cwd": str(run.sources)}
            command = [sys.executable, "-c", PAPERMILL, json.dumps({**asked, "parameters": parameters})]
            code = processes.call(command, log, cwd=run.sources, env=environment(run, scratch))
            printed = log.read_text(errors="replace").strip()
        done = _read(running)
        if code == 0 and done is not None:
            notebooks.tidy(done, run.root)
            notebooks.write(done, running)
            os.replace(running, output)
            return None
        if done is not None and notebooks.was_started(done):
            os.replace(running, failed)
            return f"{notebooks.failure_of(done)} (kept: {failed.relative_to(run.root)})"
    running.unlink(missing_ok=True)
    return f"papermill did not start it: {(printed or f'exit code {code}').splitlines()[-1]}"


def _read(path: Path) -> dict[str, Any] | None:
    """A notebook, or None if there is none or it was cut off in the middle."""
    try:
        return notebooks.read(path)
    except (OSError, ValueError):
        return None


def reproduce(run: Run, parameters: dict[Path, dict[str, Any]], only: str | None, force: bool) -> int:
    """Run what is stale of these notebooks, each with its parameters; how many things failed."""

    def key(source: Path) -> str:
        files = [source, *stamps.library_files(run.root)]
        files += sorted([*run.figures.glob("*.md"), *run.figures.glob("claims.csv")]) if source.stem in LAST else []
        return stamps.hash_values(
            stamps.hash_files(files), parameters[source], run.profile.model_dump(exclude=HOW_ONLY)
        )

    def outdated(source: Path) -> bool:
        return force or not stamps.is_current(run.stamp(source), key(source), run.executed / source.name)

    stale = list(filter(outdated, parameters))
    print(f"profile {run.label}: {len(stale)} notebooks to run, {len(parameters) - len(stale)} current", flush=True)
    if not stale:
        return 0
    processes, lost, begun = Processes(), 0, time.monotonic()  # lost: what notebooks would read, and is not there
    try:
        run_streams(run, only)
        judge(run, only)
    except KeditError as error:  # notebooks that do not need the lost streams can still run
        lost = 1
        print(f"FAILED streams  {error}", flush=True)

    def work(source: Path) -> tuple[str | None, float]:
        start, before = time.monotonic(), key(source)  # a source that is edited while it runs stays stale
        run.stamp(source).unlink(missing_ok=True)
        error = execute(run, source, parameters[source], processes)
        if error is None and not lost:  # with a stream lost, the next run must try again
            stamps.write(run.stamp(source), before, run.executed / source.name, time.monotonic() - start)
        return error, time.monotonic() - start

    def side_by_side(sources: list[Path]) -> int:
        failures = 0
        with (
            ThreadPoolExecutor(run.profile.workers) as pool,
            tqdm(total=len(sources), unit="notebook", disable=None) as bar,  # shown on a terminal only
        ):
            futures = {pool.submit(work, source): source for source in sources}
            try:
                for future in as_completed(futures):
                    error, seconds = future.result()
                    failures += error is not None
                    verdict = "ok" if error is None else "FAILED"
                    bar.write(f"{verdict:6} {futures[future].stem}  {seconds:.0f} s{f'  {error}' if error else ''}")
                    sys.stdout.flush()
                    bar.update()
            except BaseException:  # interrupted: leave no process behind
                pool.shutdown(wait=False, cancel_futures=True)
                processes.stop()
                raise
        return failures

    failures = side_by_side([s for s in stale if s.stem not in LAST])
    lost += failures  # what shows the answers of others lacks some of them then, and stays stale
    last = [s for s in parameters if s.stem in LAST and (s in stale or outdated(s))]
    later = side_by_side(last)
    done, failures = len({*stale, *last}) - failures - later, failures + later
    print(f"{done} done, {failures} failed in {time.monotonic() - begun:.0f} s: {run.executed}")
    return lost + later


# ---- from the command line -----------------------------------------------------------------------------------------


def check_sources(only: str | None = None) -> int:
    """Print what is wrong with the notebooks' sources; 1 if anything is."""
    sources = find_sources(REPOSITORY, only)
    faults = [fault for source in sources for fault in notebooks.faults_of_source(source)]
    print("\n".join([*faults, f"{len(sources)} notebook sources, {len(faults)} faults"]))
    return 1 if faults else 0


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
