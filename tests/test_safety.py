"""What comes from elsewhere is data: it is never run, never unpickled, never HTML, and never says where to write."""

import json
import os
import pickle

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library import refused
from nbconvert.filters import markdown2html

import kedit_lib as kedit
from kedit_lib.data.files import records_of
from kedit_lib.report import figures, reproduce


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_weights_are_not_read(copied, tmp_path):
    (copied / "model.safetensors").unlink()
    with (copied / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Bomb(tmp_path / "bomb")}, file)
    says = "cannot be loaded", "model.safetensors", "save_pretrained it as safetensors"
    refused(lambda: kedit.load_model(copied), *says)
    assert not (tmp_path / "bomb").exists()


CODE = """
import os
from transformers import LlamaForCausalLM, LlamaConfig
os.makedirs({path!r}, exist_ok=True)
class Mine(LlamaForCausalLM):
    config_class = LlamaConfig
"""


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_does_not_run(copied, tmp_path, part, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    bomb = tmp_path / "bomb"
    (copied / "mine.py").write_text(CODE.format(path=str(bomb)))
    config = json.loads((copied / part).read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
    if part == "config.json":
        config["model_type"] = "something-of-mine"
        config["auto_map"]["AutoConfig"] = "mine.Mine"
    else:
        config["tokenizer_class"] = "Mine"
    (copied / part).write_text(json.dumps(config))
    try:
        kedit.load_model(copied)
    except kedit.KeditError as error:
        assert "\n" not in str(error)
    assert not bomb.exists()


def test_pickled_data_and_code_are_not_run(tmp_path, monkeypatch):
    for name in ("edits.pkl", "edits.pt", "edits.npy"):
        (tmp_path / name).write_bytes(pickle.dumps([Bomb(tmp_path / "bomb")]))
        refused(lambda name=name: kedit.load_edits(tmp_path / name), "format", "unknown", ".jsonl")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'bomb')!r})")
    (folder / "data.pkl").write_bytes(pickle.dumps([Bomb(tmp_path / "bomb")]))
    refused(lambda: records_of(folder, cache_dir=str(tmp_path / "cache")), "cannot be loaded")
    assert not (tmp_path / "bomb").exists()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    (root / "notebooks").mkdir()
    return root


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    value=st.sampled_from(["../../x", "/etc/x", "a/../../b", "..", "~root", "a\\..\\b", "x\ny"]) | st.text(min_size=1)
)
def test_no_model_name_leads_out_of_the_results(repository, value):
    """Given on the command line it becomes part of folders' names, and of the file that hands it to notebooks."""
    try:
        run = reproduce.make_run(repository, "smoke", value)
    except kedit.KeditError:
        return
    inside = (repository / "results").resolve()
    for path in (run.executed, run.figures, repository / "notebooks" / run.profile_argument):
        assert inside in path.resolve().parents, path
    assert {p.name for p in repository.iterdir()} <= {"notebooks", "results"}


def test_a_stream_writes_into_its_store_alone(tiny_folder, tmp_path, monkeypatch):
    """Also for a model whose name is a way out."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    model.name = "../../../out"
    edit = kedit.Edit("{} plays the", "../Zoë", "violin", relation="../r", id="../../id")
    method = kedit.ROME(layers=[1], v_num_grad_steps=1, mom2_adjustment=False)
    kedit.run_stream(model, [edit], method, contexts=["{}"], store=tmp_path / "here" / "store", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["store"]


def test_html_in_texts_is_shown_as_text_in_tables_and_sentences(monkeypatch):
    text, shown = "<script>alert('x')</script> & <b>", []
    with pd.option_context("styler.format.escape", None):
        figures.style()
        table = pd.DataFrame({"said": [text]})
        for html in (table.style.to_html(), table._repr_html_(), table.style.set_properties(color="red").to_html()):
            assert "&lt;script&gt;" in html
            assert "<script>" not in html and "<b>" not in html
    monkeypatch.setattr(figures, "display", shown.append)
    figures.say("The model says *<script>x</script>*, <img src=x onerror=y>, 1 < 2 and a <b.")
    (markdown,) = shown
    page = markdown2html(markdown.data)
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page and "1 &lt; 2" in page and "<em>" in page
