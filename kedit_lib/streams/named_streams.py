"""The streams that the report is about, by name: a method, how many edits at once, and what is changed. They stand in
params/streams.yaml, but for those that a profile's batch sizes and scales of λ ask for."""

from dataclasses import dataclass, field, replace
from functools import cache

from ..data.config import REPOSITORY, Profile, read_yaml


@dataclass(frozen=True)
class Stream:
    name: str
    method: str
    batch_size: int | None = 1  # None: all edits in one batch
    overrides: dict = field(default_factory=dict, hash=False)
    scale: float = 1.0  # multiplies λ
    at: str | None = None  # edit in the layers of this other method instead
    last: int | None = None  # of the layers only so many, the uppermost
    length: float = 1.0  # edits for each edit of the profile's streams
    change: str | None = None  # one of `interventions.CHANGES`
    null_share: float | None = None  # AlphaEdit's null space by rank, this share of d_ff, instead of by threshold
    anchored: bool = False  # every target gets the norm that targets have on the unedited model
    nas: bool = False  # the same as its authors measure it, with their rule for targets that are far longer
    keep: float = 0  # known facts whose keys its history begins with; below 1: so many for each unit of d_ff
    brief: bool = False  # without the metric families: for experiments that ask how long, not what else
    rho: float | None = None  # v_lr has this ρ on the model at hand (editing/transfer.py), not the printed value
    per_d_ff: float | None = None  # edits for each unit of d_ff, instead of the profile's number


@cache
def _written() -> tuple[dict[str, dict[str, Stream]], dict[float, list[str]]]:
    """params/streams.yaml: its streams by group, and for each ρ the names of those that also run with such steps."""
    groups = read_yaml(REPOSITORY / "params" / "streams.yaml")
    stepped = groups.pop("rho")
    made = {g: {n: Stream(n, **{"method": n, **fields}) for n, fields in each.items()} for g, each in groups.items()}
    return made, stepped


def streams_of(profile: Profile) -> dict[str, Stream]:
    """The streams that are executed live: λ as published (per d_ff), MEMIT in each of the profile's batch sizes."""
    sizes = [size if size < profile.n_edits else None for size in sorted(set(profile.batch_sizes) - {1})]
    sized = [Stream(f"memit-b{size}" if size else "memit-mass", "memit", size) for size in sizes]
    return _written()[0]["main"] | {stream.name: stream for stream in sized}


def groups_of(profile: Profile) -> dict[str, dict[str, Stream]]:
    """The named streams, grouped by the question they answer. "scaled": λ/d_ff a tenth or ten times the published one,
    such as "memit@0.1"; "settings" also has those with optimisation steps ρ‖v₀‖ long, such as "memit-rho2"."""
    (written, stepped), main = _written(), streams_of(profile)
    scales = [(name, scale) for name in ("memit", "pmet", "memit-mass") for scale in profile.lambda_scales]
    scaled = [replace(main[n], name=f"{n}@{x:g}", scale=x) for n, x in scales if n in main and x != 1]
    known = main | {name: stream for group in written.values() for name, stream in group.items()}
    steps = [(name, 2.0) for name in main if name != "ft"] + [(n, rho) for rho, some in stepped.items() for n in some]
    stepping = [replace(known[n], name=f"{n}-rho{rho:g}", rho=rho) for n, rho in steps]
    settings = written["settings"] | {stream.name: stream for stream in stepping}
    return written | {"main": main, "scaled": {stream.name: stream for stream in scaled}, "settings": settings}
