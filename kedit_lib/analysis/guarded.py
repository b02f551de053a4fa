"""The guard judged on stored edit sequences, and which signal warns first.

A sequence *dies* when it loses half of its unrelated facts, *lasts* when it never loses more than LASTING of them, and
is *dying* at its end between the two. An alarm is in time LEAD edits before the model is dead, or a fifth of N_model
before where that is less. Thresholds are chosen on the sequences of half 0 and judged on those of half 1.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pandas as pd

from ..streams.guard import DEAD, alarms_at
from .runs import EDIT, LABELS

LASTING, LEAD = 0.15, 20
SEEN = 3  # checkpoints that a sequence has more of, to be judged
FIRST = 10  # edits in running medians
SIGNALS = {  # metric, cohort, the direction of damage, whether it comes with every edit
    "unrelated facts": ("accuracy", "untouched", -1),
    "earlier edits, asked again": ("accuracy", "edits", -1),
    "probability of earlier edits": ("probability", "edits", -1),
    "perplexity": ("perplexity", "plain text", 1),
    "optimised probability": ("optimised probability", EDIT, -1),
    "first probability": ("first probability", EDIT, 1),
    "steps of the optimisation": ("steps", EDIT, -1),
    "‖v₀‖": ("‖v₀‖", EDIT, 1),
    "‖δ‖/‖v₀‖": ("‖δ‖/‖v₀‖", EDIT, -1),
    "‖W‖": ("‖W‖", EDIT, 1),
}


def half(stream: str) -> int:
    """0 or 1: thresholds are chosen on half 0 and judged on half 1; all runs of one stream are in the same half."""
    return hashlib.sha256(stream.removesuffix("-long").encode()).digest()[0] % 2


def watched(runs: pd.DataFrame) -> pd.DataFrame:
    """The sequences that can be judged: labels, half, fate, dead (edits; NaN), lost (the largest share of unrelated
    facts), curve (that share by edits), norms (‖v₀‖ of each edit)."""
    rows = []
    facts = runs[(runs.metric == "accuracy") & (runs.cohort == "untouched")]
    norms = dict(list(runs[runs.metric == "‖v₀‖"].dropna().sort_values("edits").groupby(LABELS).value))
    for key, one in facts.groupby(LABELS):
        lost = (1 - one.set_index("edits").value).sort_index()
        if len(lost) > SEEN:
            dead = lost.index[lost > DEAD].min()
            fate = "dies" if dead == dead else "dying" if lost.max() > LASTING else "lasts"
            rows.append((*key, half(key[1]), fate, dead, lost.max(), lost, norms.get(key, ())))
    return pd.DataFrame(rows, columns=[*LABELS, "half", "fate", "dead", "lost", "curve", "norms"])


def at_checkpoints(lost: pd.Series, stream: str = "") -> list[tuple[int, int, int]]:
    """A look (edits, lost, asked) at 100 facts at each checkpoint."""
    return [(int(edits), round(100 * share), 100) for edits, share in lost.items()]


def batch_of(stream: str) -> int:
    """Edits at a time, by the stream's name."""
    found = re.search(r"-b(\d+)", stream)
    return int(found[1]) if found else 1


def between_checkpoints(lost: pd.Series, stream: str = "", every: int = 5, asked: int = 40) -> list:
    """Looks as `run_stream` takes them, never within a batch, with facts drawn at the share that lies on a straight
    line between two checkpoints."""
    edits = np.arange(0, lost.index[-1] + 1, max(every, batch_of(stream)))
    shares = np.interp(edits, lost.index, lost).clip(0, 1)
    drawn = np.random.default_rng(0).binomial(asked, shares)
    return [(int(e), int(n), asked) for e, n in zip(edits, drawn, strict=True)]


def alarms(sequences: pd.DataFrame, looks=at_checkpoints, **settings) -> pd.Series:
    """The edit of the guard's alarm in each sequence; NaN: none."""
    each = ((looks(one.curve, one.stream), one.norms, batch_of(one.stream)) for one in sequences.itertuples())
    return pd.Series([alarms_at(*one, **settings) for one in each], sequences.index, float)


def latest(dead):
    """The last edit at which an alarm is in time."""
    return dead - np.minimum(dead / 5, LEAD)


def judged(sequences: pd.DataFrame, alarm: pd.Series) -> pd.Series:
    """Of some sequences: how many die, the share warned in time, the median lead as a share of N_model, and the alarms
    in those that last and in those that are dying at their end."""
    dies = sequences.fate == "dies"
    dead, at = sequences.dead[dies], alarm[dies]
    row = {"die": dies.sum(), "warned in time": (at <= latest(dead)).mean()}
    row["lead"] = ((dead - at) / dead).median()
    for fate, what in (("lasts", "false alarms, lasting"), ("dying", "alarms, dying at the end")):
        found = alarm[sequences.fate == fate]
        row[what] = f"{found.notna().sum()}/{len(found)}"
    return pd.Series(row)


def signal(one: pd.DataFrame, name: str) -> pd.Series:
    """One signal of one sequence by edits, larger for more damage, as a share of its healthy value: the first measured
    or, where it comes with every edit, the median of the first edits against running medians."""
    metric, cohort, sign = SIGNALS[name]
    found = one[(one.metric == metric) & ((one.cohort == cohort) | (metric == "‖W‖"))]
    curve = found.groupby("edits").value.max() if len(found) else pd.Series(dtype=float)
    if cohort == EDIT and metric != "‖W‖":
        curve = curve.rolling(FIRST).median()
    curve = curve.dropna()
    return sign * curve / abs(curve.iloc[0]) if len(curve) and curve.iloc[0] else curve.iloc[:0]


def which_first(runs: pd.DataFrame, sequences: pd.DataFrame) -> pd.DataFrame:
    """Each signal with the threshold that no lasting sequence of half 0 passes, judged on half 1."""
    apart, rows = dict(list(runs.groupby(LABELS))), []
    for name in SIGNALS:
        curves = [signal(apart[tuple(one[label] for label in LABELS)], name) for _, one in sequences.iterrows()]
        most = pd.Series([c.max() for c in curves], sequences.index, float)  # NaN: not measured
        quiet = most[(sequences.fate == "lasts") & (sequences.half == 0)].max()
        if quiet == quiet:
            at = pd.Series([c.index[c > quiet].min() for c in curves], sequences.index, float)
            part = sequences[(sequences.half == 1) & most.notna()]
            rows.append({"signal": name, "threshold": abs(quiet), **judged(part, at[part.index])})
    return pd.DataFrame(rows).sort_values("warned in time", ascending=False, ignore_index=True)
