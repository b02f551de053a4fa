"""The benchmark: it compares like with like, its phases are all of the time, its floor lies below what is computed."""

from math import isfinite
from pathlib import Path

import bench
import bench_gpu
import pandas as pd
import pytest
import tiny
import torch
from roofline import Cost, peaks

import kedit_lib as kedit

EDITS = [kedit.Edit(prompt, subject, target) for prompt, subject, target in tiny.EDITS]
COMMON = {"layers": [1, 2], "v_num_grad_steps": 4, "kl_factor": 0.0625}
FINE_TUNED = {"layers": [1, 2], "num_steps": 4, "lr": 0.01}
METHODS = {
    "memit": kedit.MEMIT(**COMMON),
    "history": kedit.MEMIT(**COMMON, use_history=True),
    "pmet": kedit.PMET(**COMMON),
    "emmet": kedit.EMMET(**COMMON),
    "rect": kedit.RECT(**COMMON),
    "alphaedit": kedit.AlphaEdit(**COMMON, nullspace_threshold=1.0),
    "rome": kedit.ROME(**{**COMMON, "layers": [2]}),
    "rrome": kedit.RROME(**{**COMMON, "layers": [2]}),
    "prome": kedit.PROME(**{**COMMON, "layers": [2]}),
    "ft-l": kedit.FT(**FINE_TUNED, norm_constraint=0.02),
    "ft-m": kedit.FT(**FINE_TUNED, objective_optimization="target_new"),
}
PEAK = Cost(1e9, 1e9)
FAST = Cost(1e13, 1e13)  # than any core: no share of the roofline can reach 1


@pytest.fixture
def paths(tiny_folder):
    """`paths(method)` on a tiny model in float64."""

    def made(method):
        model = kedit.load_model(tiny_folder("llama"), dtype=torch.float64)
        moments = kedit.SecondMoments.from_tensors({i: c.double() for i, c in tiny.second_moments().items()})
        return bench.Paths(model, method, moments, tiny.CONTEXTS)

    return made


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_row(paths, method):
    both = paths(method)
    before = {name: p.clone() for name, p in both.model.hf.named_parameters()}
    row = bench.compared(both, [[e] for e in EDITS[:2]], 1, FAST, "path", 5)
    assert row["largest difference"] < 1e-8
    assert row["same number of steps"] == 1
    assert row["times faster"] > 0
    shares = [value for name, value in row.items() if name.startswith("share: ")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > -1e-6
    assert row["share: steps"] > row["share: solve"]
    assert all(row[f"share: {phase}"] > 0 for phase in ("steps", "first pass", "write"))
    assert 0 < row["share of roofline reached"] < 1
    assert (row["edits"], row["plain edits"]) == (2, 1)
    assert all(torch.equal(p, before[name]) for name, p in both.model.hf.named_parameters())  # each edit was taken back


def test_a_batch_without_the_plain_path(paths):
    row = bench.compared(paths(kedit.MEMIT(**COMMON)), [EDITS], 0, PEAK, "batch")
    assert row["edits"] == len(EDITS)
    assert row["s/edit"] > 0
    assert pd.isna(row["times faster"]) and pd.isna(row["largest difference"])
    assert "×" not in bench.line(row)


def test_a_wrong_update_shows(paths):
    both = paths(kedit.MEMIT(**COMMON))
    (_, outcome), (_, result) = both.ours(EDITS[:1]), both.plain(EDITS[:1])
    assert bench.difference(outcome, result) < 1e-8
    next(iter(outcome.deltas.values())).mul_(1.001)
    assert bench.difference(outcome, result) > 5e-4


def test_the_share_of_matrix_products(paths):
    assert 0.01 < bench.in_products(paths(kedit.MEMIT(**{**COMMON, "v_num_grad_steps": 1})), EDITS[:1]) < 0.99


def test_a_phase_does_not_count_another_within_it(paths):
    with bench.Phases(torch.device("cpu")) as clock:
        seconds, _ = paths(METHODS["pmet"]).ours(EDITS[:1])
    assert all(share >= 0 for share in clock.seconds.values())  # the first pass lies within the steps
    assert sum(clock.seconds.values()) < seconds


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The benchmark's methods on the small lab model, and one of its edits."""
    smoke = kedit.Bench("smoke", results=tmp_path_factory.mktemp("results"), progress=False)
    texts, layers = smoke.facts.texts(), range(smoke.model.n_layers)
    moments = kedit.SecondMoments.estimate(smoke.model, texts, layers, tokens=20 * smoke.model.d_ff)
    return bench.alone(smoke, moments), smoke.edits(0)[:1]


@pytest.mark.parametrize("title", bench.ALONE)
def test_every_row_of_the_lab(smoke, title):
    both, edits = smoke[0][title], smoke[1]
    row = bench.compared(both, [edits], 1, FAST, title)
    assert row["largest difference"] < (0.05 if title.startswith("FT") else 1e-3)  # float32: Adam turns signs at 0
    assert row["same number of steps"] == 1
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    assert pd.Series(numbers).map(isfinite).all()
    assert 0 < row["share of roofline reached"] < 1


def test_along_a_stream(paths):
    table = bench.along(paths(kedit.MEMIT(**COMMON, use_history=True)), EDITS[:1] * 20, "history", PEAK, steps=1)
    assert list(table["edits so far"]) == list(range(2, 21, 2))
    assert (table["steps"] == 1).all() and (table["s/edit"] > 0).all()
    assert table["least s/edit (roofline)"].is_monotonic_increasing  # by what a history of so many keys costs
    assert table["least s/edit (roofline)"].is_unique


def test_a_budget_of_tokens_costs_less_the_larger_it_is(paths):
    both = paths(kedit.MEMIT(**{**COMMON, "v_num_grad_steps": 2}))
    table = bench.budgets(both, tiny.SENTENCES.splitlines(), EDITS[:1], factors=(3, 8, 10**4))
    assert table["error of C"].is_monotonic_decreasing
    assert (table["error of C"].iloc[-1], table["error of an update (mean)"].iloc[-1]) == (0, 0)
    assert table["error of an update (mean)"].iloc[0] > 0


def test_single_precision_costs_more_the_worse_the_condition():
    chance = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(24, 24, generator=chance, dtype=torch.float64)).Q
    keys = {i: torch.randn(5, 24, generator=chance, dtype=torch.float64) for i in (0, 1)}
    C = {
        i: basis @ torch.diag(torch.logspace(0, -low, 24, dtype=torch.float64)) @ basis.T for i, low in ((0, 1), (1, 6))
    }
    table = bench.precision(kedit.SecondMoments.from_tensors(C), keys, 2.0)
    assert table["condition of C"].round(-1).tolist() == [10, 1e6]
    for column in table.columns[3:]:
        mild, bad = table[column]
        assert 1e-8 < mild < 1e-5 and 1e-4 < bad < 1


def test_peaks_are_speeds():
    peak = peaks(torch.device("cpu"), torch.float32, size=64, seconds=0.01)
    assert 1e7 < peak.flops < 1e15 and 1e7 < peak.bytes < 1e14
    assert Cost(2e9, 1e9).seconds(PEAK) == 2.0
    assert Cost(1e9, 3e9).seconds(PEAK) == 3.0


def test_gpu_profile_at_a_tiny_shape(tmp_path, capsys):
    assert bench.main(["--profile", "gpu", "--shape", "tiny", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "benchmarks_gpu.csv")
    assert list(table["path"]) == ["MEMIT", "PMET", "ROME", "MEMIT, batch of 6"]
    assert list(table["steps"]) == [25, 20, 25, 25]  # random weights learn nothing
    assert (table["s/edit"] > 0).all()
    assert "GiB on" in capsys.readouterr().out


def test_a_pretrained_model():
    table = bench.pretrained("lab-small", edits_each=1, batch=1, v_num_grad_steps=2)
    assert list(table["path"]) == ["MEMIT", "PMET", "ROME", "MEMIT"]
    assert (table["times faster"] > 1).all() and (table["largest difference"] < 1e-2).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is none")
def test_gpu_profile_without_a_gpu(tmp_path, capsys):
    assert bench.main(["--profile", "gpu", "--out", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("kedit: llama-2-7b: no CUDA device is here")
    assert not list(tmp_path.iterdir())
    assert bench.main(["--profile", "gpu", "--shape", "huge", "--out", str(tmp_path)]) == 1


def test_made_up_edits_have_different_subjects():
    edits = bench_gpu.made_up_edits(1000)
    assert len({e.subject for e in edits}) == 1000
    assert [repr(e) for e in edits] == [repr(e) for e in bench_gpu.made_up_edits(1000)]


def test_the_makefile_runs_it():
    rules = Path(bench.__file__).parents[1].joinpath("Makefile").read_text()
    assert "tests/bench.py --profile $(PROFILE)" in rules
