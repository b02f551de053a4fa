"""What comes from elsewhere is data: it is never run, never unpickled, never HTML, and never says where to write."""

import ast
import json
import os
import pickle
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library import refused

import kedit_lib as kedit
from kedit_lib.data.edit import fill
from kedit_lib.data.files import records_of
from kedit_lib.report import figures, reproduce

SOURCES = sorted(Path(kedit.__file__).parent.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"system", "popen", "read_pickle", "unsafe_load"}


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# ------------------------------------------------------------------------------------------------------- the sources


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_no_source_unpickles_or_evaluates(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            whole = ast.unparse(node.func)
            name, given = whole.split(".")[-1], {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert whole not in FORBIDDEN_CALLS and name not in FORBIDDEN_METHODS, f"{path.name}:{node.lineno}"
            if whole == "torch.load":
                assert given.get("weights_only") == "True", f"{path.name}:{node.lineno}"
            if whole == "yaml.load":
                assert given.get("Loader") in ("loader", "yaml.SafeLoader"), f"{path.name}:{node.lineno}"
            if name == "from_pretrained":
                assert given.get("trust_remote_code", "False") in ("False", "trust_remote_code")
            assert given.get("shell", "False") == "False", f"{path.name}:{node.lineno}"


# ------------------------------------------------------------------------------------------------------------ models


@pytest.fixture
def copied(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_pickled_weights_are_not_read(copied, tmp_path):
    (copied / "model.safetensors").unlink()
    with (copied / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Bomb(tmp_path / "bomb")}, file)
    refused(lambda: kedit.load_model(copied), "cannot be loaded", "safetensors")
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


# -------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", ["edits.pkl", "edits.pickle", "edits.pt", "edits.npy"])
def test_a_pickled_data_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps([Bomb(tmp_path / "bomb")]))
    refused(lambda: kedit.load_edits(path), "format", "unknown", ".jsonl")
    assert not (tmp_path / "bomb").exists()


def test_a_folder_with_code_and_pickles_runs_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'bomb')!r})")
    (folder / "data.pkl").write_bytes(pickle.dumps([Bomb(tmp_path / "bomb")]))
    refused(lambda: records_of(folder, cache_dir=str(tmp_path / "cache")), "cannot be loaded")
    assert not (tmp_path / "bomb").exists()


HOSTILE = ["{0.__class__}", "{subject.__init__}", "__import__('os').mkdir('x')", "%s%n", "$(touch x)", "{{}}", "\\g<0>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_texts(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit = kedit.Edit.from_text(f"{text} Zoë plays", "Zoë", text)
    assert edit.text == f"{text} Zoë plays"
    assert fill("{}", edit.prompt, text)[0] == f"{text} {text} plays"
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    (root / "notebooks").mkdir()
    return root


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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


# ---------------------------------------------------------------------------------------------------------------- HTML


def test_html_in_texts_is_shown_as_text_in_tables(monkeypatch):
    text = "<script>alert('x')</script> & <b>"
    with pd.option_context("styler.format.escape", None):
        figures.style()
        table = pd.DataFrame({"said": [text]})
        for shown in (table.style.to_html(), table._repr_html_(), table.style.set_properties(color="red").to_html()):
            assert "&lt;script&gt;" in shown
            assert "<script>" not in shown and "<b>" not in shown


def test_html_in_sentences_is_shown_as_text(monkeypatch, tmp_path):
    from nbconvert.filters import markdown2html

    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    figures.say("The model says *<script>x</script>*, <img src=x onerror=y>, 1 < 2 and a <b.")
    (markdown,) = shown
    page = markdown2html(markdown.data)
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page and "1 &lt; 2" in page and "<em>" in page


def test_samples_keep_texts_out_of_the_headers(monkeypatch):
    """Headers of a styled table are HTML as they stand."""
    from types import SimpleNamespace

    from kedit_lib import evaluation as metrics
    from kedit_lib.streams import bench as streams

    text = "<script>x</script>"
    edit = kedit.Edit("{} plays the", text, "violin")
    monkeypatch.setattr(metrics, "sampled_texts", lambda model, prompts, tokens: [text for _ in prompts])
    bench = SimpleNamespace(edits=lambda order: [edit] * 2, model=None, profile=SimpleNamespace(live_orders=[]))
    with pd.option_context("styler.format.escape", None):
        figures.style()
        shown = streams.Bench.samples(bench, {}, n=2).style.to_html()
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 4  # two edits, and what is said of them


def test_messages_are_one_line_whatever_the_text(tiny_folder):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    for text in ("a\nb", "a\r\nb", "a\x1b[31mb"):
        with pytest.raises(kedit.KeditError) as caught:
            kedit.load_model(text)
        assert "\n" not in str(caught.value)
    assert tiny.KINDS and model.n_layers
