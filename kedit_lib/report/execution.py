"""One execution of the notebooks: its effective profile, where its outputs go, each notebook's parameters, and the
content that all outputs depend on."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.atomic import checksum, replacing
from ..data.config import BUILT_IN, LAB_MODELS, Profile, load_profile, params_folder
from ..data.provenance import key_of
from ..data.yaml_text import dump, parse
from ..errors import KeditError

DEFAULT_PROFILE = "lab"  # the run whose outputs are committed
LONGEST_LABEL = 100
HOW_ONLY = {"workers", "threads", "live_orders"}  # fields that say how a run is done, not what it shows
PATHS = ("model", "edits", "texts")  # fields that may be a path; notebooks run in another folder
RENAMED = {"data": "edits"}  # parameters of notebooks that a profile calls otherwise
OWN = {"data", "texts"}  # parameters of the notebook on the reader's own model
PACKAGE = Path(__file__).resolve().parents[1]


class Run:
    """One execution.

    profile_argument   what a notebook hands to load_profile: a name, or the effective profile's file
    label              "lab", "smoke", "lab-n_edits-50-…": runs with other numbers never overwrite each other
    """

    def __init__(self, root: Path, profile: Profile, profile_argument: str, label: str):
        self.root, self.profile, self.profile_argument, self.label = root, profile, profile_argument, label
        self.committed = label == DEFAULT_PROFILE
        self.sources, self.results = root / "notebooks", root / "results"
        self.executed = self.sources / "executed" if self.committed else self.results / f"executed-{label}"
        self.figures = root / "figures" if self.committed else self.results / f"figures-{label}"


def make_run(root, name=DEFAULT_PROFILE, model=None, data=None, texts=None, orders=None, fields=()) -> Run:
    """The profile of that name or file, with what the options of `kedit reproduce` change, as texts; for the notebooks
    it is stored in results/profiles."""
    base = load_profile(name)
    overrides = dict(map(_override, fields))
    overrides |= {field: given for field, given in zip(PATHS, (model, data, texts), strict=True) if given}
    if orders:
        overrides["live_orders"] = base.orders if orders == "all" else parse_orders(orders)
    profile = load_profile(name, **overrides)
    changed = {field: v for field, v in profile if field not in HOW_ONLY and v != getattr(base, field)}
    house = params_folder() / "profiles" / f"{base.name}.yaml"
    own = name != base.name and Path(name).resolve() != house  # somebody's own file, whatever name it gives itself
    if not own and not changed:
        return Run(root, profile, base.name, base.name)
    values = profile.model_dump()
    for field in PATHS:
        if values[field] not in LAB_MODELS and os.path.exists(values[field]):
            values[field] = str(Path(values[field]).resolve())
    parts = [base.name, *(f"{field}-{str(v).rsplit('/')[-1]}" for field, v in changed.items())]
    label = "-".join(["own", *parts] if own else parts).lower()
    label = re.sub(r"[^a-z0-9_-]+", "-", label)[:LONGEST_LABEL].strip("-")
    if changed:
        label += f"-{key_of(values={f: v for f, v in values.items() if f not in HOW_ONLY})[:6]}"
    path = root / "results" / "profiles" / f"{label}.yaml"
    with replacing(path) as partial:
        partial.write_text(dump({**values, "name": label}), encoding="utf-8")
    return Run(root, profile, os.path.relpath(path, root / "notebooks"), label)


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name == "name":
        raise KeditError(f"-p {text}: must be name=value of a field but the profile's name, such as n_edits=50")
    return name, parse(value, f"-p {text}")  # read as the profile's file is; the profile checks the type


def parse_orders(text: str) -> list[int]:
    """Edit orders such as "0,1,2". KeditError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise KeditError(f"--orders {text}: must be numbers with commas, such as 0,1,2")
    return [int(order) for order in text.split(",")]


def parameters_for(run: Run, source: Path) -> dict[str, Any]:
    """What is injected into a notebook: every field of the profile that its parameters cell names."""
    profile, argument, names = run.profile, run.profile_argument, parameters_of(source)
    if OWN & set(names) and profile.own and profile.model in LAB_MODELS:
        profile, argument = load_profile(profile.own), profile.own
    values = {**profile.model_dump(), "profile": argument}
    for field in PATHS:
        there = [path for path in (Path(values[field]).resolve(), run.root / values[field]) if path.exists()]
        if there and values[field] not in BUILT_IN:
            values[field] = os.path.relpath(there[0], run.sources)
    values |= {name: values[field] for name, field in RENAMED.items()}
    if unknown := [name for name in names if name not in values]:
        remedy = "rename it, or add it to kedit_lib.data.config"
        raise KeditError(f"{source.name}: parameter {unknown[0]!r} is in no profile; {remedy}")
    return {name: values[name] for name in names}


def parameters_of(source: Path) -> list[str]:
    """The names that a notebook's one `parameters` cell assigns."""
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]  # importing nbformat would take seconds
        texts = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeditError(f"{source.name}: is not a notebook; save it again with JupyterLab") from None
    if len(texts) != 1:
        raise KeditError(f"{source.name}: has {len(texts)} cells tagged 'parameters'; tag exactly one")
    return re.findall(r"^(\w+) *=", texts[0], re.MULTILINE)


def library_files(root: Path) -> list[Path]:
    """Every file that all notebooks depend on: code, parameters, lab weights, pins, committed data of other orders.

    The weights' checksum, configuration and tokenizer stand for the megabytes of the weights themselves.
    """
    folders = [PACKAGE, params_folder(), root / "figures" / "data", root / "examples"]
    files = [root / "constraints.txt", *(path for folder in folders for path in folder.rglob("*"))]
    return sorted(p for p in files if p.is_file() and p.suffix not in {".safetensors", ".pyc"})


def hash_files(files: Iterable[Path]) -> str:
    """One hash of many files' names and content; of where they lie only the last two folders count."""
    lines = (f"{'/'.join(path.parts[-3:])}\0{checksum(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
