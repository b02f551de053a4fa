"""Deltas and edited models on disk: found again whole, by whoever has the same model, and refused by any other."""

import json

import pytest
import tiny
import torch
from library import apply, assert_same_weights, holds, load, moments, refused, snapshot
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit_lib as kedit

EDITS = [
    kedit.Edit(*tiny.EDITS[0], target_true="French", paraphrases=["Danielle Darrieux speaks"], locality=[("a", "b")]),
    kedit.Edit(*tiny.EDITS[3]),
]
MEMIT = kedit.MEMIT(layers=[1, 2], v_num_grad_steps=2, mom2_update_weight=5.0)
MODEL = "llama", torch.float32
ROME = kedit.ROME(layers=[2], v_num_grad_steps=2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deltas_do_again_what_the_edit_did(tiny_folder, tmp_path, kind, dtype):
    """In another process's model; and are taken back bit for bit."""
    model, other = load(tiny_folder, kind, dtype), load(tiny_folder, kind, dtype)
    original, outcome = snapshot(model), apply(model, MEMIT, *EDITS)
    deltas = kedit.load_deltas(outcome.save(tmp_path / "new" / "folder"))
    assert (deltas.method, deltas.hyperparameters, deltas.edits) == ("MEMIT", MEMIT.hyperparameters, EDITS)
    assert_same_weights(deltas.deltas, outcome.deltas)
    other.apply_deltas(deltas)
    assert holds(other, snapshot(model))
    assert other.applied == model.applied == [outcome.record]
    other.take_back(deltas)
    assert holds(other, original) and other.applied == []
    with other.temporarily():
        other.apply_deltas(deltas)
        assert holds(other, snapshot(model)) and other.applied == [outcome.record]
    assert holds(other, original)


def test_taking_one_back_leaves_the_others(tiny_folder, tmp_path):
    model = load(tiny_folder, dtype=torch.float64)
    first, second = apply(model, MEMIT, EDITS[0]), apply(model, ROME, EDITS[1])
    model.take_back(kedit.load_deltas(first.save(tmp_path)))
    assert model.applied == [second.record]
    left = snapshot(model)
    model.restore()
    model.apply_deltas(second)
    assert all(torch.allclose(value, left[name], rtol=0, atol=1e-14) for name, value in snapshot(model).items())
    refused(lambda: model.take_back(first), "holds no MEMIT edit of 'Danielle Darrieux'", "apply_deltas")


def test_deltas_of_another_model_are_refused(tiny_folder, model, tmp_path):
    """Of the same shapes too; and of this one in another dtype, whose weights are others."""
    deltas = kedit.load_deltas(apply(model, MEMIT, EDITS[0]).save(tmp_path))
    for other in (load(tiny_folder, "llama-bos"), load(tiny_folder, dtype=torch.bfloat16)):
        before = snapshot(other)
        refused(lambda other=other: other.apply_deltas(deltas), "another model or dtype", "load that one")
        refused(lambda other=other: other.take_back(deltas), "another model or dtype")
        assert holds(other, before) and other.applied == []


def test_files_that_are_damaged_or_cannot_be_written_are_one_line(model, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    outcome = apply(model, ROME, EDITS[0])
    refused(lambda: outcome.save(taken), "cannot be written")
    refused(lambda: model.save_pretrained(taken), "cannot be written")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    path = outcome.save(tmp_path)
    refused(lambda: kedit.load_deltas(tmp_path / "no"), "cannot be read")
    path.write_bytes(path.read_bytes()[:-9])
    refused(lambda: kedit.load_deltas(tmp_path), "deltas.safetensors", "save them again")
    moments().save(path)
    refused(lambda: kedit.load_deltas(path), "cannot be read")


@pytest.mark.parametrize("kind", ["llama-bos", "gpt2"])
def test_a_saved_model_says_what_was_done_to_it(tiny_folder, tmp_path, kind):
    model, folder = load(tiny_folder, kind), tmp_path / "edited"
    original = model.checksum
    folder.mkdir()
    (folder / "mine.txt").write_text("stays")
    outcomes = [apply(model, ROME, EDITS[1]), apply(model, MEMIT, EDITS[0])]
    model.save_pretrained(folder)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert_same_weights(dict(plain.named_parameters()), snapshot(model))
    assert tokenizer(EDITS[0].text).input_ids == model.tokenizer(EDITS[0].text).input_ids
    said = json.loads((folder / "kedit_edits.json").read_text())
    assert said["model"]["checksum"] == original
    assert said["applied"] == json.loads(json.dumps([outcome.record for outcome in outcomes]))
    assert [edit["subject"] for call in said["applied"] for edit in call["edits"]] == ["Ana Brown", "Danielle Darrieux"]
    assert said["changed"] == [model.weight_name(1), model.weight_name(2)]
    assert (folder / "mine.txt").read_text() == "stays"
    assert not list(tmp_path.glob(".*"))


def test_the_record_goes_with_the_weights(model):
    """Back with a snapshot, gone with restore and after a failure; unknown where weights were changed by hand."""
    one = apply(model, ROME, EDITS[0])
    before = model.snapshot()
    apply(model, MEMIT, EDITS[1])
    assert len(model.applied) == 2
    model.load_snapshot(before)
    assert model.applied == [one.record]
    refused(lambda: apply(model, kedit.MEMIT(layers=[99], mom2_update_weight=5.0), EDITS[1]), "layer 99")
    assert model.applied == [one.record]
    model.load_snapshot(dict(before))
    assert model.applied is None
    model.restore()
    assert model.applied == []
    model.add(one.deltas)
    assert model.applied is None
