"""The benchmark: it compares like with like, its phases are all of the time, its floor lies below what is computed."""

import pandas as pd
import pytest
import speed
import torch
from library import EDITS, METHODS
from roofline import Cost, peaks

import kedit_lib as kedit
from kedit_lib.models.llama import multiplies_in_bfloat16

PEAK = Cost(1e9, 1e9)
FAST = Cost(1e13, 1e13)  # than any core: no share of the roofline can reach 1


QUICK = ("MEMIT with history", "ROME", "FT-L")
ROWS = [pytest.param(m, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, m in METHODS.items()]


@pytest.mark.parametrize("method", ROWS)
def test_a_row(paths, method):
    both = paths(method)
    before = {name: p.clone() for name, p in both.model.hf.named_parameters()}
    row = speed.compared(both, [[e] for e in EDITS[:2]], 1, FAST, "path", 5)
    assert row["largest difference"] < 1e-8
    assert row["same number of steps"] == 1
    assert row["times faster"] > 0
    shares = [value for name, value in row.items() if name.startswith("share: ")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > -1e-6
    assert row["share: steps"] > row["share: solve"]
    assert all(row[f"share: {phase}"] > 0 for phase in ("steps", "first pass", "write"))
    assert isinstance(method, kedit.FT) or 0 < row["share of roofline reached"] < 1
    assert (row["edits"], row["plain edits"]) == (2, 1)
    assert all(torch.equal(p, before[name]) for name, p in both.model.hf.named_parameters())  # each edit was taken back


def test_a_batch_without_the_plain_path(paths):
    row = speed.compared(paths(METHODS["MEMIT"]), [EDITS], 0, PEAK, "batch")
    assert row["edits"] == len(EDITS)
    assert row["s/edit"] > 0
    assert pd.isna(row["times faster"]) and pd.isna(row["largest difference"])
    assert "×" not in speed.line(row)


def test_a_wrong_update_shows(paths):
    both = paths(METHODS["MEMIT"])
    (_, outcome), (_, result) = both.ours(EDITS[:1]), both.plain(EDITS[:1])
    assert speed.difference(outcome, result) < 1e-8
    next(iter(outcome.deltas.values())).mul_(1.001)
    assert speed.difference(outcome, result) > 5e-4


@pytest.mark.slow
def test_every_row_of_the_lab(tmp_path, monkeypatch):
    """At the small lab model: each method alone, batches, in float64 and four times as wide."""
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path / "results"))
    assert speed.main(["--profile", "smoke", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "benchmarks.csv").set_index("path")
    assert {*speed.ALONE} < {*table.index}
    for path, row in table.iterrows():
        close = 1e-8 if path.endswith("float64") else 0.05 if path.startswith("FT") else 1e-3  # Adam turns signs at 0
        assert row["largest difference"] < close, path
    assert (table["same number of steps"] == 1).all()
    assert table["share of roofline reached"].dropna().between(0, 1).all()


def test_peaks_are_speeds():
    peak = peaks(torch.device("cpu"), torch.float32, size=64, seconds=0.01)
    assert 1e7 < peak.flops < 1e15 and 1e7 < peak.bytes < 1e14
    assert Cost(2e9, 1e9).seconds(PEAK) == 2.0
    assert Cost(1e9, 3e9).seconds(PEAK) == 3.0


@pytest.mark.slow
def test_a_pretrained_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path))
    table = speed.pretrained("smoke", singles=1, batch=3, plain=2).set_index("path")
    batch = "MEMIT, batch of 3"
    exact, half = ["MEMIT", "PMET", "ROME"], ["MEMIT, bfloat16", f"{batch}, bfloat16"]
    assert {*table.index} == {*exact, batch, *(half if multiplies_in_bfloat16() else ())}
    assert (table["times faster"].dropna() > 1).all() and table.loc[batch, "plain edits"] == 2
    assert (table.loc[exact, "largest difference"] < 1e-3).all()
