"""The streams that the report is about, by name: which method, how many edits at once, with what changed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..data.config import Profile
from ..editing.transfer import SETTINGS

ANCHOR_SAMPLE = 20  # edits that the reference norm of an anchored stream is measured on, unedited


@dataclass(frozen=True)
class Stream:
    """A method at a batch size.

    batch_size  None: all edits in one batch
    scale       multiplies λ
    at          edit in the layers of this other method instead
    last        of the layers only so many, the uppermost
    length      edits for each edit of the profile's streams
    change      one of `interventions.CHANGES`
    null_share  AlphaEdit's null space by rank, this share of d_ff, instead of by threshold
    anchored    every target gets the norm that targets have on the unedited model
    nas         the same as its authors measure it, with their rule for targets that are far longer
    pruned      PRUNE bounds the total update after the last edit
    per_d_ff    edits for each unit of d_ff, instead of the profile's number
    brief       without the metric families: for experiments that ask how long, not what else
    rho         v_lr has this ρ on the model at hand (editing/transfer.py) instead of the printed value
    """

    name: str
    method: str
    batch_size: int | None = 1
    overrides: dict = field(default_factory=dict, hash=False)
    scale: float = 1.0
    at: str | None = None
    last: int | None = None
    length: float = 1.0
    change: str | None = None
    null_share: float | None = None
    anchored: bool = False
    nas: bool = False
    pruned: bool = False
    brief: bool = False
    rho: float | None = None
    per_d_ff: float | None = None


ROME_VARIANTS = {
    "rome": ("rome", True),
    "rome-noC": ("rome", False),
    "rrome": ("rrome", True),
    "rrome-noC": ("rrome", False),
}
OTHER_METHODS = ("prome", "emmet", "alphaedit", "rect", "ft-l")
TARGET = {"v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0}  # of MEMIT on Llama-2-7B; AlphaEdit has none
LONG_STEPS = {"v_lr": 2.0}  # four times the published one; see `regime_streams`
LONG = 1000 / 450  # the report follows ROME for 1,000 edits, and MEMIT for 450
COLLAPSING = "memit-layers-steps"  # the stream of them whose optimised probability collapses
CLAMP = {"clamp_norm_factor": 0.75}  # published with MEMIT for GPT-J, GPT2-XL and Llama-3; 4 with Llama-2
IN_ONE_BATCH = ("pmet", "emmet", "alphaedit", "rect")


def with_steps(stream: Stream, rho: float = SETTINGS["as scaled"]) -> Stream:
    """The same as scaled: with optimisation steps ρ‖v₀‖ long, such as "memit-rho2"."""
    return replace(stream, name=f"{stream.name}-rho{rho:g}", rho=rho)


def streams_of(profile: Profile) -> dict[str, Stream]:
    """λ as published (per d_ff): the ones that are executed live."""
    found = [Stream("memit", "memit"), Stream("pmet", "pmet")]
    found += [Stream(name, m, overrides={"mom2_adjustment": c}) for name, (m, c) in ROME_VARIANTS.items()]
    found.append(Stream("ft", "ft-m"))
    for size in sorted(set(profile.batch_sizes) - {1}):
        whole = size >= profile.n_edits
        found.append(Stream("memit-mass" if whole else f"memit-b{size}", "memit", None if whole else size))
    return _by_name(found)


def scaled_streams(profile: Profile) -> dict[str, Stream]:
    """λ/d_ff a tenth or ten times the published one, such as "memit@0.1"."""
    base = streams_of(profile)
    return _by_name(
        Stream(f"{name}@{scale:g}", s.method, s.batch_size, s.overrides, scale)
        for name, s in base.items()
        if s.method in ("memit", "pmet") and (s.batch_size == 1 or name == "memit-mass")
        for scale in profile.lambda_scales
        if scale != 1
    )


def regime_streams() -> dict[str, Stream]:
    """Where to look for a collapse that the published setting does not show: more edits, more layers, longer steps;
    and what larger batches change where it is found.

    A step of the optimisation is v_lr in every coordinate, v_lr·√d_model long: at the lab's width much shorter against
    the states of the model than at d_model 4096.
    """
    found = [Stream(f"{name}-long", name, length=LONG, brief=True) for name in ("memit", "pmet", "rome")]
    found += [Stream(f"{name}-steps", name, overrides=LONG_STEPS) for name in ("memit", "pmet", "rome")]
    found += [
        Stream("memit-layers", "memit", at="pmet"),
        Stream(COLLAPSING, "memit", at="pmet", overrides=LONG_STEPS),
        Stream(f"{COLLAPSING}-b100", "memit", 100, at="pmet", overrides=LONG_STEPS),
        Stream(f"{COLLAPSING}-mass", "memit", None, at="pmet", overrides=LONG_STEPS),
    ]
    return _by_name(found)


AS_REPORTED = 1000 / 11008  # edits of the report's one batch for each unit of d_ff


def setting_streams(profile: Profile) -> dict[str, Stream]:
    """The streams of `streams_of` and some others as scaled (ρ = 2), such as "memit-rho2"; on the way there and beyond
    it "memit-rho1", "memit-rho4" and for ROME "rome-rho8".

    "memit-share" is one batch of as many edits for each unit of d_ff as in the report, "memit-sum" the sum of edits
    made apart on the unedited model.
    """
    plain, others = streams_of(profile), other_streams()
    batch = Stream("memit-share", "memit", None, per_d_ff=AS_REPORTED)
    apart = Stream("memit-sum", "memit", change="superposed", brief=True)
    printed = [*(s for name, s in plain.items() if name != "ft"), batch, apart]
    printed += [others[name] for name in ("memit-history", "alphaedit", "memit-anchored")]
    ranges = [(name, rho) for name in ("memit", "pmet", "rome") for rho in (1.0, 4.0)] + [("rome", 8.0)]
    return _by_name([batch, apart, *map(with_steps, printed), *(with_steps(plain[n], rho) for n, rho in ranges)])


def other_streams() -> dict[str, Stream]:
    """What else the field offers, one edit at a time and ("-mass") in one batch."""
    found = [Stream(method, method) for method in OTHER_METHODS]
    found += [
        Stream("alphaedit-rank", "alphaedit", null_share=7 / 8),
        Stream("alphaedit-target", "alphaedit", overrides=TARGET),
        Stream("memit-history", "memit", overrides={"use_history": True}),
        Stream("memit-anchored", "memit", anchored=True),
        Stream("memit-pruned", "memit", pruned=True),
        Stream("memit-clamp", "memit", overrides=CLAMP),
        Stream("memit-clamp-history", "memit", overrides={**CLAMP, "use_history": True}),
        Stream("memit-clamp-mass", "memit", None, overrides=CLAMP),
    ]
    found += [Stream(f"{method}-mass", method, None) for method in IN_ONE_BATCH]
    return _by_name(found)


NEWER = ("encore", "evoedit", "betaedit", "lyaplock", "sphere", "sphere-memit", "revive", "ultraedit", "prune")


def editor_streams() -> dict[str, Stream]:
    """The editors of 2025 and 2026, one edit at a time and ("-b100") in batches of 100."""
    found = [Stream(name, name) for name in (*NEWER, "rlsedit", "simie", "simie-rome")]
    found += [Stream(f"{name}-nas", name, nas=True) for name in ("memit", "alphaedit", "rome")]
    found += [Stream("memit-argmax", "memit", overrides={"stop": "argmax"})]
    found += [Stream("memit-history-anchored", "memit", overrides={"use_history": True}, anchored=True)]
    found += [Stream(f"{name}-compensated", name, overrides={"compensation": True}) for name in ("rect", "prune")]
    found += [Stream(f"{name}-b100", name, 100) for name in NEWER]
    return _by_name(found)


def _varied(name: str, overrides: dict | None = None, **changes) -> Stream:
    """The collapsing stream with something changed."""
    return Stream(name, "memit", at="pmet", overrides={**LONG_STEPS, **(overrides or {})}, brief=True, **changes)


def cause_streams() -> dict[str, Stream]:
    """MEMIT where its optimised probability collapses on the lab (COLLAPSING: PMET's layers, long steps) with one
    suspected cause taken out of each; and PMET with what the public logs show."""
    found = [
        _varied("why-history", {"use_history": True}),
        _varied("why-anchored", anchored=True),
        _varied("why-superposed", change="superposed"),
        _varied("why-frozen-z", change="frozen z"),
        _varied("why-clean-keys", change="clean keys"),
        _varied("why-clamp", CLAMP),
        _varied("why-frozen-history", {"use_history": True}, change="frozen z"),
        Stream("why-pmet-linear", "pmet", change="linear share", brief=True),
        Stream("why-pmet-start", "pmet", change="start in target", brief=True),
        Stream("why-pmet-left", "pmet", change="left padded", brief=True),
        Stream("why-pmet-bugs", "pmet", change="both bugs", brief=True),
    ]
    return _by_name(found)


SENSITIVITY = {  # one at a time; the collapsing stream's own value lies between, or is the last
    "v_lr": (0.25, 0.5, 1.0, 4.0),
    "clamp_norm_factor": (0.75, 2.0, 8.0),
    "v_weight_decay": (0.0, 0.05, 0.5),
    "v_num_grad_steps": (5, 10, 50),
}
FACTORS = (0.1, 0.3, 3.0, 10.0)  # on λ/d_ff; 1 is the stream itself
DEPTHS = (1, 2)  # layers, the uppermost of the stream's
CONTEXTS = {3: "three contexts", 21: "twenty-one contexts"}  # how many, and the change; one alone is "why-clean-keys"


def sensitivity_streams() -> dict[str, Stream]:
    """The collapsing MEMIT with one hyperparameter moved, such as "vary-v_lr=1"."""
    known = {("v_lr", 0.5), ("clamp_norm_factor", 0.75)}  # "memit-layers" and "why-clamp"
    found = [
        _varied(f"vary-{field}={value:g}", {field: value})
        for field, values in SENSITIVITY.items()
        for value in values
        if (field, value) not in known
    ]
    found += [_varied(f"vary-scale={scale:g}", scale=scale) for scale in FACTORS]
    found += [_varied(f"vary-layers={n}", last=n) for n in DEPTHS]
    found += [_varied(f"vary-contexts={n}", change=change) for n, change in CONTEXTS.items()]
    return _by_name(found)


def every_stream(profile: Profile) -> dict[str, Stream]:
    return {name: stream for group in groups_of(profile).values() for name, stream in group.items()}


def groups_of(profile: Profile) -> dict[str, dict[str, Stream]]:
    """The streams by what they are there for."""
    return {
        "main": streams_of(profile),
        "scaled": scaled_streams(profile),
        "settings": setting_streams(profile),
        "regimes": regime_streams(),
        "others": other_streams(),
        "editors": editor_streams(),
        "causes": cause_streams(),
        "sensitivity": sensitivity_streams(),
    }


def _by_name(streams) -> dict[str, Stream]:
    return {s.name: s for s in streams}
