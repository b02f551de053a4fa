"""How the lab models were made: a training that goes on where it was cut off, the shipped weights, the sweep that chose
their layers, and the family of widths."""

import dataclasses
import hashlib
import json
from itertools import groupby, islice

import lab_model
import layer_sweep
import pandas as pd
import pytest
import torch
import width_family
from lab_model import FOREVER, batches, people_known, train_tokenizer
from library import refused
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit_lib as kedit
from kedit_lib.data.config import LAB_MODELS
from kedit_lib.lab import world as invented
from kedit_lib.lab.world import World, world_of
from kedit_lib.models.loading import WEIGHTS
from kedit_lib.streams.bench import data_folder


def test_objects_are_found_in_the_plain_text():
    world = World.make(50)
    for document in islice(invented.documents(world, seed=3), 300):
        text, spans = invented.unmark(document), lab_model.object_spans(document)
        assert [text[a:b] for a, b in spans] == document.split(invented.MARK)[1::2]


def test_the_tokenizer():
    texts = invented.texts(World.make(300, seed=5), 300)
    tokenizer = train_tokenizer(texts, 500)
    assert len(tokenizer) == 500
    for text in (*texts[:20], "Zoë 北京 {}\n  x", ""):
        ids = tokenizer(text).input_ids
        assert ids[:1] == [tokenizer.bos_token_id]
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids[1:])
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert train_tokenizer(texts, 500).get_vocab() == tokenizer.get_vocab()
    assert tokenizer("a", add_special_tokens=False).input_ids[0] != tokenizer.bos_token_id


RECIPE = lab_model.Recipe("toy", 12, d_model=16, d_ff=24, n_layers=1, steps=5, vocab_size=320, length=32, batch=2)


@pytest.fixture
def few_texts(monkeypatch):
    """For the tokenizer alone."""
    texts = invented.texts
    monkeypatch.setattr(invented, "texts", lambda world, n, seed: texts(world, min(n, 50), seed))


def test_batches_weigh_objects(few_texts):
    recipe = dataclasses.replace(RECIPE, length=2000)
    world = World.make(recipe.n_people, recipe.seed)
    tokenizer = train_tokenizer(invented.texts(world, 50, seed=0), 320)
    ids, weights, until = next(batches(world, tokenizer, recipe))
    assert ids.shape == weights.shape == until.shape == (2, 2000)
    again, _, _ = next(batches(world, tokenizer, recipe))
    assert torch.equal(ids, again)
    assert set(weights.flatten().tolist()) == {1.0, recipe.object_weight}
    runs = groupby(zip(ids[0].tolist(), weights[0].tolist(), strict=True), key=lambda pair: pair[1] > 1)
    heavy = [tokenizer.decode([token for token, _ in run]).strip() for is_heavy, run in runs if is_heavy]
    assert len(heavy) > 10
    assert set(heavy[:-1]) <= {o for r in world.relations.values() for o in r.objects}
    text = tokenizer.decode(ids[0])
    assert text.startswith("<s>")
    assert text.count("</s><s>") == text.count("<s>") - 1  # documents end to end


def test_a_hidden_token_reaches_only_whom_it_may():
    """Gradients of the loss at one position, by the token whose embedding they are of."""
    torch.manual_seed(0)
    model = lab_model.build(RECIPE, train_tokenizer(["a b c d e f g h"], RECIPE.vocab_size))
    ids, until = torch.arange(8)[None] + 3, torch.full((1, 8), FOREVER)
    until[0, 2] = 3  # token 2 is for tokens 2 and 3
    for position in range(7):
        weights = torch.zeros(1, 8)
        weights[0, position + 1] = 1.0
        model.zero_grad()
        lab_model.weighted_loss(model, ids, weights, until).backward()
        moved = model.model.embed_tokens.weight.grad[ids[0]].abs().sum(1) > 0
        assert moved.tolist() == [k <= position and (k != 2 or position <= 3) for k in range(8)], position


@pytest.mark.slow
def test_a_training_that_was_cut_off_ends_in_the_same_weights(few_texts, tmp_path, monkeypatch):
    def weights(folder, **options):
        """The toy learns nothing: its weights are left in the folder, not accepted."""
        refused(lambda: lab_model.train(RECIPE, folder, "cpu", **options), "recall", "below 0.99")
        return (folder / "model.safetensors").read_bytes()

    whole = weights(tmp_path / "whole")
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return clip(*given)

    with monkeypatch.context() as m:
        m.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab_model.train(RECIPE, tmp_path / "cut", "cpu", checkpoint_every=2)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: calls.append(given) or clip(*given))
    calls.clear()
    assert weights(tmp_path / "cut", checkpoint_every=2) == whole
    assert len(calls) == 3  # steps 3 to 5

    other = dataclasses.replace(RECIPE, lr=1e-3)
    refused(lambda: lab_model.train(other, tmp_path / "cut", "cpu"), "another recipe")
    assert pd.read_csv(tmp_path / "cut" / "recall.csv").recall.max() < 0.99


def test_the_number_of_people_grows_and_the_learning_rate_warms_up_and_cools_down():
    recipe = dataclasses.replace(RECIPE, n_people=1000, first_people=50, first_steps=100, doubling=10)
    assert [people_known(s, recipe) for s in (0, 100, 110, 120, 10_000)] == [50, 50, 100, 200, 1000]
    recipe = dataclasses.replace(RECIPE, steps=1000, warmup=100, lr=1e-2)
    rates = [lab_model.learning_rate(step, recipe) for step in range(1000)]
    assert max(rates) == pytest.approx(recipe.lr) and rates.index(max(rates)) in (99, 100)
    assert (rates[0], rates[-1]) == (pytest.approx(recipe.lr / 100), pytest.approx(0.02 * recipe.lr, rel=0.01))


@pytest.fixture(params=LAB_MODELS, scope="module")
def shipped(request):
    folder = WEIGHTS / request.param
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the weights of {request.param} are not in this checkout; make lab-model trains them")
    return folder


def test_shipped_weights_are_the_ones_their_provenance_speaks_of(shipped):
    provenance = json.loads((shipped / "provenance.json").read_text())
    assert provenance["sha256"] == hashlib.sha256((shipped / "model.safetensors").read_bytes()).hexdigest()
    assert lab_model.Recipe(**provenance["recipe"]) == lab_model.RECIPES[shipped.name]
    assert provenance["recall_min"] >= 0.99
    table, log = pd.read_csv(shipped / "recall.csv"), pd.read_csv(shipped / "training_log.csv")
    assert table.recall.min() == pytest.approx(provenance["recall_min"])
    assert log.step.max() == provenance["recipe"]["steps"] - 1
    assert not (shipped / "training.pt").exists()
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) <= 32 * 2**20


@pytest.mark.slow
def test_shipped_weights_load_with_plain_transformers_and_know_the_world(shipped):
    """Free generation, a sample of the people, every phrasing."""
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(shipped), AutoTokenizer.from_pretrained(shipped)
    recipe = json.loads((shipped / "provenance.json").read_text())["recipe"]
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.config.intermediate_size == recipe["d_ff"]
    assert tokenizer("Zoë").input_ids.count(tokenizer.bos_token_id) == 1
    world = World.make(recipe["n_people"], recipe["seed"], recipe.get("sharing"))
    table = lab_model.recall(plain.eval(), tokenizer, world, people=world.people[:: len(world.people) // 25])
    assert len(table) == sum(len(r.templates) for r in world.relations.values())
    assert table.recall.mean() >= 0.99


@pytest.mark.slow
def test_layers_and_scale_are_swept_on_development_people(tmp_path, monkeypatch, capsys):
    asked, single = [], layer_sweep.single_edits
    monkeypatch.setattr(layer_sweep, "single_edits", lambda *given: asked.extend(given[2]) or single(*given))
    monkeypatch.setattr(layer_sweep, "WIDEST", 1)
    monkeypatch.setattr(layer_sweep, "SCALES", (16.0,))
    monkeypatch.chdir(tmp_path)
    layer_sweep.main("lab-small", 1, tmp_path)
    assert {e.subject for e in asked} <= set(world_of(kedit.load_model("lab-small")).development)
    layers = pd.read_csv(tmp_path / "layers.csv", dtype={"layers": str})
    assert layers.groupby("method").size().to_dict() == {"MEMIT": 3, "PMET": 3, "ROME": 4}
    scales = pd.read_csv(tmp_path / "scales.csv")
    assert set(scales.norm) == {16.0}
    assert set(scales.method) == {"MEMIT", "PMET", "ROME"}
    assert layers[["edit", "templates", "near", "same_subject"]].stack().between(0, 1).all()


def test_the_recipes_of_the_family_are_those_of_its_table():
    made = json.loads((data_folder() / "scaling.manifest.json").read_text())["recipes"]
    assert {role: dataclasses.asdict(recipe) for role, recipe in width_family.recipes().items()} == made


@pytest.mark.slow
def test_a_member_of_the_family_is_measured(tmp_path, monkeypatch):
    """Against the columns of the committed table; a model below a bar has one row and no edit sequence."""
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path))
    committed, model = pd.read_parquet(data_folder() / "scaling.parquet"), kedit.load_model("lab-small")
    monkeypatch.setattr(width_family, "STREAMS", {"MEMIT": ([1], 0.5, 0.01)})  # four edits
    monkeypatch.setattr(width_family, "BARS", dict.fromkeys(width_family.BARS, 0.0))
    table = width_family.measure(model, "d_ff 384", orders=(0,), n_single=4)
    assert table.dtypes.to_dict() == committed.dtypes.to_dict()
    assert table.loc[0, ["stream", "edits", "order", "d_ff", "people"]].tolist() == ["MEMIT", 4, 0, 384, 200]
    monkeypatch.setattr(width_family, "BARS", dict.fromkeys(width_family.BARS, 1.1))
    table = width_family.measure(model, "d_ff 384", n_single=4)
    assert table.loc[:, ["stream", "edits"]].to_numpy().tolist() == [["", 0]]
