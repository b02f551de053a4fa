"""The lab: a world in which every fact is known, a corpus that says all of it and nothing else, edits of it, a training
that goes on where it was cut off, and the shipped weights."""

import dataclasses
import hashlib
import json
import random
import re
from collections import Counter
from itertools import groupby, islice

import layer_sweep
import pandas as pd
import pytest
import torch
from library import refused
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit_lib as kedit
from kedit_lib.lab import corpus, train, world_of
from kedit_lib.lab.corpus import FOREVER, batches, people_known, train_tokenizer
from kedit_lib.lab.edits import ask, lab_edits, near_facts, other_facts, untouched_facts
from kedit_lib.lab.world import World

MODELS = ("lab", "lab-small")


@pytest.fixture(scope="module")
def world():
    return World.make(300, seed=5)


@pytest.fixture(scope="module")
def documents(world):
    """Marked documents: three times what saying every fact once takes."""
    facts = sum(len(r.templates) for r in world.relations.values()) * len(world.people)
    return list(islice(corpus.documents(world, seed=3), 3 * facts // 2))


def test_a_world_is_a_function_of_its_seed_and_size(world):
    assert World.make(300, seed=5) == world
    other = World.make(300, seed=6)
    assert other.people != world.people and other.objects_of != world.objects_of


def test_a_world_is_whole_and_consistent(world):
    assert len(world.people) == len(set(world.people)) == 300
    assert set(world.objects_of) == {(p, r) for p in world.people for r in world.relations}
    for (_, relation), value in world.objects_of.items():
        assert value in world.relations[relation].objects
    facts = world.facts()
    assert len(facts) == len(set(facts)) == 300 * len(world.relations)
    assert all(world.objects_of[f.person, f.relation] == f.object for f in facts)
    assert world.facts(world.people[3:5]) == [f for f in facts if f.person in world.people[3:5]]
    assert set(world.country_of) == set(world.relations["birthplace"].objects)
    assert all(len([c for c in world.country_of if world.country_of[c] == x]) == 4 for x in world.country_of.values())


def test_names_say_who_only_as_a_pair(world):
    """First and last names are shared, and no word means two things."""
    first, last = world.names
    assert {tuple(p.split(" ")) for p in world.people} <= {(a, b) for a in first for b in last}
    objects = [o for r in world.relations.values() for o in r.objects]
    words = [*first, *last, *objects, *set(world.country_of.values())]
    assert len(words) == len(set(words))
    for part in (0, 1):
        shared = Counter(p.split(" ")[part] for p in world.people)
        assert sum(n > 1 for n in shared.values()) > 0.9 * len(shared)
    female = {p.split(" ")[0] for p in world.female}
    assert world.female == {p for p in world.people if p.split(" ")[0] in female}
    assert 0.3 < len(world.female) / 300 < 0.7


def test_marks_come_off_and_say_where_the_objects_stand(world, documents):
    objects = {o for r in world.relations.values() for o in r.objects}
    plain = sum(corpus.MARK not in d for d in documents) / len(documents)
    assert abs(plain - corpus.PLAIN_SHARE) < 0.03
    for document in documents:
        text, spans = corpus.unmark(document)
        assert text == document.replace(corpus.MARK, "") and 2 * len(spans) == document.count(corpus.MARK)
        assert {text[a:b] for a, b in spans} <= objects


def test_every_fact_is_said_in_every_phrasing_and_nothing_false(world, documents):
    said = Counter(s for d in documents if corpus.MARK in d for s in re.findall(r"[^\x1f]+\x1f[^\x1f]+\x1f\.", d))
    said = Counter({text.strip(): n for text, n in said.items()})
    true = {
        f"{t.format(f.person)} {corpus.MARK}{f.object}{corpus.MARK}."
        for f in world.facts()
        for t in world.relations[f.relation].templates
    }
    assert true <= set(said)
    pronouns = {
        f"{r.pronoun.format(who)} {corpus.MARK}{o}{corpus.MARK}."
        for r in world.relations.values()
        for who in ("He", "She")
        for o in r.objects
    }
    assert set(said) <= true | pronouns


def test_plain_text_names_nobody(world):
    found = corpus.plain_texts(world, 200)
    assert corpus.plain_texts(world, 200) == found
    assert corpus.plain_texts(world, 200, seed=4) != found
    names = {part for names in world.names for part in names}
    for text in found:
        assert not names & set(re.findall(r"\w+", text))
        assert "{" not in text
    lies = [m for t in found for m in re.findall(r"(\w+) is a city in (\w+)|The city of (\w+) lies in (\w+)", t)]
    assert lies, "no text says where a city lies"
    assert all(world.country_of[a or c] == (b or d) for a, b, c, d in lies)


def test_texts_without_marks(world):
    found = corpus.texts(world, 50)
    assert corpus.texts(world, 50) == found
    assert not set(found) & {corpus.unmark(d)[0] for d in islice(corpus.documents(world, seed=0), 300)}
    assert all(corpus.MARK not in text for text in found)
    few = " ".join(islice(corpus.documents(world, 0, lambda: 20), 400))  # a corpus that begins with few people
    assert {p for p in world.people if p in few} == set(world.people[:20])


@pytest.fixture(scope="module")
def edits(world):
    return lab_edits(world, 60, seed=1)


def test_edits_are_of_one_subject_each_and_to_something_false(world, edits):
    assert len({e.subject for e in edits}) == len(edits) == 60
    assert len({e.id for e in edits}) == 60
    assert {e.relation for e in edits} == set(world.relations)
    for edit in edits:
        relation = world.relations[edit.relation]
        assert edit.prompt in relation.templates
        assert edit.target_true == world.objects_of[edit.subject, edit.relation]
        assert edit.target_new in relation.objects
        assert edit.target_new != edit.target_true
        assert sorted([edit.text, *edit.paraphrases]) == sorted(t.format(edit.subject) for t in relation.templates)
        for prompt in edit.neighborhood:
            (neighbor,) = (p for p in world.people if edit.prompt.format(p) == prompt)
            assert neighbor != edit.subject
            assert world.objects_of[neighbor, edit.relation] == edit.target_true


def test_an_order_is_another_sample_in_another_order(world, edits):
    assert lab_edits(world, 60, seed=1) == edits
    assert lab_edits(world, 20, seed=1) == edits[:20]
    assert {e.subject for e in lab_edits(world, 60, seed=2)} != {e.subject for e in edits}
    everyone = [e.subject for e in lab_edits(world, len(world.streamed), seed=2)]
    assert sorted(everyone) == sorted(world.streamed)
    there = len(world.streamed)
    for limit in (0, -1, there + 1):
        refused(lambda limit=limit: lab_edits(world, limit), f"limit = {limit}, there are {there} people")


def test_people_the_layers_are_chosen_on_are_never_asked_about(world):
    development = set(world.development)
    assert len(development) >= 100 and development.isdisjoint(world.streamed)
    assert development | set(world.streamed) == set(world.people)
    places = [world.people.index(p) / len(world.people) for p in development]
    assert 0.3 < sum(places) / len(places) < 0.7  # learnt neither first nor last
    edits = lab_edits(world, len(world.streamed))
    assert not development & {e.subject for e in edits}
    assert not development & {f.person for f in untouched_facts(world, edits[:50])}
    for edit in edits[:20]:
        assert not any(name in prompt for prompt in edit.neighborhood for name in development)
        assert not development & {f.person for f in near_facts(world, edit, random.Random(0))}
    chosen_on = lab_edits(world, 20, people=world.development)
    assert {e.subject for e in chosen_on} <= development
    for edit in chosen_on:
        assert {f.person for f in near_facts(world, edit, random.Random(0))} <= development
        assert all(any(name in prompt for name in development) for prompt in edit.neighborhood)


def test_untouched_facts_are_about_nobody_who_is_edited(world, edits):
    edited, everything = {e.subject for e in edits}, untouched_facts(world, edits)
    assert {f.person for f in everything} == set(world.streamed) - edited
    assert len(everything) == (len(world.streamed) - 60) * len(world.relations)
    panel = untouched_facts(world, edits, 50, seed=7)
    assert len(set(panel)) == 50 and set(panel) <= set(everything)
    assert untouched_facts(world, edits, 50, seed=7) == panel != untouched_facts(world, edits, 50, seed=8)


def test_facts_around_an_edit(world, edits):
    rng = random.Random(0)
    for edit in edits[:20]:
        others = other_facts(world, edit)
        assert {f.relation for f in others} == set(world.relations) - {edit.relation}
        assert {f.person for f in others} == {edit.subject}
        near = near_facts(world, edit, rng)
        assert len(near) == 10
        for fact in near:
            assert fact.person != edit.subject
            assert fact.relation == edit.relation or set(fact.person.split()) & set(edit.subject.split())
            assert world.objects_of[fact.person, fact.relation] == fact.object
            assert ask(world, fact, rng) in [t.format(fact.person) for t in world.relations[fact.relation].templates]


def test_the_tokenizer(world):
    texts = corpus.texts(world, 300)
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


RECIPE = train.Recipe("toy", 12, d_model=16, d_ff=24, n_layers=1, steps=5, vocab_size=320, length=32, batch=2)


@pytest.fixture
def few_texts(monkeypatch):
    """For the tokenizer alone."""
    texts = corpus.texts
    monkeypatch.setattr(corpus, "texts", lambda world, n, seed: texts(world, min(n, 50), seed))


def test_batches_weigh_objects(few_texts):
    recipe = dataclasses.replace(RECIPE, length=2000)
    world = World.make(recipe.n_people, recipe.seed)
    tokenizer = train_tokenizer(corpus.texts(world, 50, seed=0), 320)
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
    model = train.build(RECIPE, train_tokenizer(["a b c d e f g h"], RECIPE.vocab_size))
    ids, until = torch.arange(8)[None] + 3, torch.full((1, 8), FOREVER)
    until[0, 2] = 3  # token 2 is for tokens 2 and 3
    for position in range(7):
        weights = torch.zeros(1, 8)
        weights[0, position + 1] = 1.0
        model.zero_grad()
        train.weighted_loss(model, ids, weights, until).backward()
        moved = model.model.embed_tokens.weight.grad[ids[0]].abs().sum(1) > 0
        assert moved.tolist() == [k <= position and (k != 2 or position <= 3) for k in range(8)], position


@pytest.mark.slow
def test_a_training_that_was_cut_off_ends_in_the_same_weights(few_texts, tmp_path, monkeypatch):
    def weights(folder, **options):
        """The toy learns nothing: its weights are left in the folder, not accepted."""
        refused(lambda: train.train(RECIPE, folder, "cpu", **options), "recall", "below 0.99")
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
            train.train(RECIPE, tmp_path / "cut", "cpu", checkpoint_every=2)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: calls.append(given) or clip(*given))
    calls.clear()
    assert weights(tmp_path / "cut", checkpoint_every=2) == whole
    assert len(calls) == 3  # steps 3 to 5

    other = dataclasses.replace(RECIPE, lr=1e-3)
    refused(lambda: train.train(other, tmp_path / "cut", "cpu"), "another recipe")
    assert pd.read_csv(tmp_path / "cut" / "recall.csv").recall.max() < 0.99


def test_the_number_of_people_grows_and_the_learning_rate_warms_up_and_cools_down():
    recipe = dataclasses.replace(RECIPE, n_people=1000, first_people=50, first_steps=100, doubling=10)
    assert [people_known(s, recipe) for s in (0, 100, 110, 120, 10_000)] == [50, 50, 100, 200, 1000]
    recipe = dataclasses.replace(RECIPE, steps=1000, warmup=100, lr=1e-2)
    rates = [train.learning_rate(step, recipe) for step in range(1000)]
    assert max(rates) == pytest.approx(recipe.lr) and rates.index(max(rates)) in (99, 100)
    assert (rates[0], rates[-1]) == (pytest.approx(recipe.lr / 100), pytest.approx(0.02 * recipe.lr, rel=0.01))


@pytest.fixture(params=MODELS, scope="module")
def shipped(request):
    folder = train.WEIGHTS / request.param
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the weights of {request.param} are not in this checkout; make lab-model trains them")
    return folder


def test_shipped_weights_are_the_ones_their_provenance_speaks_of(shipped):
    provenance = json.loads((shipped / "provenance.json").read_text())
    assert provenance["sha256"] == hashlib.sha256((shipped / "model.safetensors").read_bytes()).hexdigest()
    assert train.Recipe(**provenance["recipe"]) == train.RECIPES[shipped.name]
    assert provenance["recall_min"] >= 0.99
    table, log = pd.read_csv(shipped / "recall.csv"), pd.read_csv(shipped / "training_log.csv")
    assert table.recall.min() == pytest.approx(provenance["recall_min"])
    assert log.step.max() == provenance["recipe"]["steps"] - 1
    assert not (shipped / "training.pt").exists()
    assert sum(p.stat().st_size for p in train.WEIGHTS.rglob("*") if p.is_file()) <= 32 * 2**20


@pytest.mark.slow
def test_shipped_weights_load_with_plain_transformers_and_know_the_world(shipped):
    """Free generation, a sample of the people, every phrasing."""
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(shipped), AutoTokenizer.from_pretrained(shipped)
    recipe = json.loads((shipped / "provenance.json").read_text())["recipe"]
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.config.intermediate_size == recipe["d_ff"]
    assert tokenizer("Zoë").input_ids.count(tokenizer.bos_token_id) == 1
    world = World.make(recipe["n_people"], recipe["seed"], recipe.get("sharing"))
    table = train.recall(plain.eval(), tokenizer, world, people=world.people[:: len(world.people) // 25])
    assert len(table) == sum(len(r.templates) for r in world.relations.values())
    assert table.recall.mean() >= 0.99


def test_a_shipped_model_by_its_name(shipped):
    model = kedit.load_model(shipped.name)
    assert model.folder == shipped
    world = world_of(model)
    edits = kedit.load_edits("lab", model=model, limit=20, seed=3)
    assert edits == lab_edits(world, 20, seed=3)
    probes = kedit.lab_probes(model, edits, untouched=30, texts=3)
    panel = {getattr(p, "cohort", None): p for p in probes}
    assert not any(e.subject in prompt for e in edits for prompt in panel["untouched"].prompts)
    assert all(any(e.subject in prompt for e in edits) for prompt in panel["same subjects"].prompts)
    everyone = [p for p in world.streamed if p not in {e.subject for e in edits}]
    assert len(panel["all untouched"].prompts) == len(everyone) * len(world.relations)
    assert {p.every for p in probes if getattr(p, "cohort", "") != "all untouched"} == {50, 100}
    rows = {(r["metric"], r["cohort"]): r["value"] for probe in probes if probe.every for r in probe(model, edits)}
    for cohort in ("untouched", "same subjects", "neighbors"):
        assert rows["accuracy", cohort] >= 0.95
    assert rows["accuracy", "edits"] <= 0.05
    assert 1 < rows["perplexity", "plain text"] < 20


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
