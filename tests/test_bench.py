"""The benchmark: it compares like with like, its phases are all of the time, its floor lies below what is computed."""

from pathlib import Path

import bench
import bench_gpu
import pandas as pd
import pytest
import tiny
import torch
from roofline import Cost, edit_cost, peaks
from torch.utils.flop_counter import FlopCounterMode

import kedit_lib as kedit

EDITS = [kedit.Edit(prompt, subject, target) for prompt, subject, target in tiny.EDITS]
COMMON = {"layers": [1, 2], "v_num_grad_steps": 4, "kl_factor": 0.0625}
PEAK = Cost(1e9, 1e9)


@pytest.fixture
def paths(tiny_folder):
    """`paths(method)` on a tiny model in float64."""

    def made(method):
        model = kedit.load_model(tiny_folder("llama"), dtype=torch.float64)
        moments = kedit.SecondMoments.from_tensors({i: c.double() for i, c in tiny.second_moments().items()})
        return bench.Paths(model, method, moments, tiny.CONTEXTS)

    return made


@pytest.mark.parametrize(
    "method",
    [
        kedit.MEMIT(**COMMON),
        kedit.MEMIT(**COMMON, use_history=True),
        kedit.PMET(**COMMON),
        kedit.ROME(**{**COMMON, "layers": [2]}),
        kedit.AlphaEdit(**COMMON, nullspace_threshold=1.0),
    ],
    ids=["memit", "history", "pmet", "rome", "alphaedit"],
)
def test_a_row(paths, method):
    both = paths(method)
    before = {name: p.clone() for name, p in both.model.hf.named_parameters()}
    row = bench.compared(both, [[e] for e in EDITS[:3]], 2, PEAK, "path", 5)
    assert row["largest difference"] < 1e-8
    assert row["same number of steps"] == 1
    assert row["times faster"] > 0
    shares = [value for name, value in row.items() if name.startswith("share: ")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > -1e-6
    assert row["share: steps"] > row["share: solve"]
    assert (row["edits"], row["plain edits"]) == (3, 2)
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


def test_along_a_stream(paths):
    table = bench.along(paths(kedit.MEMIT(**COMMON, use_history=True)), EDITS * 4, "history", steps=2)
    assert list(table["edits so far"]) == list(range(2, 21, 2))
    assert (table["steps"] <= 2).all() and (table["s/edit"] > 0).all()


@pytest.mark.parametrize("layers", [[1], [1, 2]], ids=str)
def test_the_floor_lies_below_what_is_computed(paths, layers):
    """Operations counted by torch while the library edits, and while the plain path does."""
    both = paths(kedit.MEMIT(**{**COMMON, "layers": layers}))
    both.ours(EDITS[:1])
    with FlopCounterMode(display=False) as ours:
        _, outcome = both.ours(EDITS[:1])
    with FlopCounterMode(display=False) as plain:
        both.plain(EDITS[:1])
    requests = both.method._requests(both.model, EDITS[:1], both.contexts)
    least = edit_cost(both.model, both.method, requests, [outcome.targets[0].steps]).flops
    solves = 2 * tiny.D_FF**2 * len(layers)  # torch does not count these
    assert least < ours.get_total_flops() + solves < plain.get_total_flops()
    assert least > 0.3 * ours.get_total_flops()


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
