"""What is refused in one line, and what is not taken for what it is not."""

import dataclasses
import json

import pytest
import tiny
import torch

import kedit_lib as kedit
from kedit_lib import reproduce, scaling, sweep
from kedit_lib.__main__ import main
from kedit_lib.durable import replacing
from kedit_lib.lab import world_of
from kedit_lib.lab.train import RECALL_BAR
from kedit_lib.material import read_texts
from kedit_lib.saving import load_record

LONG = "m" * 300


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    with pytest.raises(kedit.KeditError, match="mine: cannot be written"), replacing(tmp_path / "mine") as partial:
        partial.write_text("a file")
    with pytest.raises(kedit.KeditError, match="mine: cannot be written"):
        kedit.SecondMoments.from_tensors({0: torch.eye(3)}).save(tmp_path / "mine")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis"]


@pytest.mark.parametrize("place", ["nowhere/rows.csv", "folder"])
def test_rows_go_into_a_file(tmp_path, capsys, place):
    (tmp_path / "folder").mkdir()
    code = main(["evaluate", "lab-small", "--edits", "lab", "--limit", "1", "--out", str(tmp_path / place)])
    assert code == (1 if place == "folder" else 0)
    assert (tmp_path / place).is_file() == (place != "folder") and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_is_at_least_one(capsys, limit):
    assert main(["evaluate", "lab-small", "--limit", limit]) == 1
    assert f"--limit {limit}: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["subject", "target_new", "paraphrases", "portability"])
def test_half_a_character_is_no_text(field):
    value = {"paraphrases": ["\ud800"], "portability": [("a", "\udcff")]}.get(field, "\ud800")
    with pytest.raises(kedit.KeditError, match="half a character"):
        kedit.Edit(**{"prompt": "{} is", "subject": "Ana", "target_new": "French", field: value})


def test_a_device_that_keeps_no_values(tiny_folder):
    with pytest.raises(kedit.KeditError, match="device 'meta'"):
        kedit.load_model(tiny_folder("llama"), device="meta")


def test_names_longer_than_a_system_allows(capsys):
    with pytest.raises(kedit.KeditError, match="no such file"):
        kedit.load_edits(LONG)
    assert sweep.main(["--profile", LONG]) == 1
    assert sweep.main(["--profile", f"{LONG}.yaml"]) == 1


def test_a_run_of_long_names_has_a_short_label(tmp_path):
    def run(model):
        return reproduce.make_run(reproduce.parse(["--profile", "smoke", "--model", model]), tmp_path)

    one, other = run(LONG), run(LONG + "n")
    assert len(one.label) < 150 and one.label != other.label
    assert run("owner/name").label == "smoke-model-owner-name"
    assert len(list((tmp_path / "results" / "profiles").iterdir())) == 3


def test_a_value_that_changed_in_a_file_of_moments(tmp_path):
    moments, path = kedit.SecondMoments.from_tensors(tiny.second_moments()), tmp_path / "C.safetensors"
    moments.save(path)
    assert kedit.SecondMoments.load(path).identity == moments.identity
    damaged = bytearray(path.read_bytes())
    at = damaged.find(moments.tensors[1][3, 3].numpy().tobytes())
    damaged[at + 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(kedit.KeditError, match="other values than were written"):
        kedit.SecondMoments.load(path)


def test_a_member_of_another_recipe_or_below_the_bar_is_not_taken(tmp_path, monkeypatch):
    recipe, asked = scaling.recipe_of(256, 3000, 5e-3), []
    monkeypatch.setattr(scaling, "train", lambda r, folder, workers: asked.append(r))
    monkeypatch.setattr(scaling, "load_model", lambda folder: folder)
    folder = tmp_path / "family" / recipe.name
    folder.mkdir(parents=True)
    others = [(dataclasses.replace(recipe, steps=1), 1.0), (recipe, RECALL_BAR - 0.01), (recipe, RECALL_BAR)]
    for of, recall in others:
        about = {"recipe": dataclasses.asdict(of), "recall_min": recall}
        (folder / "provenance.json").write_text(json.dumps(about))
        scaling.member(recipe, tmp_path)
    assert asked == [recipe] * 2
    (folder / "provenance.json").write_text("")
    scaling.member(recipe, tmp_path)
    assert asked == [recipe] * 3


@pytest.mark.parametrize("text", ["", "{}", '{"recipe": {}}', '{"recipe": []}'])
def test_a_damaged_provenance(tiny_folder, tmp_path, text):
    model = kedit.load_model(tiny_folder("llama"))
    (tmp_path / "provenance.json").write_text(text)
    model.folder = tmp_path
    with pytest.raises(kedit.KeditError, match="provenance.json: cannot be read"):
        world_of(model)


def test_texts_and_records_that_cannot_be_read(tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe" * 9)
    with pytest.raises(kedit.KeditError, match="save it as UTF-8"):
        read_texts(str(tmp_path / "texts.txt"))
    (tmp_path / "kedit_edits.json").write_text("[" * 100_000)
    with pytest.raises(kedit.KeditError, match="cannot be read"):
        load_record(tmp_path)
