"""What piles up, from hand-made runs."""

import pandas as pd
import pytest

from kedit_lib.analysis import growth as accumulation
from kedit_lib.streams.runner import Run


def run(untouched, n=40):
    """Edits 1 … n with ‖W‖² = 100 + 5 n; checkpoints every 10: untouched facts as given, condition number 10 + n."""
    edits = pd.DataFrame(
        {
            "edit": range(1, n + 1),
            "probability_last": 0.9,
            "W_0": [(100 + 5 * i) ** 0.5 for i in range(1, n + 1)],
            "delta_ratio": 1.0,
            "steps": 7,
            "written_0": [0.5] * 20 + [0.8] * (n - 20),
            "along_0": 0.01,
        }
    )
    rows = []
    for done, right in zip(range(0, n + 1, 10), untouched, strict=True):
        rows += [
            {"edits_done": done, "metric": "accuracy", "cohort": "untouched", "value": right, "n": 100},
            {"edits_done": done, "metric": "condition number", "cohort": "layer 0", "value": 10.0 + done, "n": 1},
            {"edits_done": done, "metric": "largest singular", "cohort": "layer 0", "value": 1.0, "n": 1},
            {"edits_done": done, "metric": "hidden drift", "cohort": "layer 0", "value": 9.0, "n": 1},
            {"edits_done": done, "metric": "hidden drift", "cohort": "layer 3", "value": done / 100, "n": 1},
        ]
    return Run(edits, pd.DataFrame(rows), {})


def test_health_at_the_start_at_the_loss_of_half_and_at_the_end():
    table = accumulation.health_table({"MEMIT": {0: run([1.0, 0.9, 0.4, 0.3, 0.2])}}).set_index("moment")
    assert table.edits.to_dict() == {accumulation.START: 0, accumulation.DEAD: 20, accumulation.END: 40}
    assert table["condition number"].tolist() == [10.0, 30.0, 50.0]
    assert table["hidden drift"].tolist() == [0.0, 0.2, 0.4]  # of the last layer, not the edited one
    assert table["written fraction"].tolist()[1:] == [0.5, 0.8] and pd.isna(table["written fraction"].iloc[0])
    said = accumulation.sentence(table.reset_index())
    assert "condition number 10 → 30 (50 at the end); hidden drift 0.20, 50% written" in said


def test_a_stream_that_never_loses_half_is_told_at_its_end():
    table = accumulation.health_table({"A": {0: run([1.0, 0.9, 0.9, 0.9, 0.8])}})
    assert list(table.moment) == [accumulation.START, accumulation.END]
    assert "the end (edit 40)" in accumulation.sentence(table)


def test_a_run_that_measured_no_health_is_left_out():
    one = run([1.0, 0.9, 0.9, 0.9, 0.8])
    bare = Run(one.edits, one.checkpoints[one.checkpoints.metric == "accuracy"], {})
    table = accumulation.health_table({"A": {0: bare}})
    assert table.empty
    assert accumulation.sentence(table) == "No stream here measured it."


def test_a_random_walk_has_a_straight_square():
    row = accumulation.growth_table({"A": {0: run([1.0] * 5)}}).iloc[0]
    assert row["R² of ‖W‖²"] == pytest.approx(1)
    assert row["R² of log ‖W‖"] < 0.999


def test_which_line_is_straighter_is_said_by_stream():
    columns = ["stream", "order", "R² of log ‖W‖", "R² of ‖W‖²", "‖δ‖/‖v₀‖, first 25", "‖δ‖/‖v₀‖, last 25"]
    rows = [("A", 0, 0.9, 0.99, 1.0, 0.5), ("A", 1, 0.8, 0.99, 2.0, 0.5), ("B", 0, 0.99, 0.9, 3.0, 3.0)]
    said = accumulation.growth_sentence(pd.DataFrame(rows, columns=columns))
    assert said.startswith(
        "log ‖W‖ is the straighter line in every order of B; ‖W‖² is the straighter line in every order of A"
    )
    assert "1.5 → 0.5 (A), 3 → 3 (B)" in said
    mixed = pd.DataFrame([rows[0], ("A", 1, 0.99, 0.9, 1.0, 1.0)], columns=columns)
    assert accumulation.growth_sentence(mixed).startswith("Neither is the straighter line")
    assert accumulation.growth_sentence(mixed[:0]) == "No stream here was long enough."
