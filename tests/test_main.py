"""`kedit`, or `python -m kedit_lib`: what each command prints and leaves, and that a failure is one line."""

import json
import re
import shutil
import subprocess
import sys

import families
import pandas as pd
import pytest
import tiny
import torch
from library import assert_same_weights, parameters
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit_lib as kedit
from kedit_lib.__main__ import main
from kedit_lib.data.config import REPOSITORY


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run("edit", …)`: exit code, what was printed, what was complained of; in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KEDIT_PARAMS", str(REPOSITORY / "params"))

    def command(*arguments):
        code = main([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_every_command_explains_itself(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in ("check-model", "edit", "stream", "evaluate"):
        assert name in out
        code, own, _ = run(name, "--help")
        assert code == 0 and f"example:\n    kedit {name} " in own


def test_help_and_the_list_of_public_names_load_no_torch():
    code = "import sys, kedit_lib; from kedit_lib.__main__ import main; print(dir(kedit_lib)); main(['--help']); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == str(sorted([*kedit.__all__, "__version__"])) and lines[-1] == "False"


def test_public_names_are_there():
    assert all(getattr(kedit, name) is not None for name in kedit.__all__)
    with pytest.raises(AttributeError, match="'nothing'"):
        kedit.nothing  # noqa: B018


def test_a_strangers_path(run, tmp_path, monkeypatch):
    """A model that nobody has parameters for: checked, edited, saved, loaded by plain transformers, evaluated."""
    monkeypatch.setenv("KEDIT_PARAMS", str(tmp_path / "params"))
    folder = families.save("qwen2", tmp_path / "stranger", torch.float32)
    words = ("--prompt", tiny.EDITS[4][0], "--subject", tiny.EDITS[4][1], "--to", tiny.EDITS[4][2])
    code, _, err = run("edit", folder, *words)
    assert code == 1 and "check-model" in err
    smoke = REPOSITORY / "params" / "profiles" / "smoke.yaml"
    code, out, _ = run("check-model", folder, "--profile", smoke)  # asked only what its tokenizer can write
    assert code == 0 and "452, 459" in out
    (path,) = (tmp_path / "results" / "models").glob("stranger*.yaml")
    assert not (tmp_path / "params").exists()

    (tmp_path / "texts.txt").write_text("\n\n".join(tiny.LINES))
    places = ("--save", tmp_path / "edited", "--deltas", tmp_path / "deltas")
    code, out, _ = run("edit", folder, *words, "--method", "rome", "--texts", tmp_path / "texts.txt", *places)
    assert code == 0 and f"edit: {tiny.EDITS[4][0].format(tiny.EDITS[4][1])}\n  before  p(new) 0." in out
    edited, plain = kedit.load_model(folder), AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    edited.apply_deltas(kedit.load_deltas(tmp_path / "deltas"))
    assert_same_weights(dict(plain.named_parameters()), parameters(edited))

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(folder)
    code, out, _ = run("edit", folder, *words, "--method", "rome", "--texts", tmp_path / "texts.txt", "--chat")
    assert code == 0 and f"edit: [{tiny.EDITS[4][0].format(tiny.EDITS[4][1])}]\n" in out

    code, out, _ = run("evaluate", tmp_path / "edited", "--out", tmp_path / "rows.csv")
    assert code == 0 and out.startswith("1 edits")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["metric", "cohort"]).value
    assert str(round(rows["probability", "edits"], 3)) in out


def test_a_stream(run, tmp_path):
    """Measured on the way, saved with its edits, which evaluate finds by itself; a second call finds it finished."""
    arguments = ("stream", "lab-small", "--edits", "lab", "--limit", 4, "--method", "ft-m", "--every", 2)
    arguments += ("--out", tmp_path / "rows", "--save", tmp_path / "edited")
    code, out, _ = run(*arguments)
    assert code == 0 and "4 edits; 0 left out" in out
    assert run(*arguments)[1] == out
    (record,) = json.loads((tmp_path / "edited" / "kedit_edits.json").read_text())["applied"]
    assert (record["method"], len(record["edits"])) == ("FT", 4)
    code, evaluated, _ = run("evaluate", tmp_path / "edited")
    assert code == 0 and evaluated.startswith("4 edits")
    last = next(line.split()[-1] for line in out.splitlines() if line.split()[:2] == ["accuracy", "edits"])
    assert next(line.split()[1] for line in evaluated.splitlines() if line.startswith("accuracy")) == last


def test_a_stream_that_keeps_facts(run):
    arguments = ("stream", "lab-small", "--edits", "lab", "--limit", 1, "--keep", 20)
    code, out, err = run(*arguments, "--method", "stream-weights")
    assert code == 0 and "20 facts kept" in out, err
    code, _, err = run(*arguments, "--method", "rome")
    assert code == 1 and "keep needs a history of keys" in err


def test_a_stream_that_writes_no_weights(run, tmp_path):
    arguments = ("stream", "lab-small", "--edits", "lab", "--limit", 1, "--method", "stream")
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments, "--save", tmp_path / "out")
    assert code == 1 and "Gate writes no weights" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("action, made", [("stop", 5), ("roll back", 0), ("batch", 12)])
def test_a_guarded_stream_acts(run, tmp_path, monkeypatch, action, made):
    """A learning rate that ruins the model at once, before the guard's first look after an edit."""
    params = shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    own = params / "models" / "lab-small.yaml"
    own.write_text(re.sub(r"(ft-m:.*?lr:) \S+", r"\1 0.5", own.read_text(), count=1, flags=re.DOTALL))
    monkeypatch.setenv("KEDIT_PARAMS", str(params))
    arguments = ("stream", "lab-small", "--edits", "lab", "--limit", 12, "--method", "ft-m", "--every", 12)
    arguments += ("--guard", action, "--save", tmp_path / "edited")
    code, out, err = run(*arguments)
    assert code == 0 and "guard: alarm: " in out and "right after 5 edits" in out, err
    (record,) = json.loads((tmp_path / "edited" / "kedit_edits.json").read_text())["applied"]
    assert len(record["edits"]) == made
    assert "guard: alarm: " in run(*arguments)[1]  # found finished, with what its guard read
