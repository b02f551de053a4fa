"""A bench of another model: edits from a file, text from a file, and the notebooks on top of both."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from library import refused

import kedit_lib as kedit
from kedit_lib.__main__ import main
from kedit_lib.data.config import dump, file_name, read_yaml
from kedit_lib.editing.transfer import v0_norm
from kedit_lib.lab.world import texts, world_of
from kedit_lib.report import reproduce
from kedit_lib.streams.bench import same_settings
from kedit_lib.streams.facts import HELD_OUT, DatasetFacts, facts_of, read_texts

N_RECORDS, N_TEXTS = 60, 500
UNKNOWN = 5  # records whose true object the model was never taught


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with a model that nobody has seen before, edits as JSONL, text, and the profile that names them."""
    folder, lab = tmp_path_factory.mktemp("elsewhere"), kedit.load_model("lab-small")
    lab.save_pretrained(folder / "stranger")  # plain transformers files: no recipe, so no world, and no parameters
    records = []
    for e in kedit.load_edits("lab", model=lab, limit=N_RECORDS):
        fields = ("prompt", "subject", "target_new", "target_true", "paraphrases", "neighborhood")
        records.append({f: getattr(e, f) for f in fields})
    for i in range(UNKNOWN):
        records.append({**records[i], "subject": f"Nobody {'ABCDE'[i]}son", "target_true": "purple"})
    records.append({**records[0], "target_new": records[1]["target_new"]})  # a subject twice: the first one counts
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "texts.txt").write_text("\n\n".join(texts(world_of(lab), N_TEXTS)))
    profile = read_yaml(reproduce.REPOSITORY / "params" / "profiles" / "smoke.yaml")
    profile |= {"name": "elsewhere", "n_edits": 4, "batch_sizes": [1, 2, 4], "mass_sizes": [1, 4], "untouched": 10}
    profile |= {"model": str(folder / "stranger"), "edits": str(folder / "edits.jsonl")}
    profile |= {"texts": str(folder / "texts.txt"), "checkpoint_every": 2, "dense_every": 2, "n_single": 2}
    (folder / "elsewhere.yaml").write_text(dump(profile))
    return folder


@pytest.fixture(scope="module")
def stranger(elsewhere):
    return kedit.load_model(elsewhere / "stranger")


@pytest.fixture
def material(elsewhere, stranger):
    return DatasetFacts(stranger, str(elsewhere / "edits.jsonl"), str(elsewhere / "texts.txt"))


def test_one_edit_a_subject_and_another_order_by_another_seed(material):
    assert len(material.records) == N_RECORDS + UNKNOWN
    one, other = material.edits(20, 0), material.edits(20, 1)
    assert len({e.subject for e in one}) == 20
    assert [e.subject for e in one] != [e.subject for e in other]
    assert material.edits(5, 0) == one[:5]
    says = "of which the model knows 60, 61 were asked for; give more, or lower n_edits"
    refused(lambda: material.edits(N_RECORDS + 1, 0), says)


def test_facts_that_the_model_does_not_know_are_left_out_and_counted(material, tmp_path, monkeypatch):
    """In any order; asked once where there is a cache. Those without a true object are taken as they are."""
    material = DatasetFacts(material.model, material.source, material.corpus, tmp_path)
    for seed in (0, 1):
        assert not any(e.subject.startswith("Nobody") for e in material.edits(N_RECORDS, seed))
    assert f"{N_RECORDS + UNKNOWN} facts" in material.selection and f"does not know {UNKNOWN}" in material.selection
    again = DatasetFacts(material.model, material.source, material.corpus, tmp_path)
    monkeypatch.setattr("kedit_lib.streams.edit_sets.generation_accuracy", lambda *given, **named: 1 / 0)
    assert again.edits(N_RECORDS, 0) == material.edits(N_RECORDS, 0) and again.selection == material.selection
    plain = DatasetFacts(material.model, material.source, material.corpus)
    plain.records = [replace(e, target_true=None) for e in material.records]
    assert len(plain.edits(N_RECORDS + UNKNOWN, 0)) == N_RECORDS + UNKNOWN
    assert "does not know 0" in plain.selection


def panel_of(material, edits):
    return next(p for p in material.probes(edits, 10, 0) if getattr(p, "cohort", "") == "untouched")


def test_untouched_facts_are_known_and_of_nobody_who_is_edited(material):
    """Where nearly all records are edited, neighbors that the model knows fill up the panel; none is about an edited
    subject, or a record's own fact."""
    edits = material.edits(4, 0)
    panel = panel_of(material, edits)
    assert len(panel.prompts) == 10
    assert not any(e.subject in prompt for e in edits for prompt in panel.prompts)
    assert panel(material.model, [])[0]["value"] == 1.0
    edits = material.edits(N_RECORDS - 2, 0)
    assert len(material.strangers(edits, 10, 0)) == 2
    found = material.neighbors(edits, 8, 0)
    assert len(found) == len(set(found)) == 8
    assert not any(e.subject in prompt for e in edits for prompt, _ in found)
    panel = panel_of(material, edits)
    assert panel.prompts[2:] == tuple(prompt for prompt, _ in found)
    assert panel(material.model, [])[0]["value"] == 1.0
    assert material.neighbors(edits, 0, 0) == []


def test_other_facts_of_edited_subjects_are_a_cohort_of_their_own(material):
    edits = material.edits(4, 0)
    assert material.own(edits, 3, 0) == []  # one record a subject
    others = [replace(e, prompt=f"Everybody says: {e.prompt}") for e in material.records]
    read, rejected = material._read
    material._read = [*read, *others], rejected
    known = {(e.text, e.target_true) for e in others if e.subject in {e.subject for e in edits}}
    assert material.own(edits, 3, 0) and set(material.own(edits, 3, 0)) <= known


def test_texts_of_one_s_own(material, tmp_path):
    """Those for moments are not those that perplexity is measured on; documents may be lines."""
    held = next(p for p in material.probes(material.edits(2, 0), 5, 0) if hasattr(p, "texts"))
    assert len(held.texts) == HELD_OUT
    assert not set(held.texts) & set(material.texts()) or len(set(material.documents)) < len(material.documents)
    said = {"few.txt": ("one\n\ntwo", "holds 2 documents")}
    said["nameless.jsonl"] = '{"body": "x"}', "no record has a field 'text'"
    for name, (content, says) in said.items():
        (tmp_path / name).write_text(content)
        refused(DatasetFacts(material.model, "edits.jsonl", str(tmp_path / name)).texts, says)
    lines = [f"Document {i}." for i in range(100)]
    for documents, between in ((lines, "\n"), ([f"{line}\nMore." for line in lines], "\n\n")):
        (tmp_path / "own.txt").write_text(between.join(documents))
        assert read_texts(str(tmp_path / "own.txt")) == documents
    refused(lambda: facts_of(material.model, "lab", "texts.txt"), "either both are 'lab' or neither")


def test_records_that_cannot_be_an_edit_are_counted(material, elsewhere, tmp_path):
    lines = (elsewhere / "edits.jsonl").read_text().splitlines()
    (tmp_path / "edits.jsonl").write_text("\n".join([*lines, "{", '{"prompt": "{} is"}']))
    facts = DatasetFacts(material.model, str(tmp_path / "edits.jsonl"), material.corpus)
    assert facts.some(3) == material.some(3)
    assert facts.selection.endswith(" 2 of its records cannot be an edit.")
    assert material.selection.endswith("these were left out before any edit.")


def test_edits_of_a_chat_model(material, elsewhere, tmp_path):
    model = kedit.load_model(elsewhere / "stranger")
    refused(lambda: facts_of(model, "world", "texts.txt", chat=True), "chat = True, edits = 'world': goes with a file")
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    facts = facts_of(model, material.source, material.corpus, chat=True)
    plain = material.some(3)
    assert [e.text for e in facts.some(3)] == [f"[{e.text}]" for e in plain]
    assert {e.separator for e in facts.some(3)} == {""}
    every = kedit.load_edits(material.source, model=model)
    assert [e.text for e in kedit.load_edits(material.source, model=model, chat=True)] == [f"[{e.text}]" for e in every]
    refused(lambda: kedit.load_edits(material.source, chat=True), "chat=True needs the chat template of a model")
    folder = shutil.copytree(elsewhere / "stranger", tmp_path / "chat")
    model.tokenizer.save_pretrained(folder)
    profile = read_yaml(elsewhere / "elsewhere.yaml") | {"name": "chat", "model": str(folder), "chat": True}
    (tmp_path / "chat.yaml").write_text(dump(profile))
    bench = kedit.Bench(str(tmp_path / "chat.yaml"), results=tmp_path, progress=False)
    assert bench.facts.some(3) == facts.some(3)


@pytest.mark.notebooks
def test_the_notebooks_run_on_it(elsewhere, monkeypatch):
    """Parameters are proposed first; 01 says how many facts were left out. Some notebooks stand
    for all: each takes half a minute, and their streams are run whole."""
    monkeypatch.setenv("KEDIT_PARAMS", str(elsewhere / "params"))
    some = [p for p in reproduce.find_sources(reproduce.REPOSITORY) if p.stem[:2] in ("01", "05", "06", "08")]
    monkeypatch.setattr(reproduce, "find_sources", lambda *_: some)
    out = reproduce.REPOSITORY / "results" / "executed-own-elsewhere"
    shutil.rmtree(out, ignore_errors=True)  # of an earlier test run
    assert main(["reproduce", "--profile", str(elsewhere / "elsewhere.yaml")]) == 0
    assert (reproduce.REPOSITORY / "results" / "models" / f"{file_name(str(elsewhere / 'stranger'))}.yaml").is_file()
    there = {p.stem for p in out.glob("*.ipynb")}
    assert there == {p.stem for p in some}
    assert f"does not know {UNKNOWN}; these were left out" in (out / "01_models.ipynb").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"texts": "lab"}, "DATA= and TEXTS="),
        ({"edits": "lab", "texts": "lab"}, "is not a lab model"),
    ],
)
def test_what_cannot_be_run_is_one_line_before_anything_runs(elsewhere, monkeypatch, capsys, given, said):
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: pytest.fail("ran"))
    given = [part for name, value in given.items() for part in ("-p", f"{name}={value}")]
    assert main(["reproduce", "--profile", str(elsewhere / "elsewhere.yaml"), *given]) == 2
    err = capsys.readouterr().err
    assert err.startswith("kedit: ") and said in err and err.count("\n") == 1


def test_a_run_of_files_has_a_short_name_of_its_own(elsewhere, tmp_path):
    """Two models of one name in two folders, however deep, write into two folders; model, data and text of the command
    line go into the profile, as `make reproduce MODEL=… DATA=… TEXTS=… PROFILE=gpu` hands them over."""
    labels = set()
    for where in ("one", "two"):
        folder = tmp_path / where / ("deep" * 20) / "model"
        folder.mkdir(parents=True)
        labels.add(reproduce.make_run(elsewhere, model=str(folder)).label)
    assert len(labels) == 2 and all(label.startswith("lab-model-model-") and len(label) < 30 for label in labels)
    given = {"model": "some/model", "data": "some/edits", "texts": "some/texts"}
    run = reproduce.make_run(elsewhere, "gpu", **given)
    assert (run.profile.model, run.profile.edits, run.profile.texts) == tuple(given.values())
    assert not run.committed and read_yaml(elsewhere / "results" / "profiles" / f"{run.label}.yaml")


def test_committed_streams_are_found_on_another_machine_and_not_under_another_setting():
    stored = {"v_lr": 0.5, "norm_anchor": 35.193721771240234, "layers": [1, 2], "v_loss_layer": None}
    assert same_settings(stored, stored | {"norm_anchor": 35.19371795654297})
    assert not same_settings(stored, stored | {"norm_anchor": 35.2})
    assert not same_settings(stored, stored | {"v_lr": 0.50002}) and not same_settings(stored, stored | {"layers": [1]})
    assert not same_settings(stored | {"norm_anchor": None}, stored)
    assert not same_settings(stored, {"v_lr": 0.5})


@pytest.mark.slow
def test_plain_text_is_the_models_own_where_no_hub_is_reached(tmp_path):
    code = (
        "import kedit_lib as kedit; from kedit_lib.streams.facts import plain_texts\n"
        "model = kedit.load_model('lab-small')\n"
        "assert plain_texts(model, 'auto', tokens=500) == plain_texts(model, 'self', tokens=500) != []"
    )
    offline = {"KEDIT_CACHE": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **offline})
    assert [path.suffix for path in (tmp_path / "self-text").iterdir()] == [".json"]


@pytest.mark.slow
def test_steps_as_scaled_have_their_length_on_the_lab(tmp_path):
    bench = kedit.Bench("smoke", results=tmp_path, progress=False)
    for name, rho in (("memit", 2.0), ("rome", 8.0)):
        scaled = replace(bench.streams[name], name=f"{name}-rho{rho:g}", rho=rho)
        bench.streams[scaled.name] = scaled
        method, people = bench.method(scaled.name), {e.subject for e in bench.facts.reference()}
        v0 = v0_norm(bench.model, method, bench.facts.reference())
        assert method.v_lr * bench.model.d_model**0.5 / v0 == pytest.approx(rho, rel=5e-3)
        assert method.model_copy(update={"v_lr": 0.5}) == bench.method(name)
        assert not people & {e.subject for e in bench.edits(0)}
