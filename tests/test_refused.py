"""What is refused in one line, and what is not taken for what it is not."""

import json
import shutil

import pytest
import torch
from library import EDITS, moments, refused

import kedit_lib as kedit
from kedit_lib.__main__ import main
from kedit_lib.data.atomic import replacing
from kedit_lib.models.deltas import load_record
from kedit_lib.report import claims, reproduce
from kedit_lib.streams.facts import read_texts

LONG = "m" * 300


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    with pytest.raises(kedit.KeditError, match="mine: cannot be written"), replacing(tmp_path / "mine") as partial:
        partial.write_text("a file")
    one = kedit.SecondMoments.from_tensors({0: torch.eye(3)})
    refused(lambda: one.save(tmp_path / "mine"), "mine: cannot be written")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis"]


@pytest.mark.parametrize("place", ["nowhere/rows.csv", "folder"])
def test_rows_go_into_a_file(tmp_path, capsys, place):
    (tmp_path / "folder").mkdir()
    code = main(["evaluate", "lab-small", "--edits", "lab", "--limit", "1", "--out", str(tmp_path / place)])
    assert code == (1 if place == "folder" else 0)
    assert (tmp_path / place).is_file() == (place != "folder") and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("field", ["subject", "target_new", "paraphrases", "portability"])
def test_half_a_character_is_no_text(field):
    value = {"paraphrases": ["\ud800"], "portability": [("a", "\udcff")]}.get(field, "\ud800")
    given = {"prompt": "{} is", "subject": "Ana", "target_new": "French", field: value}
    refused(lambda: kedit.Edit(**given), "half a character")


def test_names_longer_than_a_system_allows(capsys, tmp_path):
    refused(lambda: kedit.load_edits(LONG), "no such file")
    assert main(["sweep", "--profile", LONG]) == main(["sweep", "--profile", f"{LONG}.yaml"]) == 1
    one, other = (reproduce.make_run(tmp_path, "smoke", m).label for m in (LONG, LONG + "n"))
    assert len(one) < 150 and one != other


def test_a_value_that_changed_in_a_file_of_moments(tmp_path):
    given, path = moments(), tmp_path / "C.safetensors"
    given.save(path)
    damaged = bytearray(path.read_bytes())
    at = damaged.find(given.tensors[1][3, 3].numpy().tobytes())
    damaged[at + 2] ^= 1
    path.write_bytes(damaged)
    refused(lambda: kedit.SecondMoments.load(path), "checksum mismatch")


def test_texts_and_records_that_cannot_be_read(tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe" * 9)
    refused(lambda: read_texts(str(tmp_path / "texts.txt")), "save it as UTF-8")
    (tmp_path / "kedit_edits.json").write_text("[" * 100_000)
    refused(lambda: load_record(tmp_path), "cannot be read")


def altered(folder, tmp_path, file, **values):
    """A copy of a model's folder with other values in one of its JSON files; the weights are the same."""
    other = tmp_path / f"other-{file}"
    shutil.copytree(folder, other)
    about = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps({**about, **values}))
    return other


@pytest.mark.parametrize(
    ("file", "values"), [("config.json", {"rms_norm_eps": 0.5}), ("tokenizer.json", {"post_processor": None})]
)
def test_the_same_weights_in_another_setting_are_another_model(tiny_folder, tmp_path, file, values):
    folder = tiny_folder("llama-bos")
    folders = folder, altered(folder, tmp_path, file, **values)
    first, other = (kedit.load_model(f, dtype=torch.float32) for f in folders)
    assert first.checksum == other.checksum
    assert first.setting != other.setting
    texts, cache = ["The organ is old. Zoë plays."] * 30, tmp_path / "moments"
    method, runs = kedit.MEMIT(layers=[1], v_num_grad_steps=2), []
    for model in (first, other, kedit.load_model(folder, dtype=torch.float32)):
        kedit.SecondMoments.estimate(model, texts, [1], cache=cache)
        given = {"moments": moments(), "contexts": ["{}"], "store": tmp_path / "streams", "progress": False}
        runs.append(kedit.run_stream(model, EDITS[:1], method, **given))
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert runs[0].path == runs[2].path != runs[1].path


def test_asking_a_tokenizer_for_padding_changes_no_setting(tiny_folder):
    model, again = (kedit.load_model(tiny_folder("llama"), dtype=torch.float64) for _ in range(2))
    model.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert model.setting == again.setting == kedit.load_model(tiny_folder("llama"), dtype=torch.float32).setting


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01"])
def test_a_table_of_claims_that_is_none(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "claims.csv").write_text(text)
    monkeypatch.setattr(claims, "REPOSITORY", tmp_path)
    assert main(["claims"]) == 1
    assert "claims.csv: " in capsys.readouterr().err
