"""The lab: a world in which every fact is known, a corpus that says all of it and nothing else, and edits of it."""

import random
import re
from collections import Counter
from itertools import islice

import pytest
from library import refused

import kedit_lib as kedit
from kedit_lib.data.config import LAB_MODELS
from kedit_lib.lab import world as invented
from kedit_lib.lab.edits import ask, lab_edits, near_facts, other_facts, untouched_facts
from kedit_lib.lab.world import World, world_of
from kedit_lib.models.loading import WEIGHTS


@pytest.fixture(scope="module")
def world():
    return World.make(300, seed=5)


@pytest.fixture(scope="module")
def documents(world):
    """Marked documents: three times what saying every fact once takes."""
    facts = sum(len(r.templates) for r in world.relations.values()) * len(world.people)
    return list(islice(invented.documents(world, seed=3), 3 * facts // 2))


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


def test_marks_stand_round_objects_and_come_off(world, documents):
    objects = {o for r in world.relations.values() for o in r.objects}
    plain = sum(invented.MARK not in d for d in documents) / len(documents)
    assert abs(plain - invented.PLAIN_SHARE) < 0.03
    for document in documents:
        assert set(document.split(invented.MARK)[1::2]) <= objects
        assert invented.unmark(document) == "".join(document.split(invented.MARK))


def test_every_fact_is_said_in_every_phrasing_and_nothing_false(world, documents):
    said = Counter(s for d in documents if invented.MARK in d for s in re.findall(r"[^\x1f]+\x1f[^\x1f]+\x1f\.", d))
    said = Counter({text.strip(): n for text, n in said.items()})
    true = {
        f"{t.format(f.person)} {invented.MARK}{f.object}{invented.MARK}."
        for f in world.facts()
        for t in world.relations[f.relation].templates
    }
    assert true <= set(said)
    pronouns = {
        f"{r.pronoun.format(who)} {invented.MARK}{o}{invented.MARK}."
        for r in world.relations.values()
        for who in ("He", "She")
        for o in r.objects
    }
    assert set(said) <= true | pronouns


def test_plain_text_names_nobody(world):
    found = invented.plain_texts(world, 200)
    assert invented.plain_texts(world, 200) == found
    assert invented.plain_texts(world, 200, seed=4) != found
    names = {part for names in world.names for part in names}
    for text in found:
        assert not names & set(re.findall(r"\w+", text))
        assert "{" not in text
    lies = [m for t in found for m in re.findall(r"(\w+) is a city in (\w+)|The city of (\w+) lies in (\w+)", t)]
    assert lies, "no text says where a city lies"
    assert all(world.country_of[a or c] == (b or d) for a, b, c, d in lies)


def test_texts_without_marks(world):
    found = invented.texts(world, 50)
    assert invented.texts(world, 50) == found
    assert not set(found) & {invented.unmark(d) for d in islice(invented.documents(world, seed=0), 300)}
    assert all(invented.MARK not in text for text in found)
    few = " ".join(islice(invented.documents(world, 0, lambda: 20), 400))  # a corpus that begins with few people
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


@pytest.mark.parametrize("name", LAB_MODELS)
def test_a_shipped_model_by_its_name(name):
    model = kedit.load_model(name)
    assert model.folder == WEIGHTS / name
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
