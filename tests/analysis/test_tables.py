"""Tables and sentences of the report, by hand-made streams."""

import pandas as pd

from kedit_lib.analysis import tables as findings
from kedit_lib.streams.runner import Run


def a_run(p, curves: dict[tuple[str, str], dict[int, float]], batch: int = 1) -> Run:
    """A stream with these optimised probabilities and {(metric, cohort): {edits_done: value}}."""
    edits = pd.DataFrame({"edit": range(1, len(p) + 1), "probability_last": p, "batch": batch})
    rows = [
        {"edits_done": n, "metric": metric, "cohort": cohort, "value": v, "n": 10}
        for (metric, cohort), curve in curves.items()
        for n, v in curve.items()
    ]
    return Run(edits, pd.DataFrame(rows), {})


def points(values: dict[str, tuple]) -> pd.DataFrame:
    """{stream: (edit at which p halved or None, p at the end)}"""
    rows = [
        {"stream": s, "order": 0, "edits": 60, "N_optimisation": n, "p last 25": p, "untouched": p / 2}
        for s, (n, p) in values.items()
    ]
    return pd.DataFrame(rows).astype({"N_optimisation": "Int64"})


def test_whose_probability_lasts_is_said_for_each_setting():
    table = points({"a": (None, 0.9), "b": (40, 0.2), "c": (30, 0.1), "d": (None, 0.8), "e": (9, 0.1), "f": (8, 0.1)})
    settings = {
        "as it is": ("a", "b"),
        "longer": ("c", "d"),
        "both": ("a", "d"),
        "worst": ("e", "f"),
        "not": ("a", "x"),
    }
    text = findings.verdict_contrast(table, settings)
    assert "ROME's alone: longer; MEMIT's alone: as it is; both: both; neither: worst.**" in text
    assert "- longer, after 60 edits: MEMIT p = 0.1, 5% of the untouched facts right; ROME p = 0.8, 40%" in text
    assert "not" not in text.split("**")[1]


def test_without_its_streams_the_contrast_says_so():
    assert "were not run" in findings.verdict_contrast(points({"a": (None, 0.9)}), {"x": ("a", "b")})


def test_what_a_high_probability_hides_is_read_at_its_last_high_checkpoint():
    curves = {
        ("accuracy", c): dict(zip((30, 60, 90), v, strict=True))
        for c, v in {"edits": (0.9, 0.6, 0.1), "untouched": (0.8, 0.3, 0.0), "same subjects": (0.5, 0.2, 0.0)}.items()
    }
    text = findings.hidden_by("ROME", {"ROME": {0: a_run([0.95] * 60 + [0.2] * 30, curves)}})
    assert "edit 60" in text and "60% of its edits, 30% of the untouched facts" in text
    never = findings.hidden_by("ROME", {"ROME": {0: a_run([0.5] * 90, curves)}})
    assert never == "ROME reports p > 0.9 at no checkpoint."


def test_the_regime_is_named_by_where_the_probability_halves():
    table = pd.DataFrame(
        [
            {"stream": "here", "order": 0, "edits": 90, "N_optimisation": pd.NA, "p last 25": 0.9},
            {"stream": "there", "order": 0, "edits": 90, "N_optimisation": 40, "p last 25": 0.1},
        ]
    )
    said = findings.verdict_regime(table)
    assert "halves with there (edit 40)" in said and "lowest with there: a median of 0.1" in said
    assert "In none of these" in findings.verdict_regime(table[:1])


def test_a_batchs_lead_is_counted_over_the_orders_that_both_have():
    def ends(edits, untouched=None):
        curves = {("accuracy", "edits"): {0: 0.0, 60: edits}}
        return a_run([0.9] * 60, curves | ({("accuracy", "untouched"): {60: untouched}} if untouched else {}))

    single = {0: ends(0.2, 0.5), 1: ends(0.4, 0.5), 2: ends(0.9)}
    said = findings.leads(single, {0: ends(0.3, 0.4), 1: ends(0.3)}).splitlines()
    assert said == [
        "- edits: 30% after single edits, 30% after one batch; the batch is ahead in 1 of 2 orders.",
        "- untouched: 50% after single edits, 40% after one batch; the batch is ahead in 0 of 1 orders.",
    ]
