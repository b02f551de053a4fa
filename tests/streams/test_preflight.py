"""check_model: what it recognises, the edit it tries and takes back, and the parameters that it proposes."""

from itertools import product

import families
import pandas as pd
import pytest
import tiny
import torch
from library import holds, refused, snapshot

import kedit_lib as kedit
from kedit_lib.data.config import (
    REPOSITORY,
    file_name,
    find_model_params,
    load_model_params,
    load_profile,
    read_yaml,
    streams_of,
)
from kedit_lib.editing.transfer import propose, propose_layers, write_proposal
from kedit_lib.streams import preflight as checking

EDITS = [kedit.Edit(*each, target_true="Graz") for each in tiny.EDITS]
SMOKE, LAB = (load_profile(REPOSITORY / "params" / "profiles" / f"{name}.yaml") for name in ("smoke", "lab"))


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Folders of the test's own for parameters and results."""
    monkeypatch.setenv("KEDIT_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def made(tmp_path):
    """`made(family)`: a random model of that family in float32, as the library's."""

    def load(name):
        families.save(name, tmp_path / name, torch.float32)
        return kedit.load_model(tmp_path / name)

    return load


def check(model, **given):
    return kedit.check_model(model, **{"edits": EDITS, "profile": SMOKE, **given}).value


SAYS = {
    "llama": {"begin of text": "<s>, put in front"},
    "llama3": {"family": "llama"},
    "qwen2": {"begin of text": "none in front", "tokens, embeddings": "452, 459"},
    "gptj": {"norm behind the MLP": "none", "family": "gptj"},
    "gemma3": {"norm behind the MLP": "post_feedforward_layernorm: ROME, PMET and FT only"},
}
SLOW = ("llama3", "gptj")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SAYS])
def test_what_is_recognised(made, name):
    model = made(name)
    before = snapshot(model)
    found = check(model)
    assert SAYS[name].items() <= found.to_dict().items()
    assert (found["layers"], found["d_model, d_ff"]) == (tiny.N_LAYERS, f"{tiny.D_MODEL}, {tiny.D_FF}")
    assert found["restored bit for bit"] == "yes"
    assert holds(model, before)


@pytest.mark.slow
def test_edits_that_the_model_held_are_still_there(made):
    """The check itself is made on the unedited weights."""
    model = made("llama")
    kedit.ROME(layers=[1], mom2_adjustment=False, v_num_grad_steps=2).apply(model, EDITS[:1], contexts=["{}"])
    before, record = snapshot(model), model.applied
    check(model)
    assert all(torch.equal(value, before[n]) for n, value in snapshot(model).items())
    assert model.applied == record


@pytest.mark.slow
def test_the_lab_is_known_and_its_own_parameters_stay(monkeypatch):
    """Its facts are traced, the edit succeeds; a file that is there is not written over."""
    monkeypatch.setenv("KEDIT_PARAMS", str(REPOSITORY / "params"))
    path = REPOSITORY / "params" / "models" / "lab-small.yaml"
    before = path.read_bytes()
    found = kedit.check_model("lab-small", profile="smoke").value
    assert found["facts it knows, of those asked"] == f"{2 * checking.TRACED} of {2 * checking.TRACED}"
    assert found["layers by"] == f"causal tracing of {checking.TRACED} facts that it knows"
    was, now = (float(p) for p in found["p(new) before and after, edited model"].split(", "))
    assert was < 0.1 and now > 0.5
    assert found["parameters in use"] == "params/models/lab-small.yaml" and path.read_bytes() == before
    assert found["proposed λ"] == pytest.approx(load_model_params("lab-small")["memit"]["mom2_update_weight"], rel=1e-3)
    assert found.index[-1] == "minutes, all notebooks (smoke)"


def test_a_proposal_makes_every_method(made, folders):
    model = made("qwen3")
    check(model)
    path = folders / "results" / "models" / f"{file_name(model.folder)}.yaml"
    assert path.name.startswith("qwen3-")
    text = path.read_text()
    assert text.startswith("# Proposed by check_model") and "no fact to trace" in text.splitlines()[1]
    sections = load_model_params(str(model.folder))
    assert sections["model"] == {"d_ff": tiny.D_FF}
    for section in set(sections) - {"model"}:
        method = kedit.method_for(model, section)
        model.check_layers(method.layers)
    assert kedit.method_for(model, "memit").mom2_update_weight == pytest.approx(15000 * tiny.D_FF / 11008, rel=1e-4)
    path.write_text(text.replace(f"d_ff: {tiny.D_FF}", "d_ff: 7"))
    refused(lambda: kedit.method_for(model, "memit"), "d_ff 7", "two models that share a name")


@pytest.mark.parametrize(
    ("n_layers", "peak", "one", "several"),
    [(32, 8, [8], [4, 5, 6, 7, 8]), (48, 17, [17], list(range(13, 18))), (4, 1, [1], [1]), (2, 0, [0], [0])],
)
def test_layers_end_where_the_trace_peaks(n_layers, peak, one, several):
    """The last layer is left out, however much its state carries."""
    last, rows = "last subject token", []
    for place, i in product((last, "last token"), range(n_layers)):
        rows.append({"place": place, "layer": i, "effect": 2.0 if i == n_layers - 1 else (i, place) == (peak, last)})
    assert propose_layers(n_layers, pd.DataFrame(rows)) == (one, several)


SAFE_NAMES = {
    "Qwen/Qwen2.5-0.5B": "Qwen2.5-0.5B",
    "../../etc/passwd": "passwd",
    "/no/such/..": "model",
    "/models/my model (2)/": "my-model-2",
    "C:\\models\\x": "x",
    ".hidden": "hidden",
}


def test_a_files_name_is_safe(folders, tmp_path, monkeypatch):
    """A proposal is written into the results, and never beside the published files."""
    monkeypatch.chdir(tmp_path)  # where ../../etc/passwd is no file
    sections = propose(kedit.load_model("lab-small"))
    for name, file in SAFE_NAMES.items():
        assert file_name(name) == file
        path = write_proposal(name, sections, "a test")
        assert path.resolve() == (folders / "results" / "models" / f"{file}.yaml").resolve()
        assert read_yaml(path) == load_model_params(name)
    assert not (folders / "params").exists()
    refused(lambda: load_model_params("nowhere"), "set KEDIT_PARAMS to a folder with models/nowhere.yaml")


@pytest.mark.parametrize("name", ["hf", "模型", "final.gguf"])
def test_folders_of_one_name_have_a_file_each(tmp_path, folders, name):
    """A model that was never checked got another's layers. A folder takes a file of its name that somebody wrote, but
    none of another model's."""
    for parent in ("one", "two", "three"):
        (tmp_path / parent / name).mkdir(parents=True)
    sections = propose(kedit.load_model("lab-small"))
    path = write_proposal(str(tmp_path / "one" / name), sections, "a test")
    assert find_model_params(str(tmp_path / "one" / name)) == path
    assert find_model_params(tmp_path / "one" / "." / name) == path
    assert find_model_params(str(tmp_path / "two" / name)) is None
    assert write_proposal(str(tmp_path / "two" / name), sections, "a test") != path
    path = write_proposal("me/hf", sections, "a test")
    assert path.stem == "hf" and find_model_params(str(tmp_path / "three" / name)) is None
    path.write_text("model: {d_ff: 48}\n")
    assert (find_model_params(str(tmp_path / "three" / name)) == path) == (name == "hf")


def test_minutes_grow_with_the_edits():
    one = checking.live_minutes(SMOKE, 1.0, 0.0)
    streams, of_rome = len(streams_of(SMOKE)), 4  # over 21 contexts and the KL prompt, the others over 6 and that
    assert one == pytest.approx(((streams - of_rome + of_rome * 22 / 7) * 12 + 1 + 20 + 3 * 4 + 17) / 60)
    assert checking.live_minutes(SMOKE, 2.0, 0.0) == pytest.approx(2 * one)
    assert checking.live_minutes(LAB, 1.0, 0.0) > one
    asked = checking.live_minutes(SMOKE, 0.0, 1.0)  # 40 facts before the first edit, after 6 and after 12
    assert asked == pytest.approx(len(streams_of(SMOKE)) * 3 * 40 / 60)


def test_times_are_said_roughly():
    """So that a saved table is the same after the next run."""
    said = {0.02: "< 0.1", 0.12: "about 0.1", 0.18: "about 0.2", 0.6: "about 0.5", 3.8: "about 5", 1300: "about 1000"}
    assert {seconds: checking.roughly(seconds, 0.1) for seconds in said} == said
