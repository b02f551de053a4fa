"""The streams that the report is about, by name: which method, how many edits at once, with what changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from .params import Profile

BOTH = "both"
ANCHOR_SAMPLE = 20  # edits that the reference norm of an anchored stream is measured on, unedited


@dataclass(frozen=True)
class Stream:
    """A method at a batch size.

    batch_size  None: all edits in one batch
    scale       multiplies λ
    at          edit at the last layer of this other method instead (BOTH: at all from the first to the last of ROME's
                and MEMIT's layers)
    change      one of `interventions.CHANGES`
    null_share  AlphaEdit's null space by rank, this share of d_ff, instead of by threshold
    anchored    every target gets the norm that targets have on the unedited model
    pruned      PRUNE bounds the total update after the last edit
    brief       without the metric families: for experiments that ask how long, not what else
    """

    name: str
    method: str
    batch_size: int | None = 1
    overrides: dict = field(default_factory=dict, hash=False)
    scale: float = 1.0
    at: str | None = None
    change: str | None = None
    null_share: float | None = None
    anchored: bool = False
    pruned: bool = False
    brief: bool = False


ROME_VARIANTS = {
    "rome": ("rome", True),
    "rome-noC": ("rome", False),
    "rrome": ("rrome", True),
    "rrome-noC": ("rrome", False),
}
OTHER_METHODS = ("prome", "emmet", "alphaedit", "rect", "ft-l")
TARGET = {"v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0}  # of MEMIT on Llama-2-7B; AlphaEdit has none
CLAMP = {"clamp_norm_factor": 0.75}  # published with MEMIT for GPT-J, GPT2-XL and Llama-3; 4 with Llama-2
IN_ONE_BATCH = ("pmet", "emmet", "alphaedit", "rect")


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


def moved_streams() -> dict[str, Stream]:
    """The two methods of the contrast with their layers exchanged, and MEMIT over both: method or layer?

    And MEMIT there with a tenth of λ, so that it writes nearly all of its target, as ROME does: or the brake?
    """
    found = [Stream("rome@memit", "rome", at="memit")]
    for where in ("rome", BOTH):
        found += [
            Stream(f"memit@{where}", "memit", at=where),
            Stream(f"memit@{where}@0.1", "memit", at=where, scale=0.1),
        ]
    return _by_name(found)


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


def cause_streams() -> dict[str, Stream]:
    """MEMIT where its optimised probability collapses on the lab (both layers, a tenth of λ; "memit@both@0.1" is the
    stream itself), and PMET there, with one suspected cause taken out of each."""
    memit = {"method": "memit", "at": BOTH, "scale": 0.1, "brief": True}
    pmet = {**memit, "method": "pmet"}
    found = [
        Stream("why-history", overrides={"use_history": True}, **memit),
        Stream("why-anchored", anchored=True, **memit),
        Stream("why-superposed", change="superposed", **memit),
        Stream("why-frozen-z", change="frozen z", **memit),
        Stream("why-clean-keys", change="clean keys", **memit),
        Stream("why-clamp", overrides={"clamp_norm_factor": 0.75}, **memit),
        Stream("why-frozen-history", overrides={"use_history": True}, change="frozen z", **memit),
        Stream("why-pmet", **pmet),
        Stream("why-pmet-linear", change="linear share", **pmet),
        Stream("why-pmet-start", change="start in target", **pmet),
        Stream("why-pmet-left", change="left padded", **pmet),
        Stream("why-pmet-bugs", change="both bugs", **pmet),
    ]
    return _by_name(found)


SENSITIVITY = {  # one at a time; the published value lies between
    "v_lr": (0.1, 0.25, 1.0),
    "clamp_norm_factor": (0.75, 2.0, 8.0),
    "v_weight_decay": (0.0, 0.05, 0.5),
    "v_num_grad_steps": (5, 10, 50),
}
FACTORS = (0.01, 0.03, 0.3, 10.0)  # on λ/d_ff; 0.1 is the stream itself, 1 "memit@both"


def sensitivity_streams() -> dict[str, Stream]:
    """The collapsing MEMIT with one hyperparameter moved, such as "vary-v_lr=0.1"."""
    memit = {"method": "memit", "at": BOTH, "brief": True}
    found = [
        Stream(f"vary-{field}={value:g}", overrides={field: value}, scale=0.1, **memit)
        for field, values in SENSITIVITY.items()
        for value in values
    ]
    found += [Stream(f"vary-scale={scale:g}", scale=scale, **memit) for scale in FACTORS]
    return _by_name(found)


def every_stream(profile: Profile) -> dict[str, Stream]:
    return {name: stream for group in groups_of(profile).values() for name, stream in group.items()}


def groups_of(profile: Profile) -> dict[str, dict[str, Stream]]:
    """The streams by what they are there for."""
    return {
        "main": streams_of(profile),
        "scaled": scaled_streams(profile),
        "moved": moved_streams(),
        "others": other_streams(),
        "causes": cause_streams(),
        "sensitivity": sensitivity_streams(),
    }


def _by_name(streams) -> dict[str, Stream]:
    return {s.name: s for s in streams}
