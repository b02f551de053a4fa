"""Predictions are scored on outcomes: each in the file can be, and verdicts are what the rows say."""

import pandas as pd
import pytest

import kedit_lib as kedit
from kedit_lib.analysis import predictions
from kedit_lib.data.config import parse


@pytest.fixture(scope="module")
def found():
    """The committed streams that the predictions about the lab speak of, order 1."""
    runs = kedit.load_runs(["memit", "memit-layers-steps", "memit-layers-steps-mass", "rome-noC"], committed="lab")
    return kedit.outcomes(runs)


def test_every_prediction_can_be_scored(found):
    every = parse(predictions.PATH.read_text(encoding="utf-8"), "predictions")
    table = predictions.scored(found)
    assert table.name.is_unique and len(table) == len(every)
    assert set(table.verdict) >= {"held", "failed", "not testable"}


def test_verdicts_are_those_of_the_rows(found):
    by_name = predictions.scored(found).set_index("name")
    assert by_name.verdict["lab-batch-long-steps"] == "held" and by_name.runs["lab-batch-long-steps"] == 3
    assert by_name.verdict["lab-memit-by-width"] == "failed"  # the point is not reached: inf
    assert by_name.verdict["lab-rome-without-C"] == "held"
    assert by_name.verdict["lab-rome-thousand"] == "not testable"  # this stream was not handed over
    assert by_name.verdict["lab-regime-both"] == "held"


def test_one_row_against_its_own_model_setting_and_order(found):
    some = pd.concat([found, found[found.stream == "memit"].assign(model="other", untouched=0.0)])
    twice = predictions._asked({"against": "memit", "where": "order >= 0"}, some)
    assert len(twice) == len(some[some.order.isin(found[found.stream == "memit"].order)])
    assert (twice[twice.model == "lab"].untouched_other > 0).all()


def test_one_notebooks_predictions_alone(found):
    """What came of an experiment that is no longer shown stays."""
    assert set(predictions.scored(found, "04").notebook) == {"04"}
    assert predictions.scored(found, "06").set_index("name").verdict["lab-keys-near"].startswith("failed")


def test_a_prediction_may_speak_of_a_notebooks_table(found, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_FIGURES", str(tmp_path))
    alone = predictions.scored(found, "11").set_index("name")
    assert alone.verdict["lab-foretold"] == "not testable"  # no such table
    rows = [("lab", 100, 90), ("lab", 100, 300), ("smollm2", 50, None)]
    pd.DataFrame(rows, columns=["model", "foretold", "observed"]).to_csv(tmp_path / "11_foretold.csv", index=False)
    scored = predictions.scored(found, "11").set_index("name")
    assert scored.verdict.to_dict() == {"lab-foretold": "in 1 of 2", "real-foretold": "not testable"}
