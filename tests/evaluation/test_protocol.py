"""Probes: what their rows say, on which edits, and that what the unedited model says is asked once."""

import dataclasses
from types import SimpleNamespace

import pytest
import tiny
import torch

import kedit_lib as kedit
from kedit_lib import evaluation as metrics
from kedit_lib.evaluation import Question
from kedit_lib.evaluation import protocol as probes
from kedit_lib.evaluation import side_effects as families
from kedit_lib.evaluation.health import HealthProbe, PerplexityProbe
from kedit_lib.evaluation.protocol import Probe, evenly, true_object
from kedit_lib.lab import edits as questions
from kedit_lib.lab.edits import lab_edits
from kedit_lib.lab.world import World
from kedit_lib.models.generation import complete

MODEL = "llama-bos", torch.float64
SUBJECTS = "Danielle Darrieux,Zoë,Toko Yasuda,Ana Brown,Léon Blum,Zoë Müller,Old Blum".split(",")
EDITS = [
    kedit.Edit(
        prompt,
        subject,
        target,
        target_true=None if i in (3, 4) else "Graz",
        paraphrases=[f"It is said of {subject}: he likes"] if i % 2 else [],
        neighborhood=[prompt.format(f"Ana {SUBJECTS[i - 1]}")] if i != 5 else [],
    )
    for i, (subject, (prompt, _, target)) in enumerate(zip(SUBJECTS, tiny.EDITS * 2, strict=False))
]


def table(rows):
    found = {(r["metric"], r["cohort"]): r["value"] for r in rows}
    assert len(found) == len(rows), "two rows of one name"
    assert all(set(r) == {"metric", "cohort", "value", "n"} for r in rows)
    return found


def test_a_true_object_that_the_tokenizer_cannot_write_is_not_scored():
    model = SimpleNamespace(tokenizer=tiny.tokenizer("llama-metaspace"))
    assert true_object(model, kedit.Edit("{} plays the", "Zoë", "organ", "oboe")) == "oboe"
    assert true_object(model, kedit.Edit("{} plays the", "Zoë", "organ", "№")) is None
    assert true_object(model, kedit.Edit("{} plays the", "Zoë", "organ")) is None


def edit(model):
    model.add({model.weight_name(1): torch.ones_like(model.weight(1)) / 5})


def test_the_edits_so_far(model, monkeypatch):
    monkeypatch.setattr(probes, "COHORT_LIMIT", 4)
    monkeypatch.setattr(probes, "LATEST", 2)
    monkeypatch.setattr(probes, "CONTAINED", 3)
    found = probes.EditProbe()(model, EDITS)
    n, found = {(r["metric"], r["cohort"]): r["n"] for r in found}, table(found)

    def mean(values):
        values = [float(v) for v in values]
        return pytest.approx(sum(values) / len(values))

    assert "paraphrases" not in {cohort for _, cohort in found}  # only every other edit is asked, and those have none
    cohorts = {
        "edits": [(e.text, e.target_new, "Graz" if i in (0, 2, 6) else None) for i, e in enumerate(EDITS)],
        "neighbors": [(EDITS[i].neighborhood[0], "Graz", EDITS[i].target_new) for i in (0, 2, 6)],
    }
    for cohort, asked in cohorts.items():
        prompts, wanted, _ = map(list, zip(*asked, strict=True))
        two = [a for a in asked if a[2]]
        first = metrics.teacher_forced(model, prompts, wanted)
        p, q = (
            [metrics.teacher_forced(model, [each[0]], [each[i]]).probability.item() for each in two] for i in (1, 2)
        )
        gains = [a - b for a, b in zip(p, q, strict=True)]
        assert found["accuracy", cohort] == mean(metrics.generation_accuracy(model, prompts, wanted))
        assert found["token accuracy", cohort] == mean(first.tokens_right)
        assert found["strict accuracy", cohort] == mean(first.tokens_right == 1)
        assert found["success", cohort] == mean(gain > 0 for gain in gains)
        assert found["magnitude", cohort] == mean(gains)
        assert n["accuracy", cohort] == len(asked) and n["success", cohort] == len(two)
    p = metrics.teacher_forced(model, [e.text for e in EDITS], [e.target_new for e in EDITS]).probability
    assert found["probability", "edits"] == mean(p)
    assert found["probability", "latest edits"] == mean(p[-2:])
    some = [EDITS[i] for i in (0, 3, 6)]
    contained = metrics.generation_accuracy(model, [e.text for e in some], [e.target_new for e in some], "contains")
    assert (found["containment", "edits"], n["containment", "edits"]) == (mean(contained), 3)
    near = cohorts["neighbors"]
    intruders = metrics.teacher_forced(model, [a[0] for a in near], [a[2] for a in near]).probability
    assert found["probability", "new on neighbors"] == mean(intruders)
    assert ("score", "edits") not in found
    for i, value in enumerate(p, 1):
        assert found["probability", f"edit {i}"] == pytest.approx(value.item())
        assert found["accuracy", f"edit {i}"] in (0, 1)
    together = table(probes.EditProbe(each=False)(model, EDITS))
    assert together == {key: value for key, value in found.items() if not key[1][5:].isdigit()}


def test_the_edits_briefly(model, monkeypatch):
    monkeypatch.setattr(probes, "COHORT_LIMIT", 3)
    monkeypatch.setattr(probes, "LATEST", 2)
    found = table(probes.EditProbe().brief(model, EDITS))
    assert {metric for metric, _ in found} == {"accuracy", "probability"}
    for cohort, asked in (("edits", (0, 3, 6)), ("latest edits", (5, 6))):
        prompts, new = [EDITS[i].text for i in asked], [EDITS[i].target_new for i in asked]
        right = metrics.generation_accuracy(model, prompts, new)
        assert found["accuracy", cohort] == sum(right) / len(right)
        p = metrics.teacher_forced(model, prompts, new).probability
        assert found["probability", cohort] == pytest.approx(p.mean().item())


@pytest.mark.parametrize("right, asked", [([1, 1, 1, 1], 4), ([1, 0, 1, 0], 9), ([0, 0, 0, 1], 4)])
def test_facts_briefly(model, monkeypatch, right, asked):
    """All of them if the first ones do not tell whether the model is dead."""
    answers = tuple(str(i) for i in (right + [1] * 5))
    monkeypatch.setattr(probes, "BRIEF", 4)
    monkeypatch.setattr(probes, "generation_accuracy", lambda m, prompts, answers, match: [a == "1" for a in answers])
    probe = probes.VitalProbe("untouched", tuple("abcdefghi"), answers)
    (brief,), (whole,) = probe.brief(model, EDITS), probe(model, EDITS)
    known = (right + [1] * 5)[:asked]
    assert (brief["value"], brief["n"]) == (sum(known) / asked, asked)
    assert (whole["value"], whole["n"]) == ((sum(right) + 5) / 9, 9)
    assert probes.VitalProbe("few", ("a",), ("1",)).brief(model, EDITS)[0]["n"] == 1


def test_the_unedited_model_is_asked_once(model):
    original, asked = model.weight(1).detach().clone(), []

    def ask(model):
        asked.append(torch.equal(model.weight(1), original))
        return len(asked)

    edit(model)
    one, other = Probe(), Probe()
    assert [probe.unedited(model, ask) for probe in (one, one, other)] == [1, 1, 2]
    assert asked == [True, True] and not torch.equal(model.weight(1), original)


PROMPTS = ("Ana Brown plays the", "The birthplace of Zoë is", "The town is a", "Old English and")
ANSWERS = ("oboe", "Graz", "port", "Old Norse")


def test_locality(model):
    probe = families.LocalityProbe("untouched", PROMPTS, ANSWERS)
    assert set(table(probe(model, [])).values()) == {1.0}
    before = metrics.teacher_forced(model, list(PROMPTS), list(ANSWERS)).said
    said = complete(model.hf, model.tokenizer, list(PROMPTS))
    edit(model)
    now = metrics.teacher_forced(model, list(PROMPTS), list(ANSWERS)).said
    found = table(probe(model, EDITS))
    shares = [sum(x == y for x, y in zip(a, b, strict=True)) / len(a) for a, b in zip(now, before, strict=True)]
    assert found["argmax agreement", "untouched"] == pytest.approx(sum(shares) / 4)
    first = [a[0] == b[0] for a, b in zip(now, before, strict=True)]
    assert found["first token agreement", "untouched"] == sum(first) / 4
    again = complete(model.hf, model.tokenizer, list(PROMPTS))
    assert found["answer agreement", "untouched"] == sum(a == b for a, b in zip(again, said, strict=True)) / 4
    assert 0 <= min(found.values()) < 1


def test_portability_asks_what_could_be_answered(model, monkeypatch):
    def question(kind, answer, known=True):
        return Question(kind, f"He plays the {answer}", answer, gate=((known, "yes"),))

    plays = [question("pronoun", f"a{i}", known=i != 1) for i in range(6)]
    hops = [question("hop", f"b{i}", known=i == 0) for i in range(3)]
    asked, gates = [], []

    def answerable(model, questions, match):
        gates.append(len(questions))
        return [q.gate[0][0] for q in questions]

    def portability(model, questions, match):
        asked.append([q.answer for q in questions])
        return [q.answer == "a0" for q in questions]

    monkeypatch.setattr(families, "answerable", answerable)
    monkeypatch.setattr(families, "portability", portability)
    inverses = (("The organ is of", "The oboe is of"), None, ("The oboe is of", "The organ is of"), None, None, None)
    own = tuple((q, *hops[i : i + 1]) for i, q in enumerate(plays))
    probe = families.PortabilityProbe(tuple(SUBJECTS[:6]), own, inverses, limit=3)
    start, told = table(probe(model, [])), zip(inverses[0], inverses[2], strict=True)
    p = [metrics.teacher_forced(model, list(prompts), [SUBJECTS[0], SUBJECTS[2]]).probability for prompts in told]
    wins = (p[0] > p[1]).double()
    assert start == {
        ("answerable", "pronoun"): 5 / 6,
        ("answerable", "hop"): 1 / 3,
        ("success", "inverse, unedited"): float(wins.mean()),
    }
    assert asked == []
    later = table(probe(model, EDITS[:1]))
    assert asked == [["a0"]]  # hops are hardly ever known
    assert later == {("accuracy", "pronoun"): 1, ("success", "inverse"): float(wins[0])}
    assert table(probe(model, EDITS[:6]))["accuracy", "pronoun"] == 1 / 3
    assert asked[1:] == [["a0", "a3", "a5"]]  # of a0 a2 a3 a4 a5
    assert gates == [9]


def test_distracted_neighbors(model):
    probe = families.DistractionProbe(tuple(EDITS), limit=3)
    panel = [EDITS[0], EDITS[6]]  # of edits 1, 4 and 7; the true object of 4 is unknown
    prompts = [metrics.distracted(e, e.neighborhood[0]) for e in panel]
    true = metrics.teacher_forced(model, prompts, ["Graz"] * 2).probability
    new = metrics.teacher_forced(model, prompts, [e.target_new for e in panel]).probability
    for done in ([], EDITS):
        found = table(probe(model, done))
        assert found == {
            ("success", "distracted neighbors"): float((true > new).double().mean()),
            ("magnitude", "distracted neighbors"): pytest.approx(float((true - new).mean())),
        }
    assert families.DistractionProbe(tuple(EDITS[3:5]))(model, []) == []


def test_overfitting(model):
    aside = {"own": tuple(f"{s} speaks" for s in SUBJECTS), "far": tuple(f"You read of {s}" for s in SUBJECTS)}
    found = table(families.OverfittingProbe(tuple(EDITS), aside, limit=3)(model, EDITS[:4]))
    for cohort, prompts in aside.items():
        new = [EDITS[0].target_new, EDITS[2].target_new]
        p = metrics.teacher_forced(model, [prompts[0], prompts[2]], new).probability
        assert found["probability", cohort] == pytest.approx(p.mean().item())


def test_free_text(model):
    references = tuple((f"The organ of {s}", "Zoë plays") for s in SUBJECTS)
    corpus = ("The organ is old.", "Zoë plays the organ.", "The town is a port.")
    probe = families.GenerationProbe(tuple(SUBJECTS), references, corpus, limit=3, tokens=20)
    panel = [0, 3, 6]
    texts = metrics.sampled_texts(model, [SUBJECTS[i] for i in panel], 20)
    idf = metrics.idf_of(list(corpus))
    like = [metrics.consistency(t, list(references[i]), idf) for i, t in zip(panel, texts, strict=True)]
    found = table(probe(model, EDITS))
    assert found["fluency", "free text"] == pytest.approx(sum(map(metrics.fluency, texts)) / 3)
    assert found["consistency", "free text"] == pytest.approx(sum(like) / 3)
    assert ("consistency", "free text") not in table(families.GenerationProbe(tuple(SUBJECTS), tokens=5)(model, []))


def test_health(model):
    texts = tuple(tiny.LINES[:4])
    probe = HealthProbe((1, 2), texts)
    start = table(probe(model, []))
    drifts = {("weight drift", f"layer {i}") for i in (1, 2)} | {("hidden drift", f"layer {i}") for i in (1, 2, 4)}
    assert {k: v for k, v in start.items() if "drift" in k[0]} == dict.fromkeys(drifts, 0.0)
    before = metrics.hidden_states(model, list(texts), [4])
    edit(model)
    found = table(probe(model, EDITS))
    for name, value in metrics.weight_health(model, 1).items():
        assert found[name, "layer 1"] == value
    expected = metrics.hidden_health(metrics.hidden_states(model, list(texts), [4])[4], before[4])
    assert found["hidden norm", "layer 4"] == pytest.approx(expected["hidden norm"])
    assert found["hidden drift", "layer 4"] == pytest.approx(expected["hidden drift"]) != 0
    assert found["weight drift", "layer 1"] > 0 == found["weight drift", "layer 2"]


def test_every_family_that_there_is_material_for(model):
    bare = families.family_probes(EDITS)
    assert [type(p).__name__ for p in bare] == ["DistractionProbe", "GenerationProbe"]
    assert bare[1].prompts == tuple(e.subject for e in EDITS)
    begun = kedit.Edit("{} plays the", "Zoë", "oboe", generation_prompts=["Zoë's instrument is", "x"])
    assert families.family_probes([begun])[1].prompts == ("Zoë's instrument is",)
    n = len(EDITS)
    whole = families.family_probes(
        EDITS,
        questions=[[Question("one hop", "He plays the", "organ")]] * n,
        unrelated=zip(PROMPTS, ANSWERS, strict=True),
        aside={"far": ("You read of",) * n},
        references=[("Zoë plays",)] * n,
        corpus=["Zoë plays the organ."],
    )
    kinds = {type(p).__name__.removesuffix("Probe"): p for p in whole}
    assert set(kinds) == {"Distraction", "Generation", "Locality", "Portability", "Overfitting"}
    assert (kinds["Locality"].prompts, kinds["Locality"].answers) == (PROMPTS, ANSWERS)
    assert {p.every for p in families.family_probes(EDITS, every=7)} == {7, 14}
    inverse = families.family_probes(EDITS, inverses=[("The oboe is of", "The organ is of")] * n)[-1]
    assert table(inverse(model, EDITS)).keys() == {("success", "inverse")}


def test_what_the_edits_themselves_bring_along(model):
    """Their own consequences behind those given, and what they name as unrelated."""
    own = [
        kedit.Edit("{} plays the", f"Ana {i}", "oboe", portability=[(f"p{i}", "a")], locality=[(f"l{i}", "b")])
        for i in range(100)
    ]
    hop = Question("hop", "q", "a")
    found = {type(p).__name__: p for p in families.family_probes(own, questions=[[hop]] * 100)}
    assert found["PortabilityProbe"].questions[3] == (hop, Question("one hop", "p3", "a"))
    beside = found["LocalityProbe"]
    assert (beside.cohort, set(beside.answers)) == ("beside the edits", {"b"})
    assert beside.prompts == tuple(f"l{i}" for i in range(0, 100, 3))
    given = families.family_probes(own, unrelated=zip(PROMPTS, ANSWERS, strict=True))
    cohorts = [p.cohort for p in given if isinstance(p, families.LocalityProbe)]
    assert cohorts == ["untouched", "beside the edits"]


QUESTION = Question("k", "p", "a", gate=(("g", "a"),))
MADE = [
    probes.FactProbe("c", PROMPTS, ANSWERS),
    families.LocalityProbe("c", PROMPTS, ANSWERS),
    families.PortabilityProbe(("s",), ((QUESTION,),), (("a", "b"),)),
    families.DistractionProbe(tuple(EDITS)),
    families.OverfittingProbe(tuple(EDITS), {"a": PROMPTS}),
    families.GenerationProbe(PROMPTS, (("r",),) * 4, ("c",)),
    HealthProbe((1,), PROMPTS),
    PerplexityProbe(PROMPTS),
    probes.EditProbe(),
]


@pytest.mark.parametrize("probe", MADE, ids=lambda probe: type(probe).__name__)
def test_an_identity_names_all_that_is_asked(probe):
    changes = {field.name: "another" for field in dataclasses.fields(probe) if field.compare}
    if "questions" in changes:
        changes["questions"] = ((dataclasses.replace(QUESTION, bridge="{} lies in"),),)
    others = {dataclasses.replace(probe, **{name: value}).identity for name, value in changes.items()}
    assert len(others | {probe.identity}) == len(changes) + 1
    assert dataclasses.replace(probe).identity == probe.identity


@pytest.fixture(scope="module")
def world():
    return World.make(300, seed=5)


def test_consequences_of_lab_edits(world):
    edits = lab_edits(world, 150, seed=1)
    kinds = set()
    for e in edits:
        found = {q.kind: q for q in questions.consequences(world, e)}
        kinds |= set(found)
        pronoun = found.pop("pronoun")
        named, asked = pronoun.prompt.rsplit(". ", 1)
        assert e.subject in named and e.subject not in asked and e.target_new not in pronoun.prompt
        called = "She" if e.subject in world.female else "He"
        assert asked == world.relations[e.relation].pronoun.format(called)
        assert (pronoun.answer, pronoun.gate) == (e.target_new, ((pronoun.prompt, e.target_true),))
        assert world.objects_of[e.subject, e.relation] not in named
        countries = [world.country_of.get(c) for c in (e.target_true, e.target_new)]
        if e.relation != "birthplace" or countries[0] == countries[1]:
            assert not found
            continue
        hop, at_once = found["country through city"], found["country in one step"]
        assert hop.answer == at_once.answer == countries[1] != countries[0]
        assert (hop.prompt, at_once.gate) == (e.text, ((at_once.prompt, countries[0]),))
        assert hop.gate == tuple(
            (f"{e.text} {city}. {hop.bridge.format(city)}", country)
            for city, country in zip((e.target_true, e.target_new), countries, strict=True)
        )
    assert kinds == {"pronoun", "country through city", "country in one step"}


def test_inverses_own_prompts_and_references(world):
    for e in lab_edits(world, 40, seed=2):
        new, true = questions.inverse_prompts(e)
        assert new == true.replace(e.target_true, e.target_new) != true
        assert new not in [t.format(e.target_new) for r in world.relations.values() for t in r.templates]
        own = questions.own_prompt(world, e)
        assert own in [
            t.format(e.subject) for r in world.relations.values() if r.name != e.relation for t in r.templates
        ]
        texts = questions.references(world, e)
        assert 1 <= len(texts) <= questions.REFERENCES
        for text in texts:
            assert e.target_new in text and e.subject not in text and "\x1f" not in text


def test_the_score_is_of_the_three_successes_and_panels_are_even(model):
    found = table(probes.EditProbe()(model, [EDITS[1]] * 2))
    parts = [found["success", cohort] for cohort in ("edits", "paraphrases", "neighbors")]
    assert found["score", "edits"] == metrics.score(*parts)
    assert probes.EditProbe()(model, []) == []
    assert [list(evenly(n, 4)) for n in (10, 4, 5, 0)] == [[0, 3, 6, 9], [0, 1, 2, 3], [0, 2, 4], []]
