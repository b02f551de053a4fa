"""YAML 1.2 (`5e-1` is a number, `yes` a word, a duplicate key an error), and the parameters in it: what a run does
(params/profiles), how a model is edited (params/models), which streams the report is about (params/streams.yaml)."""

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from psutil import cpu_count, virtual_memory
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from ..errors import KeditError, explained, first_line, meant

REPOSITORY = Path(__file__).resolve().parents[2]
LAB_MODELS = ("lab", "lab-small")  # the built-in ones
BUILT_IN = (*LAB_MODELS, "smollm2")
PROPOSED = "# Proposed by check_model"  # the first words of a parameter file that it wrote

Count = Annotated[int, Field(ge=1)]
ROOM = max(1, min(cpu_count() or 1, virtual_memory().total // (6 << 30)))  # processes: one a core, if each has 6 GiB
LAST_SEED, LAST_ORDER = 10**6, 999  # 1000 · seed + order seeds what an order draws
Order = Annotated[int, Field(ge=0, le=LAST_ORDER)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def parse(text: str, source: str, duplicates: bool = False) -> Any:
    """The value of a YAML text, named `source` in errors. duplicates: of equal keys the last counts, as in PyYAML."""
    reader = YAML(typ="safe", pure=True)
    if duplicates:
        reader.constructor.check_mapping_key = lambda *_: True
    try:
        return reader.load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # an invalid date; a list as key
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where, what = f" line {mark.line + 1}" if mark else "", getattr(error, "problem", None) or first_line(error)
        remedy = "; keep one of them" if isinstance(error, DuplicateKeyError) else ""
        raise KeditError(f"{source}{where}: is not valid YAML here: {what}{remedy}") from None


def read_yaml(path: Path, duplicates: bool = False) -> dict[str, Any]:
    """The 'name: value' lines of a file; one line of KeditError for whatever is wrong with it."""
    with explained(f"{path.name}: is not a text file of YAML", "save it as UTF-8"):
        text = path.read_text(encoding="utf-8")
    values = parse(text, path.name, duplicates)
    if not isinstance(values, dict):
        raise KeditError(f"{path.name}: holds no 'name: value' lines; write them as in {path.parent}")
    return values


def dump(values: dict[str, Any]) -> str:
    """YAML text in the order of the dictionary, an innermost list or mapping on one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.sort_base_mapping_type_on_output = None, False
    writer.representer.ignore_aliases = lambda data: True
    writer.dump(values, text := StringIO())
    return text.getvalue()


class Profile(BaseModel):
    """What a run of the notebooks does: the model, the number of edits, and how often they are evaluated."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    label: Annotated[str, Field(min_length=1)] | None = None  # in tables and committed files; None: the model's name
    model: Annotated[str, Field(min_length=1)]  # "lab", "lab-small", a hub id or a local folder
    beside: str | None = None  # label of a model whose committed runs are shown in front of this one's
    own: str | None = None  # profile that the notebook on the reader's own model shows in place of a lab model
    edits: Annotated[str, Field(min_length=1)]  # "lab", "world", a file or hub name of edits: streams.facts
    chat: bool = False  # the prompts of `edits` are questions to a chat model: its chat template is put around them
    texts: Annotated[str, Field(min_length=1)]  # for C: "lab", "self", "auto", a file or hub name: streams.facts
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    device: Annotated[str, Field(min_length=1)] = "cpu"  # or "cuda", "cuda:1", …
    originals: Literal["device", "host"] = "device"  # where the unedited values of edited weights are kept
    seed: Annotated[int, Field(ge=0, le=LAST_SEED)]
    n_edits: Count  # length of an edit sequence
    stop_below: Annotated[float, Field(gt=0, lt=1)] | None = None  # a sequence ends once its probability is lower
    orders: Annotated[list[Order], Field(min_length=1)]  # all edit orders that are shown
    live_orders: list[Order]  # the orders executed now; the others come from committed data
    batch_sizes: Annotated[list[Count], Field(min_length=1)]  # swept at equal n_edits
    mass_sizes: Annotated[list[Count], Field(min_length=1)]  # one batch of each size, for time and memory
    checkpoint_every: Count
    dense_every: Count  # spacing of checkpoints until the model is dead
    untouched: Count  # size of the panel of facts that no edit touches
    n_single: Count  # independent single edits, weights restored between them
    workers: Count = ROOM  # processes side by side
    threads: Count  # threads in each of them
    lambda_scales: Annotated[list[Scale], Field(min_length=1)]  # multiples of the published weight of C
    also: list[str] = []  # named streams that are executed live beside the main ones, such as "memit-rho2"

    @field_validator("orders", "live_orders", "batch_sizes", "mass_sizes", "lambda_scales")
    @classmethod
    def _no_value_twice(cls, values: list) -> list:
        if len(set(values)) < len(values):
            raise ValueError("names a value twice; keep each once")
        return values

    @model_validator(mode="after")
    def _fields_agree(self) -> "Profile":
        most, dense, usual = max(self.batch_sizes), self.dense_every, self.checkpoint_every
        if unknown := sorted(set(self.live_orders) - set(self.orders)):
            raise ValueError(f"live_orders: {unknown} is not among orders {self.orders}; add it there or take it out")
        if most > self.n_edits:
            raise ValueError(f"batch_sizes: {most} is more than n_edits {self.n_edits}; lower it or raise n_edits")
        if dense > usual:
            raise ValueError(f"dense_every: {dense} is wider than checkpoint_every {usual}; lower it")
        return self


@dataclass(frozen=True)
class Stream:
    """One of the streams that the report is about: a method, how many edits at once, and what is changed."""

    name: str
    method: str
    batch_size: int | None = 1  # None: all edits in one batch
    overrides: dict = field(default_factory=dict, hash=False)
    scale: float = 1.0  # multiplies λ
    at: str | None = None  # edit in the layers of this other method instead
    last: int | None = None  # edit only the last n of the method's layers
    length: float = 1.0  # edits for each edit of the profile's streams
    change: str | None = None  # one of `interventions.CHANGES`
    null_share: float | None = None  # AlphaEdit's null space by rank, this share of d_ff, instead of by threshold
    anchored: bool = False  # every target gets the norm that targets have on the unedited model
    nas: bool = False  # the same as its authors measure it, with their rule for targets that are far longer
    keep: float = 0  # known facts whose keys its history begins with; values below 1 are multiples of d_ff
    brief: bool = False  # without the metric families: for experiments that ask how long, not what else
    rho: float | None = None  # v_lr has this ρ on the model at hand (editing/transfer.py), not the printed value
    per_d_ff: float | None = None  # edits for each unit of d_ff, instead of the profile's number


def _folder(name: str) -> Path:
    """Beside the package, or where the environment variable KEDIT_PARAMS, KEDIT_RESULTS or KEDIT_FIGURES says."""
    return Path(os.environ.get(f"KEDIT_{name.upper()}") or REPOSITORY / name).resolve()


params_folder, results_folder, figures_folder = (partial(_folder, name) for name in ("params", "results", "figures"))


def load_profile(name_or_path: str | Path, **overrides: Any) -> Profile:
    """The profile of that name in params/profiles, or of that file, with `overrides` in place of its fields."""
    path = _find(name_or_path, params_folder() / "profiles", "profile")
    values, changed = read_yaml(path), f" with {', '.join(overrides)} overridden" if overrides else ""
    profile = _checked(Profile, values | overrides, path.name + changed)
    if values.get("name", profile.name) != path.stem:
        raise KeditError(f"{path.name}: name: {profile.name!r} is not the file's name; write {path.stem!r}")
    return profile


def load_model_params(name: str) -> dict[str, dict[str, Any]]:
    """What params/models holds for a model: {"model": {…}, "memit": {hyperparameters}, "rome": {…}, …}. A hub id or a
    folder is looked up by its last part, "meta-llama/Llama-2-7b-hf" as Llama-2-7b-hf.yaml, there or among those that
    check_model wrote into the results folder. Each method checks its own hyperparameters."""
    models, such = params_folder() / "models", " that kedit check-model proposes"
    path = find_model_params(name) or _find(_last_part(name), models, "model parameters", such)
    sections = _checked(dict[str, dict[str, Any]], read_yaml(path), path.name)
    if "model" not in sections:
        raise KeditError(f"{path.name}: has no section 'model'; add it before the sections of the methods")
    return sections


def file_name(model: str) -> str:
    """The name of a model's parameter file: the last part of a hub id or a path; for an existing one with eight digits
    of its whole path's hash, because many are called "final"."""
    if str(model) in BUILT_IN or not os.path.exists(model):
        return _last_part(model)
    return f"{_last_part(model)}-{hashlib.sha256(os.path.realpath(model).encode()).hexdigest()[:8]}"


def _last_part(model: str) -> str:
    short = str(model).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip(".-") or "model"


def find_model_params(model: str) -> Path | None:
    """A model's file of parameters, or None: its own, or one of its name that check_model did not write."""
    folders = params_folder(), results_folder(), REPOSITORY / "params"  # in results those that check_model proposed
    paths = [path for folder in folders for path in sorted((folder / "models").glob("*.yaml"))]
    own, short = file_name(model).casefold(), _last_part(model).casefold()  # hub ids are written in either case
    same = [path for path in paths if path.stem.casefold() == short]
    others = [path for path in same if not path.read_bytes().startswith(PROPOSED.encode())]
    return next(iter([path for path in paths if path.stem.casefold() == own] + others), None)


def _find(name_or_path: str | Path, folder: Path, what: str, such: str = "") -> Path:
    """The path itself if it is spelled as one, else the file of that name in `folder`."""
    text = str(name_or_path)
    own = text.endswith((".yaml", ".yml"))
    path = Path(text) if own else folder / f"{text}.yaml"
    if os.path.isfile(path) and (own or path.parent == folder):  # Path.is_file() raises for a name that is too long
        return path
    if own:
        raise KeditError(f"{what} {text!r}: there is no such file; give an existing one, or a name without .yaml")
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    there = f"there is no such file in {folder}{meant(text, known)} (there: {', '.join(known) or 'none'})"
    remedy = f"take one of these, add {path.name}{such}, or set KEDIT_PARAMS to a folder with {folder.name}/{path.name}"
    raise KeditError(f"{what} {text!r}: {there}; {remedy}")


def _checked(kind, values: dict[str, Any], source: str):
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise KeditError(f"{source}: {problem_of(error, 'field', getattr(kind, 'model_fields', ()))}") from None


def problem_of(error: ValidationError, what: str, known) -> str:
    """The first of pydantic's findings, 'field = value: what is wrong'. what: 'field', 'hyperparameter'."""
    # An unknown name is reported first: the missing one is what was meant.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    name, value, kind = ".".join(map(str, first["loc"])), first.get("input"), first["type"]
    if kind == "missing":
        return f"{name} is missing; give it"
    if kind == "extra_forbidden":
        return f"{name} = {value!r}: there is no such {what}{meant(name, known)}; there are {', '.join(known)}"
    if kind == "string_too_short":
        return f"{name} is empty; give it, or leave it out"
    message = first["msg"].removeprefix("Value error, ").lower().replace("a valid tuple", "a list")
    message += "; write it without quotes" if isinstance(value, str) and kind.endswith("_type") else ""
    return f"{name} = {value!r}: {message}" if name else message


@cache
def _written() -> tuple[dict[str, dict[str, Stream]], dict[float, list[str]]]:
    """params/streams.yaml: its streams by group, and for each ρ the names of those that also run with such steps."""
    groups = read_yaml(REPOSITORY / "params" / "streams.yaml")
    stepped = groups.pop("rho")
    made = {g: {n: Stream(n, **{"method": n, **fields}) for n, fields in each.items()} for g, each in groups.items()}
    return made, stepped


def streams_of(profile: Profile) -> dict[str, Stream]:
    """The streams that are executed live: the main ones, and those that the profile names beside them."""
    known = {name: stream for group in groups_of(profile).values() for name, stream in group.items()}
    if unknown := [name for name in profile.also if name not in known]:
        raise KeditError(f"profile {profile.name}: also: there is no stream {unknown[0]!r}{meant(unknown[0], known)}")
    return _main(profile) | {name: known[name] for name in profile.also}


def _main(profile: Profile) -> dict[str, Stream]:
    """λ as published (per d_ff), MEMIT in each of the profile's batch sizes."""
    sizes = [size if size < profile.n_edits else None for size in sorted(set(profile.batch_sizes) - {1})]
    sized = [Stream(f"memit-b{size}" if size else "memit-mass", "memit", size) for size in sizes]
    return _written()[0]["main"] | {stream.name: stream for stream in sized}


def groups_of(profile: Profile) -> dict[str, dict[str, Stream]]:
    """The named streams, grouped by the question they answer. "scaled": λ/d_ff a tenth or ten times the published one,
    such as "memit@0.1"; "settings" also has those with optimisation steps ρ‖v₀‖ long, such as "memit-rho2"."""
    (written, stepped), main = _written(), _main(profile)
    scales = [(name, scale) for name in ("memit", "pmet", "memit-mass") for scale in profile.lambda_scales]
    scaled = [replace(main[n], name=f"{n}@{x:g}", scale=x) for n, x in scales if n in main and x != 1]
    known = main | {name: stream for group in written.values() for name, stream in group.items()}
    steps = [(name, 2.0) for name in main if name != "ft"] + [(n, rho) for rho, some in stepped.items() for n in some]
    stepping = [replace(known[n], name=f"{n}-rho{rho:g}", rho=rho) for n, rho in steps]
    settings = written["settings"] | {stream.name: stream for stream in stepping}
    return written | {"main": main, "scaled": {stream.name: stream for stream in scaled}, "settings": settings}
