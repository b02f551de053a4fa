"""Claims: what decides them by hand-made runs, verdicts, and the bands that later runs are held to."""

import pandas as pd
import pytest
import torch

import kedit_lib as kedit
from kedit_lib.analysis import claim_values as quantities
from kedit_lib.editing.second_moments import SecondMoments
from kedit_lib.errors import KeditError
from kedit_lib.evaluation.interference import interference
from kedit_lib.report import claims
from kedit_lib.report.claims import CLAIMS, Claim
from kedit_lib.streams.runner import Run


def a_run(p, accuracy: dict[str, dict[int, float]]) -> Run:
    """A stream with these optimised probabilities, and {cohort: {edits_done: right}}."""
    edits = pd.DataFrame({"edit": range(1, len(p) + 1), "probability_last": p})
    rows = [
        {"edits_done": n, "metric": "accuracy", "cohort": c, "value": v, "n": 1}
        for c, curve in accuracy.items()
        for n, v in curve.items()
    ]
    return Run(edits, pd.DataFrame(rows), {})


def test_what_decides_reads_the_run_as_it_says():
    p = [0.8] * 25 + [0.1] * 10 + [0.2] * 25
    run = a_run(p, {"edits": {10: 1.0, 60: 0.25}, "latest edits": {10: 1.0, 60: 0.5}})
    assert quantities.kept(run) == pytest.approx(0.25)
    assert quantities.last_probability(run) == pytest.approx(0.2)
    assert quantities.right(run, "edits") == 0.25
    assert quantities.forgotten(run) == pytest.approx(0.75 - 0.25)


def test_a_value_after_n_edits_is_never_borrowed_from_a_later_checkpoint():
    run = a_run([0.5] * 60, {"untouched": {0: 1.0, 10: 0.7, 30: 0.3}, "paraphrases": {50: 0.9}})
    assert quantities.right(run, "untouched", 10) == pytest.approx(0.7)
    assert quantities.right(run, "untouched", 20) == pytest.approx(0.5)  # between two
    for cohort, n in (("paraphrases", 10), ("untouched", 40), ("nobody", 10)):
        assert pd.isna(quantities.right(run, cohort, n))


def test_checkpoints_far_apart_weigh_as_much_as_the_edits_between_them():
    run = a_run([0.5] * 110, {"edits": {110: 0.0}, "latest edits": {10: 1.0, 11: 1.0, 12: 1.0, 13: 1.0, 110: 0.0}})
    assert quantities.forgotten(run) == pytest.approx(0.52, abs=0.01)


def test_overall_is_the_mean_of_three():
    run = a_run([0.5] * 10, {"edits": {10: 1.0}, "paraphrases": {10: 0.5}, "untouched": {10: 0.0}})
    assert quantities.overall(run) == pytest.approx(0.5)
    assert quantities.precise(run, 10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "values, verdict",
    [
        ({0: 0.6, 1: 0.7, 2: 0.9}, "reproduced"),
        ({0: 0.6, 1: 0.4}, "partly"),
        ({0: 0.5}, "not reproduced"),  # on the bar is not beyond it
        ({0: float("nan")}, "not measured"),
        ({0: float("nan"), 1: 0.9}, "partly"),
        ({}, "not measured"),
    ],
)
def test_all_orders_must_agree(values, verdict):
    claim = Claim("x", "", "", 0.5, True, 0.1, "02", lambda bench: values)
    assert claim.verdict(values) == verdict


def test_a_claim_may_ask_for_a_small_value():
    claim = Claim("x", "", "", 0.5, False, 0.1, "02", lambda bench: {})
    assert claim.verdict({0: 0.4}) == "reproduced"
    assert claim.verdict({0: 0.6}) == "not reproduced"


def test_bands():
    claim = Claim("x", "", "", 0.5, True, 0.1, "02", lambda bench: {})
    old = pd.DataFrame([{"name": "x", "order 0": 0.50, "order 1": 0.7}])

    def lines(**now):
        return claims.outside(
            pd.DataFrame([{"name": "x", **{k.replace("_", " "): v for k, v in now.items()}}]), old, [claim]
        )

    assert lines(order_0=0.59, order_1=0.7) == []
    assert lines(order_0=0.61, order_1=0.7) == ["x, order 0: 0.61, accepted 0.5 ± 0.1"]
    assert len(lines(order_0=0.5, order_1=float("nan"))) == 1
    other = [Claim("y", "", "", 0, True, 1, "02", lambda bench: {})]
    new = pd.DataFrame([{"name": "y", "order 0": 1.0}])
    assert claims.outside(new, old, other) == ["y: has no accepted value"]


def test_every_claim_says_what_it_needs():
    assert len({c.name for c in CLAIMS}) == len(CLAIMS) >= 14
    for claim in CLAIMS:
        assert claim.says and claim.quantity and claim.margin > 0 and len(claim.notebook) == 2


def test_no_table_yet_is_one_clear_line(tmp_path):
    with pytest.raises(KeditError, match="make reproduce"):
        claims.shown(tmp_path)


def test_interference_is_the_mean_square_of_what_text_would_feel():
    lab_small = kedit.load_model("lab-small")

    generator = torch.Generator().manual_seed(0)
    k = torch.randn(50, lab_small.d_ff, generator=generator, dtype=torch.float64)
    moments = SecondMoments.from_tensors({1: k.T @ k / 50, 2: torch.eye(lab_small.d_ff, dtype=torch.float64)})
    delta = torch.randn(lab_small.d_model, lab_small.d_ff, generator=generator, dtype=torch.float64)
    by_hand = (k @ delta.T).square().sum(1).mean().item()
    found = interference(lab_small, {lab_small.weight_name(1): delta}, moments)
    assert found == pytest.approx(by_hand, rel=1e-9)
    both = {lab_small.weight_name(1): delta, lab_small.weight_name(2): delta}
    assert interference(lab_small, both, moments) == pytest.approx(by_hand + delta.square().sum().item(), rel=1e-9)
