"""The streams that the report is about, by name: which method, how many edits at once, with what changed.

params/streams.yaml holds those that do not depend on a profile.
"""

from dataclasses import dataclass, field, replace
from functools import cache

from ..data.config import REPOSITORY, Profile
from ..data.yaml_text import parse
from ..editing.transfer import SETTINGS

PATH = REPOSITORY / "params" / "streams.yaml"
ANCHOR_SAMPLE = 20  # edits that the reference norm of an anchored stream is measured on, unedited


@dataclass(frozen=True)
class Stream:
    """A method at a batch size, with what is changed."""

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
    # Its history begins with the keys of so many known facts that no edit touches, and no probe asks; below 1: so many
    # for each unit of d_ff.
    keep: float = 0
    brief: bool = False  # without the metric families: for experiments that ask how long, not what else
    rho: float | None = None  # v_lr has this ρ on the model at hand (editing/transfer.py), not the printed value
    per_d_ff: float | None = None  # edits for each unit of d_ff, instead of the profile's number


COLLAPSING = "memit-layers-steps"  # the lab's stream whose optimised probability collapses


@cache
def _written() -> dict[str, dict[str, Stream]]:
    """The streams of params/streams.yaml, by group."""
    groups = parse(PATH.read_text(encoding="utf-8"), PATH.name)
    return {
        group: {name: Stream(name, **{"method": name, **fields}) for name, fields in streams.items()}
        for group, streams in groups.items()
    }


def with_steps(stream: Stream, rho: float = SETTINGS["as scaled"]) -> Stream:
    """The stream as scaled: with optimisation steps ρ‖v₀‖ long, such as "memit-rho2"."""
    return replace(stream, name=f"{stream.name}-rho{rho:g}", rho=rho)


def streams_of(profile: Profile) -> dict[str, Stream]:
    """The streams that are executed live: λ as published (per d_ff)."""
    found = [Stream("memit", "memit"), Stream("pmet", "pmet")]
    for name in ("rome", "rrome"):
        found += [Stream(name + end, name, overrides={"mom2_adjustment": not end}) for end in ("", "-noC")]
    found.append(Stream("ft", "ft-m"))
    for size in sorted(set(profile.batch_sizes) - {1}):
        whole = size >= profile.n_edits
        found.append(Stream("memit-mass" if whole else f"memit-b{size}", "memit", None if whole else size))
    return _by_name(found)


def scaled_streams(profile: Profile) -> dict[str, Stream]:
    """Streams with λ/d_ff a tenth or ten times the published one, such as "memit@0.1"."""
    base = streams_of(profile)
    names = [name for name in ("memit", "pmet", "memit-mass") if name in base]
    scales = [scale for scale in profile.lambda_scales if scale != 1]
    return _by_name(replace(base[n], name=f"{n}@{scale:g}", scale=scale) for n in names for scale in scales)


def setting_streams(profile: Profile) -> dict[str, Stream]:
    """The streams of `streams_of` and some others as scaled (ρ = 2), such as "memit-rho2"; on the way there and beyond
    it "memit-rho1", "memit-rho4" and for ROME "rome-rho8"."""
    plain, written = streams_of(profile), _written()
    printed = [stream for name, stream in (plain | written["settings"]).items() if name != "ft"]
    for group, names in AS_SCALED.items():
        printed += [written[group][name] for name in names]
    ranges = [(name, rho) for name in ("memit", "pmet", "rome") for rho in (1.0, 4.0)] + [("rome", 8.0)]
    found = [*map(with_steps, printed), *(with_steps(plain[n], rho) for n, rho in ranges)]
    return written["settings"] | _by_name(found)


AS_SCALED = {
    "others": ("memit-history", "alphaedit", "memit-anchored"),
    "editors": ("memit-history-anchored", "memit-kept", "memit-stream"),
    "baselines": ("gate",),
}
SENSITIVITY = {  # one at a time; the collapsing stream's own value lies between, or is the last
    "v_lr": (0.25, 0.5, 1.0, 4.0),
    "clamp_norm_factor": (0.75, 2.0, 8.0),
    "v_weight_decay": (0.0, 0.05, 0.5),
    "v_num_grad_steps": (5, 10, 50),
}
KNOWN = {("v_lr", 0.5), ("clamp_norm_factor", 0.75)}  # "memit-layers" and "why-clamp"
FACTORS = (0.1, 0.3, 3.0, 10.0)  # on λ/d_ff; 1 is the stream itself
DEPTHS = (1, 2)  # layers, the uppermost of the stream's
CONTEXTS = {3: "three contexts", 21: "twenty-one contexts"}  # how many, and the change; one alone is "why-clean-keys"


def sensitivity_streams() -> dict[str, Stream]:
    """The collapsing MEMIT with one hyperparameter moved, such as "vary-v_lr=1"."""
    base = replace(_written()["regimes"][COLLAPSING], brief=True)
    moves = [(field, value) for field, values in SENSITIVITY.items() for value in values]
    moved = {
        f"{f}={value:g}": {"overrides": base.overrides | {f: value}} for f, value in moves if (f, value) not in KNOWN
    }
    moved |= {f"scale={scale:g}": {"scale": scale} for scale in FACTORS}
    moved |= {f"layers={n}": {"last": n} for n in DEPTHS}
    moved |= {f"contexts={n}": {"change": change} for n, change in CONTEXTS.items()}
    return _by_name(replace(base, name=f"vary-{name}", **fields) for name, fields in moved.items())


def every_stream(profile: Profile) -> dict[str, Stream]:
    return {name: stream for group in groups_of(profile).values() for name, stream in group.items()}


def groups_of(profile: Profile) -> dict[str, dict[str, Stream]]:
    """The named streams, grouped by the question they answer."""
    groups = {"main": streams_of(profile), "scaled": scaled_streams(profile), **_written()}
    return groups | {"settings": setting_streams(profile), "sensitivity": sensitivity_streams()}


def _by_name(streams) -> dict[str, Stream]:
    return {s.name: s for s in streams}
