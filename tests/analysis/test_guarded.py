"""The guard judged on stored sequences: fates, looks, leads and false alarms by hand, and on committed runs."""

import numpy as np
import pandas as pd
import pytest

import kedit_lib as kedit
from kedit_lib.analysis import guarded
from kedit_lib.analysis.runs import EDIT, LABELS


def runs(**curves):
    """A table of runs: for each stream the share of unrelated facts that is lost at 0, 10, 20, … edits."""
    rows = [
        ("lab", stream, "as printed", 0, 10 * i, "accuracy", "untouched", 1 - share, 500)
        for stream, shares in curves.items()
        for i, share in enumerate(shares)
    ]
    return pd.DataFrame(rows, columns=[*LABELS, "edits", "metric", "cohort", "value", "n"])


SLOW = [i / 30 for i in range(20)]  # dead after 160 edits
QUIET = [0.02] * 20
HURT = [min(0.3, i / 40) for i in range(20)]  # loses 30 % and no more
SHORT = [0, 0.9, 1.0]


def test_fates():
    found = guarded.watched(runs(slow=SLOW, quiet=QUIET, hurt=HURT, short=SHORT)).set_index("stream")
    assert found.fate.to_dict() == {"slow": "dies", "quiet": "lasts", "hurt": "dying"}  # short: too few checkpoints
    assert found.dead["slow"] == 160 and np.isnan(found.dead["hurt"])


def test_a_stream_and_its_longer_run_are_in_one_half():
    assert guarded.half("memit") == guarded.half("memit-long")
    assert {guarded.half(name) for name in ("memit", "rome", "pmet", "emmet", "rect", "ft")} == {0, 1}


def test_what_is_judged():
    sequences = guarded.watched(runs(slow=SLOW, other=SLOW, late=SLOW, quiet=QUIET, hurt=HURT)).set_index("stream")
    alarm = pd.Series({"slow": 140.0, "other": 80.0, "late": 150.0, "quiet": np.nan, "hurt": 90.0})
    found = guarded.judged(sequences, alarm.reindex(sequences.index))
    assert found["die"] == 3 and found["warned in time"] == pytest.approx(2 / 3)  # 20 edits before 160, not 10
    assert found["lead"] == pytest.approx(20 / 160)
    assert found["false alarms, lasting"] == "0/1" and found["alarms, dying at the end"] == "1/1"
    assert guarded.latest(50) == 40 and guarded.latest(500) == 480


def test_looks_are_never_within_a_batch():
    lost = pd.Series([0, 0.6, 0.9], index=[0, 100, 200])
    assert [edits for edits, *_ in guarded.between_checkpoints(lost, "memit-b100")] == [0, 100, 200]
    assert [edits for edits, *_ in guarded.between_checkpoints(lost, "memit-b10")][:3] == [0, 10, 20]
    looks = guarded.between_checkpoints(lost, "memit")
    assert [edits for edits, *_ in looks][:3] == [0, 5, 10] and looks == guarded.between_checkpoints(lost, "memit")
    assert guarded.at_checkpoints(lost) == [(0, 0, 100), (100, 60, 100), (200, 90, 100)]


def test_a_signal_is_a_share_of_its_healthy_value():
    one = pd.DataFrame({"edits": [*range(1, 31)] * 2, "metric": "‖W‖", "cohort": ["layer 1"] * 30 + ["layer 2"] * 30})
    one["value"] = [2.0] * 30 + [*np.linspace(4, 8, 30)]
    assert guarded.signal(one, "‖W‖").iloc[[0, -1]].tolist() == [1, 2]  # the layer that grew most
    one = pd.DataFrame({"edits": range(1, 31), "metric": "steps", "cohort": EDIT, "value": [20.0] * 20 + [2.0] * 10})
    assert guarded.signal(one, "steps of the optimisation").iloc[[0, -1]].tolist() == [-1, -0.1]
    assert guarded.signal(one, "perplexity").empty


def test_committed_runs():
    """One that dies, one that lasts, one that is dying at its end."""
    table = kedit.load_runs(["memit-rho2", "memit@10", "why-clamp"], committed="lab")
    sequences = guarded.watched(table)
    alarm = guarded.alarms(sequences, within=80)
    assert {*sequences.fate} == {"dies", "lasts", "dying"}
    found = guarded.judged(sequences, alarm)
    assert found["warned in time"] == 1 and found["false alarms, lasting"] == "0/1"
    first = guarded.which_first(table, sequences.assign(half=(sequences.fate == "dies").astype(int)))
    assert first.set_index("signal")["warned in time"]["unrelated facts"] == 1
