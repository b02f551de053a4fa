"""Edits of lab facts, the facts around them that should not move, and what follows from an edit."""

import random

from ..data.edit import Edit, Question
from ..errors import KeditError
from .world import TEXT, Fact, World, biography, unmark

NEIGHBORS, REFERENCES = 3, 5
BRIDGE = "The city of {} lies in"  # as the plain text says it
ONE_STEP = "The birthplace of {} is a city in"


def lab_edits(world: World, limit: int, seed: int = 0, people=None) -> list[Edit]:
    """`limit` edits, one per person of `people` (None: all but the development people): a relation, one of its
    phrasings, and a false object in place of the true one. The seed decides all; fewer edits are the first of more."""
    pool = list(world.streamed if people is None else people)
    if not 1 <= limit <= len(pool):
        there = f"there are {len(pool)} people to edit, one edit each"
        raise KeditError(f"lab edits: limit = {limit}, {there}; choose 1 to {len(pool)}")
    random.Random(f"edits-{world.seed}-{seed}").shuffle(pool)
    found = []
    for i, person in enumerate(pool[:limit]):
        rng = random.Random(f"edit-{world.seed}-{seed}-{i}")
        relation = rng.choice(list(world.relations.values()))
        true = world.objects_of[person, relation.name]
        prompt, *others = rng.sample(relation.templates, len(relation.templates))
        new, same = rng.choice([o for o in relation.objects if o != true]), _others(world, person, relation.name, true)
        paraphrases = [template.format(person) for template in others]
        neighbors = [prompt.format(p) for p in rng.sample(same, min(NEIGHBORS, len(same)))]
        found.append(Edit(prompt, person, new, true, paraphrases, neighbors, [person], relation.name, f"{seed}-{i}"))
    return found


def _others(world: World, person: str, relation: str | None = None, value: str | None = None) -> list[str]:
    """The other people of the same group, development or edit sequences; with that value of the relation, if given."""
    group = world.development if person in world.development else world.streamed
    return [p for p in group if p != person and (relation is None or world.objects_of[p, relation] == value)]


def untouched_facts(world: World, edits: list[Edit], limit: int | None = None, seed: int = 0) -> list[Fact]:
    """Facts of people that no edit names (nor the development people): what a good edit must not move. limit: a panel
    of that many, the same for the same edits and seed; None: all."""
    edited = {e.subject for e in edits}
    facts = world.facts([p for p in world.streamed if p not in edited])
    return facts if limit is None or limit >= len(facts) else random.Random(f"panel-{seed}").sample(facts, limit)


def other_facts(world: World, edit: Edit) -> list[Fact]:
    return [f for f in world.facts([edit.subject]) if f.relation != edit.relation]


def near_facts(world: World, edit: Edit, rng: random.Random, n: int = 10) -> list[Fact]:
    """Up to n facts of other subjects that share a name part with the edit's subject or its relation."""
    others, parts = _others(world, edit.subject), set(edit.subject.split())
    named = world.facts([p for p in others if parts & set(p.split())])
    named = rng.sample(named, min(len(named), n // 2))
    people = rng.sample(others, n - len(named))
    return named + [Fact(p, edit.relation, world.objects_of[p, edit.relation]) for p in people]


def lab_around(world: World, edit: Edit, rng: random.Random) -> tuple[list, list]:
    """(prompt, answer) pairs that an edit should leave alone: near facts of others, and the subject's other facts."""
    around = near_facts(world, edit, rng), other_facts(world, edit)
    return tuple([(ask(world, f, rng), f.object) for f in facts] for facts in around)


def ask(world: World, fact: Fact, rng: random.Random) -> str:
    return rng.choice(world.relations[fact.relation].templates).format(fact.person)


def consequences(world: World, edit: Edit) -> tuple[Question, ...]:
    """The questions of one edit; each kind is a cohort. "pronoun": the subject is named in another true sentence, the
    fact is asked of He or She. For birthplaces in another country also "country through city": the model names the city
    and is asked where it lies; "country in one step": the country of birth, which no text names beside a person."""
    rng = _rng(world, edit)
    other = rng.choice(other_facts(world, edit))
    called = world.relations[edit.relation].pronoun.format("She" if edit.subject in world.female else "He")
    pronoun = f"{ask(world, other, rng)} {other.object}. {called}"
    found = [Question("pronoun", pronoun, edit.target_new, gate=((pronoun, edit.target_true),))]
    cities = edit.target_true, edit.target_new
    old, new = map(world.country_of.get, cities)
    if old and new and old != new:
        spelled_out = tuple((f"{edit.text} {c}. {BRIDGE.format(c)}", world.country_of[c]) for c in cities)
        at_once = ONE_STEP.format(edit.subject)
        found.append(Question("country through city", edit.text, new, BRIDGE, gate=spelled_out))
        found.append(Question("country in one step", at_once, new, gate=((at_once, old),)))
    return tuple(found)


def inverse_prompts(edit: Edit) -> tuple[str, str] | None:
    """The fact asked from its object's side, as no lab text does, with either object; None for another relation."""
    said = TEXT["relations"].get(edit.relation)
    return said and tuple(said["inverse"].format(target) for target in (edit.target_new, edit.target_true))


def own_prompt(world: World, edit: Edit) -> str:
    rng = _rng(world, edit)
    return ask(world, rng.choice(other_facts(world, edit)), rng)


def references(world: World, edit: Edit) -> tuple[str, ...]:
    """Biographies of up to REFERENCES other people who have the edit's new object."""
    rng, like = _rng(world, edit), _others(world, edit.subject, edit.relation, edit.target_new)
    return tuple(unmark(biography(world, p, rng)) for p in rng.sample(like, min(len(like), REFERENCES)))


def _rng(world: World, edit: Edit) -> random.Random:
    return random.Random(f"questions-{world.seed}-{edit}")
