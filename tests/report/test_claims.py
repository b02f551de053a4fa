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


LIVE, DEAD = stream("memit", 0.97), stream("memit", 1e-8)
BATCH = stream("memit-mass", 0.98, 0.8, 0.8)
ASKED = [stream(name, 0.9).assign(edits=lambda rows: rows.edits.clip(upper=50)) for name in ("memit", "rome")]


@pytest.mark.parametrize(
    "streams, claim, variant, verdict",
    [
        ([DEAD], "probability-collapses", "MEMIT", "reproduced"),
        ([DEAD], "nothing-lifts-it", "MEMIT", "reproduced"),
        ([LIVE], "probability-collapses", "MEMIT", "not reproduced"),
        ([LIVE], "nothing-lifts-it", "MEMIT", "not testable"),  # what never happened
        ([DEAD, stream("memit", 0.97, order=1)], "probability-collapses", "MEMIT", "partly"),
        ([DEAD, stream("memit", 0.97, order=1)], "nothing-lifts-it", "MEMIT", "reproduced"),  # in the one order
        ([stream("rome", 0.98, edits=0.1)], "probability-hides", "ROME", "reproduced"),  # high over a dead model
        ([stream("rome", 0.01, edits=0.0)], "probability-hides", "ROME", "not testable"),
        ([stream("memit", 0.98, 0.3, 0.3), BATCH], "batch-leads", "MEMIT-MASS", "reproduced"),
        ([stream("memit", 0.98, 0.9, 0.9), BATCH], "batch-leads", "MEMIT-MASS", "not testable"),
        ([LIVE], "batch-memory", "MEMIT-MASS", None),  # judged where it was measured
        (ASKED, "advice", "few", "not reproduced"),
        ([LIVE, ASKED[1]], "advice", "few", "not testable"),  # not asked after 50 edits
    ],
)
def test_a_verdict_follows_from_the_runs(streams, claim, variant, verdict):
    assert verdicts(*streams).get((claim, variant)) == verdict


def test_only_orders_that_could_be_tested_count():
    table = claims.verdicts(claims.measure(pd.concat([DEAD, stream("memit", 0.97, order=1)])))
    orders = table.set_index("claim").orders
    assert orders["probability-collapses"] == 2 and orders["nothing-lifts-it"] == 1


def test_ten_claims_at_most_each_named_once_and_memory_judged_where_it_was_measured():
    assert len({claim["name"] for claim in claims.CLAIMS}) == len(claims.CLAIMS) <= 10
    assert verdicts(stream("memit", 0.9), memory={"toy": 1.5})["batch-memory", "MEMIT-MASS"] == "reproduced"


def test_a_value_out_of_its_band_is_named():
    old = claims.measure(stream("memit", 0.97))
    assert claims.outside(old, old) == []
    (line,) = claims.outside(claims.measure(stream("memit", 0.6)), old)
    assert line.startswith("probability-collapses / MEMIT / toy / as printed / 0: 0.612, accepted 0.99")
    new = claims.measure(pd.concat([stream("memit", 0.97), stream("pmet", 0.97)]))
    assert all("has no accepted value" in line for line in claims.outside(new, old))
    table = claims.shown(claims.verdicts(old))  # readers see a row a claim, and what was not run
    assert len(table) == len(claims.CLAIMS)
    assert table["toy, as printed"][0] == "MEMIT: not reproduced 0.99"
    assert "not run" in set(table["toy, as printed"])


def test_the_committed_claims_of_the_lab_come_out_again():
    """Whatever of figures/data/claims.csv rests on committed runs alone."""
    accepted = claims.read(claims.ACCEPTED)
    runs = kedit.load_runs(claims.STREAMS)
    new = claims.measure(runs)
    key = ["claim", "variant", "model", "setting", "order"]
    both = new.merge(accepted, on=key, suffixes=("", "_accepted")).dropna(subset=["value", "value_accepted"])
    assert len(both) > 20
    assert (both.value - both.value_accepted).abs().max() < 1e-5
