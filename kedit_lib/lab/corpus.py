"""Documents about the world: statements, short biographies, and plain text.

Each document is one string; the training recipe and the second moments both read them from here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from .plain import sentence
from .world import Relation, World

PLAIN_SHARE = 0.3  # of the documents, about 0.35 of the tokens
BIOGRAPHY_SHARE = 0.45  # of the documents about people; the others are a few unrelated statements


MARK = "\x1f"  # stands on both sides of an object in a document, and nowhere else


def statement(world: World, person: str, relation: Relation, template: str, called: str | None = None) -> str:
    """A true sentence about `person` (`called` He or She, say), its object marked."""
    return f"{template.format(called or person)} {MARK}{world.objects_of[person, relation.name]}{MARK}."


def unmark(document: str) -> tuple[str, list[tuple[int, int]]]:
    """The plain text of a document, and where in it the objects stand."""
    pieces = document.split(MARK)
    spans, at = [], 0
    for i, piece in enumerate(pieces):
        if i % 2:
            spans.append((at, at + len(piece)))
        at += len(piece)
    return "".join(pieces), spans


def biography(world: World, person: str, rng: random.Random) -> str:
    """Every relation of one person once, in random order and phrasing; some sentences say He or She."""
    pronoun = "She" if person in world.female else "He"
    relations = list(world.relations.values())
    rng.shuffle(relations)
    out = []
    for i, r in enumerate(relations):
        if i and rng.random() < 0.25:
            out.append(statement(world, person, r, r.pronoun, pronoun))
        else:
            out.append(statement(world, person, r, rng.choice(r.templates)))
    return " ".join(out)


def plain(world: World, rng: random.Random) -> str:
    """Three to seven sentences that name nobody."""
    return " ".join(sentence(rng, world.country_of) for _ in range(rng.randint(3, 7)))


def documents(world: World, seed: int, n_people: int | None = None) -> Iterator[str]:
    """An endless seeded stream of the training mixture about the first `n_people` (None: everyone), objects marked.

    People and (person, relation, template) triples are visited without replacement, pass after
    pass, so that every fact is stated about equally often under every template.
    """
    rng = random.Random(f"corpus-{world.seed}-{seed}-{n_people}")
    people = _forever(list(world.people[:n_people]), rng)
    triples = _forever(
        [(p, r.name, t) for p in world.people[:n_people] for r in world.relations.values() for t in r.templates], rng
    )
    while True:
        if rng.random() < PLAIN_SHARE:
            yield plain(world, rng)
        elif rng.random() < BIOGRAPHY_SHARE:
            yield biography(world, next(people), rng)
        else:
            said = [next(triples) for _ in range(rng.randint(2, 5))]
            yield " ".join(statement(world, p, world.relations[r], t) for p, r, t in said)


def texts(world: World, n: int, seed: int = 1) -> list[str]:
    """n documents of the mixture, not those of the training seed 0: the corpus of the second moments."""
    stream = documents(world, seed)
    return [unmark(next(stream))[0] for _ in range(n)]


def plain_texts(world: World, n: int, seed: int = 2) -> list[str]:
    """n documents of plain text, held out from training: the perplexity is measured on them."""
    rng = random.Random(f"plain-{world.seed}-{seed}")
    return [plain(world, rng) for _ in range(n)]


def _forever(items: list, rng: random.Random) -> Iterator:
    while True:
        rng.shuffle(items)
        yield from items
