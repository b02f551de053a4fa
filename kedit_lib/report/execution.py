"""One execution of the notebooks: its effective profile, where its outputs go, and each notebook's parameters."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.atomic import replacing
from ..data.config import BUILT_IN, LAB_MODELS, Profile, load_profile, params_folder
from ..data.yaml_text import dump, parse
from ..errors import KeditError
from . import notebooks

DEFAULT_PROFILE = "lab"  # the run whose outputs are committed
LONGEST_LABEL = 120
HOW_ONLY = {"workers", "threads", "live_orders"}  # fields that say how a run is done, not what it shows
PATHS = ("model", "edits", "texts")  # fields that may be a path; notebooks run in another folder


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
        overrides["live_orders"] = list(base.orders) if orders == "all" else parse_orders(orders)
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
    """A value in the name of a folder; for a path its last part and a hash of the whole."""
    if not isinstance(value, str) or value in LAB_MODELS or not os.path.exists(value):
        return str(value)
    path = Path(value).resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def _written(profile: Profile, label: str, root: Path) -> str:
    """Store an effective profile for the notebooks; its path as seen from notebooks/."""
    name = re.sub(r"[^a-z0-9_-]+", "-", label.lower())
    path = root / "results" / "profiles" / f"{name}.yaml"
    fields = {**profile.model_dump(), "name": name}
    for field in PATHS:
        if fields[field] not in LAB_MODELS and os.path.exists(fields[field]):
            fields[field] = str(Path(fields[field]).resolve())
    with replacing(path) as partial:
        partial.write_text(dump(fields), encoding="utf-8")
    return os.path.relpath(path, root / "notebooks")


def _parse_override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise KeditError(f"-p {text}: is not name=value; write for example -p n_edits=50")
    known = [field for field in Profile.model_fields if field != "name"]
    if name not in known:
        raise KeditError(f"-p {text}: there is no parameter {name!r}; there are {', '.join(known)}")
    return name, parse(value, f"-p {text}")  # read as the profile's file is; the profile checks the type


def parse_orders(text: str) -> list[int]:
    """Edit orders such as "0,1,2". KeditError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise KeditError(f"--orders {text}: must be numbers with commas, such as 0,1,2")
    return [int(order) for order in text.split(",")]


def parameters_for(run: Run, source: Path) -> dict[str, Any]:
    """What is injected into a notebook: every field of the profile that its parameters cell names."""
    profile, argument = run.profile, run.profile_argument
    names = notebooks.parameters_of(source)
    if notebooks.OWN & set(names) and profile.own and profile.model in LAB_MODELS:
        profile, argument = load_profile(profile.own), profile.own
    values = {**profile.model_dump(), "profile": argument}
    for field in PATHS:
        there = [path for path in (Path(values[field]).resolve(), run.root / values[field]) if path.exists()]
        if there and values[field] not in BUILT_IN:
            values[field] = os.path.relpath(there[0], run.sources)
    values |= {name: values[field] for name, field in notebooks.RENAMED.items()}
    if unknown := [name for name in names if name not in values]:
        raise KeditError(
            f"{source.name}: parameter {unknown[0]!r} is in no profile; rename it, or add it to kedit_lib.data.config"
        )
    return {name: values[name] for name in names}
