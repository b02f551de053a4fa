"""Edits of lab facts, and the facts around them that should not move."""

from __future__ import annotations

import random
from dataclasses import replace

from ..data.edit import Edit
from ..errors import KeditError
from .world import Fact, World

NEIGHBORS = 3


def lab_edits(world: World, limit: int, seed: int = 0, people=None) -> list[Edit]:
    """`limit` edits, one per person: a relation, one of its phrasings, and a false object in place of the true one.

    The seed decides the sample of people, their order and everything else about the edits; fewer edits of one seed are
    the first of more. `people`: draw from these (None: all but the development people).
    """
    pool = list(world.streamed if people is None else people)
    if not 1 <= limit <= len(pool):
        raise KeditError(
            f"lab edits: limit = {limit}, there are {len(pool)} people to edit, one edit each; choose 1 to {len(pool)}"
        )
    random.Random(f"edits-{world.seed}-{seed}").shuffle(pool)
    others = {p: side for side in (world.development, world.streamed) for p in side}
    return [_edit(world, person, others[person], f"{seed}-{i}") for i, person in enumerate(pool[:limit])]


def _edit(world: World, person: str, side: list[str], name: str) -> Edit:
    rng = random.Random(f"edit-{world.seed}-{name}")
    relation = rng.choice(list(world.relations.values()))
    true = world.objects_of[person, relation.name]
    prompt, *others = rng.sample(relation.templates, len(relation.templates))
    same = [p for p in side if p != person and world.objects_of[p, relation.name] == true]
    return Edit(
        prompt=prompt,
        subject=person,
        target_new=rng.choice([o for o in relation.objects if o != true]),
        target_true=true,
        paraphrases=[t.format(person) for t in others],
        neighborhood=[prompt.format(p) for p in rng.sample(same, min(NEIGHBORS, len(same)))],
        generation_prompts=[person],
        relation=relation.name,
        id=name,
    )


def surround(world: World, edit: Edit) -> Edit:
    """The edit with what the world knows around it: the true object, the other phrasings, neighbors. Unchanged where
    the world does not know its subject, or the prompt is no phrasing of a relation."""
    relation = next((r for r in world.relations.values() if edit.prompt in r.templates), None)
    if relation is None or (edit.subject, relation.name) not in world.objects_of:
        return edit
    true = world.objects_of[edit.subject, relation.name]
    same = [p for p in others_of(world, edit.subject) if world.objects_of[p, relation.name] == true]
    return replace(
        edit,
        target_true=true,
        paraphrases=tuple(t.format(edit.subject) for t in relation.templates if t != edit.prompt),
        neighborhood=tuple(edit.prompt.format(p) for p in same[:NEIGHBORS]),
        relation=relation.name,
    )


def others_of(world: World, person: str) -> list[str]:
    """The other people of the same group: development people, or those of the edit sequences."""
    return [p for p in (world.development if person in world.development else world.streamed) if p != person]


def untouched_facts(world: World, edits: list[Edit], limit: int | None = None, seed: int = 0) -> list[Fact]:
    """Facts of people that no edit names (nor the development people): what a good edit must not move.

    `limit`: a panel of that many, the same for the same edits and seed; None: all.
    """
    edited = {e.subject for e in edits}
    facts = world.facts([p for p in world.streamed if p not in edited])
    if limit is None or limit >= len(facts):
        return facts
    return random.Random(f"panel-{seed}").sample(facts, limit)


def other_facts(world: World, edit: Edit) -> list[Fact]:
    """The same subject's other relations (not edited)."""
    return [f for f in world.facts([edit.subject]) if f.relation != edit.relation]


def near_facts(world: World, edit: Edit, rng: random.Random, n: int = 10) -> list[Fact]:
    """Up to n facts of other subjects that share a name part with the edit's subject or its relation."""
    others, parts = others_of(world, edit.subject), set(edit.subject.split())
    named = world.facts([p for p in others if parts & set(p.split())])
    named = rng.sample(named, min(len(named), n // 2))
    people = rng.sample(others, n - len(named))
    return named + [Fact(p, edit.relation, world.objects_of[p, edit.relation]) for p in people]


def lab_around(world: World, edit: Edit, rng: random.Random) -> tuple[list, list]:
    """(prompt, answer) pairs that an edit should leave alone: near facts of others, and the subject's other facts."""
    near, own = near_facts(world, edit, rng), other_facts(world, edit)
    return tuple([(ask(world, f, rng), f.object) for f in facts] for facts in (near, own))


def ask(world: World, fact: Fact, rng: random.Random) -> str:
    """The fact's prompt under one of its phrasings."""
    return rng.choice(world.relations[fact.relation].templates).format(fact.person)
