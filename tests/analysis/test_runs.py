"""Runs as one tidy table: what stands in it, and that its outcomes are those of the runs."""

import pandas as pd
import pytest
from library import refused
from scipy.stats import binomtest

import kedit_lib as kedit
from kedit_lib.analysis.runs import interval, load_runs, outcomes, over_orders, setting_of, tidy, window_median
from kedit_lib.streams.bench import data_folder
from kedit_lib.streams.store import read_tables

NAME = "memit-layers-steps"  # the committed stream whose probability collapses


@pytest.fixture(scope="module")
def runs():
    return load_runs([NAME, "rome"])


@pytest.mark.parametrize(
    "name, stream, setting",
    [("memit", "memit", "as printed"), ("rome-noC-rho2", "rome-noC", "as scaled"), ("memit-rho1", "memit", "ρ = 1")],
)
def test_a_name_says_stream_and_setting(name, stream, setting):
    assert setting_of(name) == (stream, setting)


def test_outcomes_are_those_of_the_runs(runs):
    table = outcomes(runs)
    lab = table[table.model == "lab"].set_index(["stream", "order"])
    for order in (0, 1, 2):
        run = kedit.Run(*read_tables(data_folder(), f"lab.{NAME}.order{order}."))
        found = lab.loc[(NAME, order)]
        assert found.N_optimisation == kedit.collapse_point(run)
        assert found.N_model == kedit.collapse_point(run, "model")
        assert found.p_edited < found.p_edited_mean < 0.1  # a few edits that are left make most of the mean
        assert found.p_last == pytest.approx(run.edits.probability_last.tail(25).median())
        assert found.edits == run.curve("accuracy", "edits").iloc[-1]
        assert found.perplexity_start == run.curve("perplexity", "plain text")[0]


def test_an_edit_has_a_row_for_each_of_its_numbers():
    run = kedit.Run(*read_tables(data_folder(), "lab.rome.order1."))
    table = tidy(run, model="lab")
    p = table[table.metric == "optimised probability"].set_index("edits").value
    assert p.tolist() == run.edits.probability_last.tolist()
    assert (table[table.metric == "cosine with earlier updates"].cohort == "layer 1").all()
    each = run.checkpoints[(run.checkpoints.metric == "probability") & run.checkpoints.cohort.str.contains(r"edit \d")]
    medians = each.groupby("edits_done").value.median()
    assert table[table.metric == "median probability"].set_index("edits").value.to_dict() == medians.to_dict()
    assert len(table) == len(run.checkpoints) + 8 * len(run.edits) + len(medians)


def test_the_running_median_is_one_of_its_own_stream(runs):
    table = window_median(runs)
    first = table[table.edits < 25]
    assert first["median"].isna().all() and table[table.edits >= 25]["median"].notna().all()


def test_committed_runs_of_some_models_only(runs):
    assert set(load_runs(["rome"], committed="lab").model) == {"lab"}
    assert not runs.cohort.str.fullmatch(r"edit \d+").any()
    refused(lambda: load_runs(["no such stream"]), "none is stored")


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (50, 50), (31, 450)])
def test_the_interval_of_a_share_is_wilsons(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert interval(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_a_curve_over_orders_is_their_mean_where_all_of_them_reach():
    labels = {"model": "lab", "stream": "memit", "setting": "as printed"}
    one = pd.DataFrame({**labels, "order": 0, "edits": [0, 100], "value": [1.0, 0.5], "n": 50})
    other = pd.DataFrame({**labels, "order": 1, "edits": [0, 50, 150], "value": [1.0, 0.25, 0.25], "n": 50})
    curve = over_orders(pd.concat([one, other]), ["model", "stream"])
    assert curve.edits.tolist() == [0, 50, 100] and curve.n.tolist() == [100] * 3
    assert curve.value.tolist() == pytest.approx([1, 0.5, 0.375])
    assert (curve.low[1], curve.high[1]) == pytest.approx(interval(0.5, 100))
    spread = over_orders(pd.concat([one, other]), ["model", "stream"], share=False)
    assert (spread.low[1], spread.high[1]) == (0.25, 0.75)
