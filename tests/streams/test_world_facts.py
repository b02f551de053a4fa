"""Edits of cities and countries: records are sound for every relation, drawn by the seed, and known to the model."""

import random
from dataclasses import replace

import geography as taken
import pytest
from library import refused

import kedit_lib as kedit
from kedit_lib.data.config import results_folder
from kedit_lib.data.words import places
from kedit_lib.data.world import RELATIONS, Fact, KnownWorld, alike, geography
from kedit_lib.evaluation import generation_accuracy
from kedit_lib.streams import edit_sets as asking
from kedit_lib.streams.edit_sets import known_world
from kedit_lib.streams.facts import facts_of


@pytest.fixture(scope="module")
def there():
    return geography()


@pytest.fixture(scope="module")
def world(there):
    """As if a model knew half of the facts in all wordings and half in one: no model is needed to make records."""
    rng = random.Random(0)
    the = {o: f"the {o}" for o in there.articles}
    known = {f: RELATIONS[f.relation].wordings[: rng.choice((1, 6))] for f in there.asked}
    said = {f: {w: the.get(f.object, f.object) for w in wordings} for f, wordings in known.items()}
    return KnownWorld(there, said)


@pytest.fixture(scope="module")
def edits(world):
    return world.edits(700, 0)


@pytest.mark.slow
def test_the_facts_are_those_of_geonames(there):
    assert there.facts == tuple(taken.facts())


def test_facts_have_one_answer_that_the_prompt_does_not_give_away(there):
    assert Fact("city-country", "Marseille", "France") in there.facts
    assert Fact("country-capital", "France", "Paris") in there.facts
    assert Fact("country-currency", "Japan", "Japanese yen") in there.facts
    subjects = {f.subject for f in there.facts}
    assert not subjects & {"Mexico City", "Guatemala City", "Kuwait City", "Hong Kong", "Taipei", "San José", "Georgia"}
    for f in there.facts:
        if f.relation in ("city-country", "country-capital", "country-continent"):
            assert not alike(f.subject, f.object), f
    assert len({(f.relation, f.subject) for f in there.facts}) == len(there.facts)
    assert there.objects_of["city-country"]["Chicago"] == "United States" in there.articles
    for r in RELATIONS.values():  # three statements and three questions
        assert len(r.statements) == len(r.questions) == 3 and len(set(r.wordings)) == 6
        assert all(w.count("{}") == 1 and w == w.strip() for w in (*r.wordings, r.inverse, r.prose))
        assert not any("?" in w for w in r.statements) and all("?" in w for w in r.questions)


def test_records_are_well_formed(world, edits):
    assert {e.relation for e in edits} == set(RELATIONS)
    assert len({e.subject for e in edits}) == len(edits)
    for e in edits:
        fact = next(f for f in world.of_subject[e.subject] if f.relation == e.relation)
        assert e.target_true.removeprefix("the ") == fact.object != e.target_new
        assert e.target_new in {f.object for f in world.facts if f.relation == e.relation} - world.geography.articles
        assert e.prompt in RELATIONS[e.relation].wordings
        assert {e.text, *e.paraphrases} == {w.format(e.subject) for w in RELATIONS[e.relation].wordings}
        for prompt in (e.text, *e.paraphrases, *e.generation_prompts):
            assert places(prompt, e.subject) and not places(prompt, e.target_new)
        if e.relation not in ("country-language", "country-currency"):
            assert not any(places(p, fact.object) for p in (e.text, *e.paraphrases))


def test_neighbors_share_the_true_object_and_attributes_the_new_one(world, edits):
    known = {w.format(f.subject): said[w] for f, said in world.facts.items() for w in said}
    assert sum(bool(e.neighborhood) for e in edits) > 0.6 * len(edits)
    for e in edits:
        assert all(known[p] == e.target_true and not places(p, e.subject) for p in e.neighborhood)
        assert all(known[p] == e.target_new for p in e.attribute_prompts)
        assert all(known[p] == answer and places(p, e.subject) for p, answer in e.locality)


def test_what_follows_goes_by_the_new_country(world, edits):
    asked = [e for e in edits if e.portability]
    assert len(asked) > 0.3 * len(edits) and all(e.relation == "city-country" for e in asked)
    of = {kind: world.geography.objects_of[f"country-{kind}"] for kind in ("continent", "language", "currency")}
    for e in asked:
        new = {of[kind].get(e.target_new) for kind in of}
        true = {of[kind].get(e.target_true.removeprefix("the ")) for kind in of}
        for prompt, answer in e.portability:
            assert places(prompt, e.subject) and answer in new and answer not in true
    lyon = replace(asked[0], subject="Lyon", target_true="France", target_new="Japan", relation="city-country")
    assert [(kind, new, true) for kind, _, new, true in world.follows(lyon)] == [
        ("its continent", "Asia", "Europe"),
        ("its language", "Japanese", "French"),
        ("its currency", "Japanese yen", "euro"),
    ]


def test_the_seed_decides_the_sample_the_order_and_the_edits(world):
    one, other = world.edits(50, 0), world.edits(50, 1)
    assert one == world.edits(50, 0) and world.edits(20, 0) == one[:20]
    assert {e.subject for e in one} != {e.subject for e in other}
    for limit in (0, len(world.of_subject) + 1, "3"):
        refused(lambda limit=limit: world.edits(limit, 0), f"limit = {limit!r}, the model knows facts of")


def test_untouched_facts_have_nothing_to_do_with_the_edited_subjects(world):
    edits = world.edits(450, 0)
    edited, country = {e.subject for e in edits}, world.geography.objects_of["city-country"]
    facts = world.untouched(edits)
    assert len(facts) >= 200 and world.untouched(edits, 100, 0) == world.untouched(edits, 100, 0)
    assert world.untouched(edits, 100, 0) != world.untouched(edits, 100, 1)
    moved = {e.subject for e in edits if e.relation == "country-continent"}
    assert moved and edited & set(country.values())
    for f in facts:
        assert f.subject not in edited
        assert f.relation != "country-capital" or f.object not in edited
        assert f.relation != "city-continent" or country[f.subject] not in moved
        assert len(world.said[f]) >= 2


def test_facts_beside_an_edit_stay_true(world, edits):
    of = world.geography.objects_of["country-continent"]
    assert any(world.beside(e) for e in edits if e.relation == "city-country")
    for e in edits:
        for f in world.beside(e):
            assert f.subject == e.subject and f.relation != e.relation
            assert e.relation.startswith("country") or of[e.target_new] == f.object


@pytest.fixture
def small(monkeypatch, there):
    """A few facts of the world only, asked of a small model that knows none of them."""
    few = replace(there, facts=tuple(f for f in there.facts if f.relation == "country-capital")[:8])
    monkeypatch.setattr(asking, "geography", lambda: few)
    return kedit.load_model("lab-small")


def test_what_a_model_knows_is_asked_once(small, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(asking, "generation_accuracy", lambda m, p, a, match: asked.append(p) or [True] * len(p))
    first = known_world(small, tmp_path)
    assert list(map(len, asked)) == [len(first.geography.asked)] * 2
    again = known_world(small, tmp_path)
    assert len(asked) == 2 and again.said == first.said and again.edits(3, 0) == first.edits(3, 0)


def test_a_model_that_knows_nothing_has_no_edits(small, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path))
    for limit in (None, 3):
        says = f"world edits: limit = {limit or 100}, the model knows facts of 0 cities"
        refused(lambda n=limit: kedit.load_edits("world", model=small, limit=n), says)
    assert len(list((tmp_path / "known").iterdir())) == 1
    refused(lambda: kedit.load_edits("world"), "load_edits('world'): pass model=")
    refused(lambda: kedit.load_edits("world", model=small, chat=True), "chat goes with data sets only")
    refused(lambda: kedit.read_edits("world"), "read_edits('world'")


def test_a_bench_of_the_world_asks_all_probes(world, tmp_path):
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Text number {i}." for i in range(80)))
    material = facts_of(kedit.load_model("lab-small"), "world", str(tmp_path / "texts.txt"))
    material.known = world
    edits = material.edits(40, 0)
    probes = material.probes(edits, 500, 0, layers=(0,))
    cohorts = {getattr(p, "cohort", type(p).__name__) for p in probes}
    assert cohorts >= {"untouched", "same subjects", "EditProbe", "PortabilityProbe", "DistractionProbe"}
    assert all(p.match == "begins" for p in probes if hasattr(p, "match"))
    untouched = next(p for p in probes if getattr(p, "cohort", "") == "untouched" and hasattr(p, "match"))
    assert len(untouched.prompts) == 500
    assert [p.identity for p in probes] == [p.identity for p in material.probes(edits, 500, 0, layers=(0,))]
    asked = next(p for p in probes if type(p).__name__ == "PortabilityProbe")
    assert len(asked.questions) == len(asked.inverses) == 40
    assert {q.kind for qs in asked.questions for q in qs} == {"its continent", "its language", "its currency"}
    near, own = material.around(edits[0], random.Random(0))
    assert len(near) == 10 and not any(places(p, edits[0].subject) for p, _ in near)


@pytest.mark.slow
def test_a_real_model_says_what_was_selected():
    model = kedit.load_model("smollm2")
    known = known_world(model, results_folder() / "known")  # asked once: minutes
    edits = known.edits(450, 0)
    untouched = known.untouched(edits, 500, 0)
    assert len(edits) == 450 and len(untouched) == 500
    prompts = [(e.text, e.target_true) for e in edits[::5]]
    prompts += [(p, e.target_true) for e in edits[::5] for p in e.neighborhood[:1]]
    prompts += [known.stated(f) for f in untouched[::5]]
    right = generation_accuracy(model, [p for p, _ in prompts], [a for _, a in prompts], "begins")
    assert all(right), [p for p, says in zip(prompts, right, strict=True) if not says][:5]
