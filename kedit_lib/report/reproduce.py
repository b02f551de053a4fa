"""Execute the notebooks that are stale: `kedit reproduce --help`. The profile's streams of edits run first
(`report.sweep`), then each stale notebook (`report.notebooks`). One that fails leaves its earlier output, and the
others still finish. Stamps say what is stale: hashes of the *content* of everything that an output was made from, and
of the output itself. A fresh clone has none, and executes everything.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ..data import config
from ..data.atomic import checksum, replacing
from ..data.config import REPOSITORY
from ..data.provenance import key_of, sha256
from ..errors import KeditError, explained
from ..streams.bench import Bench
from ..streams.preflight import check_model

DEFAULT_PROFILE = "lab"  # the run whose outputs are committed
LONGEST_LABEL = 100
HOW_ONLY = {"workers", "threads", "live_orders"}  # fields that say how a run is done, not what it shows
PATHS = ("model", "edits", "texts")  # fields that may be a path; notebooks run in another folder
RENAMED = {"data": "edits"}  # parameters of notebooks that a profile calls otherwise
OWN = {"data", "texts"}  # parameters of the notebook on the reader's own model
PACKAGE = Path(__file__).resolve().parents[1]
CHECKED = 40  # facts that a model is asked about when it is checked
LAST = {"00_start_here"}  # shows what the others found, and is run when they have


class Run:
    """One execution. profile_argument: what a notebook hands to load_profile, a name or the effective profile's file.
    label: "lab", "smoke", "lab-n_edits-50-…"; runs with other numbers never overwrite each other."""

    def __init__(self, root: Path, profile: config.Profile, profile_argument: str, label: str):
        self.root, self.profile, self.profile_argument, self.label = root, profile, profile_argument, label
        self.committed = label == DEFAULT_PROFILE
        self.sources, self.results = root / "notebooks", root / "results"
        self.executed = self.sources / "executed" if self.committed else self.results / f"executed-{label}"
        self.figures = root / "figures" if self.committed else self.results / f"figures-{label}"


def make_run(root, name=DEFAULT_PROFILE, model=None, data=None, texts=None, orders=None, fields=()) -> Run:
    """The run of a profile, by name or file, changed as the options of `kedit reproduce` say (results/profiles)."""
    base = config.load_profile(name)
    overrides = dict(map(_override, fields))
    overrides |= {field: given for field, given in zip(PATHS, (model, data, texts), strict=True) if given}
    if orders:
        overrides["live_orders"] = base.orders if orders == "all" else parse_orders(orders)
    profile = config.load_profile(name, **overrides)
    changed = {field: v for field, v in profile if field not in HOW_ONLY and v != getattr(base, field)}
    house = config.params_folder() / "profiles" / f"{base.name}.yaml"
    own = name != base.name and Path(name).resolve() != house  # somebody's own file, whatever name it gives itself
    if not own and not changed:
        return Run(root, profile, base.name, base.name)
    values = profile.model_dump()
    for field in PATHS:
        if values[field] not in config.LAB_MODELS and os.path.exists(values[field]):
            values[field] = str(Path(values[field]).resolve())
    parts = [base.name, *(f"{field}-{str(v).rsplit('/')[-1]}" for field, v in changed.items())]
    label = "-".join(["own", *parts] if own else parts).lower()
    label = re.sub(r"[^a-z0-9_-]+", "-", label)[:LONGEST_LABEL].strip("-")
    if changed:
        label += f"-{key_of(values={f: v for f, v in values.items() if f not in HOW_ONLY})[:6]}"
    path = root / "results" / "profiles" / f"{label}.yaml"
    with replacing(path) as partial:
        partial.write_text(config.dump({**values, "name": label}), encoding="utf-8")
    return Run(root, profile, os.path.relpath(path, root / "notebooks"), label)


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name == "name":
        raise KeditError(f"-p {text}: must be name=value of a field but the profile's name, such as n_edits=50")
    return name, config.parse(value, f"-p {text}")  # read as the profile's file is; the profile checks the type


def parse_orders(text: str) -> list[int]:
    """Edit orders such as "0,1,2". KeditError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise KeditError(f"--orders {text}: must be numbers with commas, such as 0,1,2")
    return [int(order) for order in text.split(",")]


def parameters_for(run: Run, source: Path) -> dict[str, Any]:
    """What is injected into a notebook: every field of the profile that its parameters cell names."""
    profile, argument, names = run.profile, run.profile_argument, parameters_of(source)
    if OWN & set(names) and profile.own and profile.model in config.LAB_MODELS:
        profile, argument = config.load_profile(profile.own), profile.own
    values = {**profile.model_dump(), "profile": argument}
    for field in PATHS:
        there = [path for path in (Path(values[field]).resolve(), run.root / values[field]) if path.exists()]
        if there and values[field] not in config.BUILT_IN:
            values[field] = os.path.relpath(there[0], run.sources)
    values |= {name: values[field] for name, field in RENAMED.items()}
    if unknown := [name for name in names if name not in values]:
        remedy = "rename it, or add it to kedit_lib.data.config"
        raise KeditError(f"{source.name}: parameter {unknown[0]!r} is in no profile; {remedy}")
    return {name: values[name] for name in names}


def parameters_of(source: Path) -> list[str]:
    """The names that a notebook's one `parameters` cell assigns."""
    with explained(f"{source.name}: is not a notebook", "save it again with JupyterLab"):
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]  # importing nbformat would take seconds
        texts = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(texts) != 1:
        raise KeditError(f"{source.name}: has {len(texts)} cells tagged 'parameters'; tag exactly one")
    return re.findall(r"^(\w+) *=", texts[0], re.MULTILINE)


def library_files(root: Path) -> list[Path]:
    """Every file that all notebooks depend on: code, parameters, pins, committed data, lab models without weights."""
    folders = [PACKAGE, config.params_folder(), root / "figures" / "data", root / "examples"]
    files = [root / "constraints.txt", *(path for folder in folders for path in folder.rglob("*"))]
    return sorted(p for p in files if p.is_file() and p.suffix not in {".safetensors", ".pyc"})


def hash_files(files: Iterable[Path]) -> str:
    """One hash of many files' names and content; of where they lie only the last two folders count."""
    lines = (f"{'/'.join(path.parts[-3:])}\0{checksum(path)}\n" for path in files)
    return sha256("".join(lines))


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
    """Before anything runs on a model that is not the lab's, `check_model` prints what it will cost, and the model is
    asked what it knows. KeditError when edits or texts do not fit it, or it knows too few of them."""
    profile = run.profile
    if profile.model in config.LAB_MODELS and profile.edits == profile.texts == "lab":
        return
    os.environ["KEDIT_RESULTS"] = str(run.results)
    bench = Bench(profile, progress=False)
    some = None if profile.edits == "world" else bench.facts.some(CHECKED)  # which the model is asked about first
    print(check_model(bench.model, some, profile).to_string(), flush=True)
    print("which facts does it know? (asked once)", flush=True)
    for order in profile.live_orders:
        bench.edits(order)
    print(bench.facts.selection, flush=True)


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
    """Run the profile's streams of edits, so that notebooks find their rows, and judge the claims: in the lab run they
    are held to the accepted values. With `only`, which is less work, a notebook runs the streams that it needs."""
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
