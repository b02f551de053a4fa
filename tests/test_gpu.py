"""What a GPU is asked, on the CPU where there is none; and the rehearsal of `make gpu`."""

import gpu
import pandas as pd
import pytest
import tiny
import torch
from library import EDITS, apply, moments

import kedit_lib as kedit

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
METHOD = kedit.MEMIT(layers=[1, 2], v_num_grad_steps=4)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_targets_are_optimised_in_float32_on_bfloat16_weights(tiny_folder, device):
    half = kedit.load_model(tiny_folder("llama"), dtype=torch.bfloat16, device=device)
    exact = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    with torch.no_grad():  # the same numbers, so that only the arithmetic differs
        for ours, theirs in zip(exact.hf.parameters(), half.hf.parameters(), strict=True):
            ours.copy_(theirs)
    (ours,), (theirs,) = apply(half, METHOD, EDITS[0]).targets, apply(exact, METHOD, EDITS[0]).targets
    assert ours.z.dtype == torch.float32
    assert float((ours.z.cpu() - theirs.z).norm() / theirs.z.norm()) < 2e-2
    assert ours.probabilities[-1] > ours.probabilities[0]


@pytest.mark.gpu
@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", ["memit", "pmet", "rome"])
def test_replayed_steps_are_those_of_the_whole_model(tiny_folder, device, name):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float64, device=device)
    method = kedit.method_class(name)(layers=[1, 2][name == "rome" :], v_num_grad_steps=8)
    found = []
    for engine in ("suffix", "plain"):
        given = {"moments": moments(), "contexts": tiny.CONTEXTS, "engine": engine}
        found.append([method.apply(model, [e], **given).deltas for e in EDITS[:3]])
        model.restore()
    for ours, plain in zip(*found, strict=True):
        for key, delta in plain.items():
            assert float((ours[key] - delta).norm() / delta.norm()) < 1e-8


@pytest.mark.gpu
@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_short_of_memory_takes_smaller_batches(tiny_folder, device):
    model, many = kedit.load_model(tiny_folder("llama"), dtype=torch.float64, device=device), EDITS * 100
    reserved, total = [], torch.cuda.get_device_properties(0).total_memory
    for edits in (many[:20], many):  # the fewer are part of the more
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        expected = apply(model, METHOD, *edits)
        model.restore()
        reserved.append(torch.cuda.max_memory_reserved())
    assert reserved[1] > 1.1 * reserved[0]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(sum(reserved) / 2 / total)
    try:
        outcome = apply(model, METHOD, *many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for name, delta in expected.deltas.items():
        assert torch.allclose(outcome.deltas[name], delta, rtol=0, atol=1e-9 * float(delta.abs().max()))


@pytest.mark.slow
def test_the_parts_are_rehearsed(tmp_path, monkeypatch):
    """Each writes a table that names the card; one that fails loses only itself."""
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(gpu, "STREAMS", ["memit"])
    for part in ("shape", "batch", "streams"):
        assert gpu.main(["--shape", "tiny", "--part", part, "--out", str(tmp_path)]) == 0
        (path,) = tmp_path.glob(f"gpu.*.{part}.csv")
        table = pd.read_csv(path)
        assert len(table) and table["card"].notna().all()
    table = pd.concat(pd.read_csv(next(tmp_path.glob(f"gpu.*.{part}.csv"))) for part in ("shape", "batch"))
    assert list(table["path"]) == ["MEMIT", "PMET", "ROME", "MEMIT, batch of 6"]
    assert list(table["steps"]) == [25, 20, 25, 25]  # random weights learn nothing
    assert (table["s/edit"] > 0).all()
    replay = pd.read_csv(next(tmp_path.glob("gpu.*.replay.csv")))
    assert list(replay["method"]) == ["MEMIT", "PMET", "ROME"] and list(replay["steps"]) == [25, 20, 25]
    assert pd.read_csv(next(tmp_path.glob("gpu.*.repeats.csv")))["relative difference"].max() < 1e-3
    assert list((tmp_path / "data").glob("*.memit.order0.manifest.json"))
    monkeypatch.setattr(gpu, "SECONDS", {"tests": 0.01, "shape": 60})
    assert gpu.main(["--shape", "tiny", "--out", str(tmp_path)]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is none")
def test_without_a_gpu(tmp_path, capsys):
    assert gpu.main(["--part", "shape", "--out", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("kedit: llama-2-7b: no CUDA device is here")
    assert not list(tmp_path.iterdir())
