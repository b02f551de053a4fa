"""Claims: each verdict follows from its numbers, its bar and what it presupposes."""

import pandas as pd
import pytest

import kedit_lib as kedit
from kedit_lib.report import claims

COLUMNS = ["model", "stream", "setting", "order", "edits", "metric", "cohort", "value", "n"]


def stream(name, p, edits=0.9, untouched=0.9, order=0, setting="as printed"):
    """100 edits of which the last 50 reach p, and a model that is right at these shares at the end."""
    rows = [(i, "optimised probability", "each edit", 0.98 if i <= 50 else p) for i in range(1, 101)]
    rows += [(100, "accuracy", c, v) for c, v in (("edits", edits), ("paraphrases", edits), ("untouched", untouched))]
    rows += [(0, "accuracy", "untouched", 1.0)]
    return pd.DataFrame([("toy", name, setting, order, *row, 10) for row in rows], columns=COLUMNS)


def verdicts(*streams, memory=None):
    table = claims.verdicts(claims.measure(pd.concat(streams), memory)).set_index(["claim", "variant"])
    return table.verdict.to_dict()


def test_ten_claims_at_most_and_each_named_once():
    assert len(claims.CLAIMS) <= 10
    assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def test_a_collapse_is_reproduced_and_then_nothing_lifts_it():
    found = verdicts(stream("memit", 1e-8))
    assert found["probability-collapses", "MEMIT"] == found["nothing-lifts-it", "MEMIT"] == "reproduced"


def test_what_never_happened_is_not_testable():
    found = verdicts(stream("memit", 0.97))
    assert found["probability-collapses", "MEMIT"] == "not reproduced"
    assert found["nothing-lifts-it", "MEMIT"] == "not testable"


def test_some_orders_are_partly():
    found = verdicts(stream("memit", 1e-8), stream("memit", 0.97, order=1))
    assert found["probability-collapses", "MEMIT"] == "partly"
    assert found["nothing-lifts-it", "MEMIT"] == "reproduced"  # in the one order that can be tested


def test_a_high_probability_over_a_dead_model_hides_it():
    assert verdicts(stream("rome", 0.98, edits=0.1))["probability-hides", "ROME"] == "reproduced"
    assert verdicts(stream("rome", 0.01, edits=0.0))["probability-hides", "ROME"] == "not testable"


def test_one_batch_leads_only_over_a_stream_that_collapsed():
    batch = stream("memit-mass", 0.98, 0.8, 0.8)
    assert verdicts(stream("memit", 0.98, 0.3, 0.3), batch)["batch-leads", "MEMIT-MASS"] == "reproduced"
    assert verdicts(stream("memit", 0.98, 0.9, 0.9), batch)["batch-leads", "MEMIT-MASS"] == "not testable"


def test_memory_is_judged_where_it_was_measured():
    assert verdicts(stream("memit", 0.9), memory={"toy": 1.5})["batch-memory", "MEMIT-MASS"] == "reproduced"
    assert ("batch-memory", "MEMIT-MASS") not in verdicts(stream("memit", 0.9))


def test_a_value_out_of_its_band_is_named():
    old = claims.measure(stream("memit", 0.97))
    assert claims.outside(old, old) == []
    (line,) = claims.outside(claims.measure(stream("memit", 0.6)), old)
    assert line.startswith("probability-collapses / MEMIT / toy / as printed / 0: 0.612, accepted 0.99")
    new = claims.measure(pd.concat([stream("memit", 0.97), stream("pmet", 0.97)]))
    assert all("has no accepted value" in line for line in claims.outside(new, old))


def test_readers_see_a_row_a_claim_and_what_was_not_run():
    table = claims.shown(claims.verdicts(claims.measure(stream("memit", 0.97))))
    assert len(table) == len(claims.CLAIMS)
    assert table["toy, as printed"][0] == "MEMIT: not reproduced 0.99"
    assert "not run" in set(table["toy, as printed"])


def test_the_committed_claims_of_the_lab_come_out_again():
    """Whatever of figures/data/claims.csv rests on committed runs alone."""
    accepted = claims.read(claims.accepted())
    runs = kedit.load_runs(claims.STREAMS)
    new = claims.measure(runs)
    key = ["claim", "variant", "model", "setting", "order"]
    both = new.merge(accepted, on=key, suffixes=("", "_accepted")).dropna(subset=["value", "value_accepted"])
    assert len(both) > 20
    assert (both.value - both.value_accepted).abs().max() < 1e-5


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "claims.csv").write_text("no,table\n1,2\n")
    with pytest.raises(kedit.KeditError, match="claims.csv: cannot be read"):
        claims.read(tmp_path / "claims.csv")
