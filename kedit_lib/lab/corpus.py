"""Documents about the world: statements, short biographies, and plain text.

The training recipe and the second moments both read them from here. Plain text names nobody and plays the part of the
rest of the web: most tokens are about no subject that is edited, so the keys of subjects are rare directions of C, as
they are in real text. Its grammar is in world.yaml.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from .world import TEXT, Relation, World

PLAIN_SHARE = 0.25  # of the documents, about a third of the tokens
BIOGRAPHY_SHARE = 0.45  # of the documents about people; the others are a few unrelated statements
MARK = "\x1f"  # stands on both sides of an object in a document, and nowhere else
NAME = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+")
WORDS = {kind: words.split(", " if kind in ("time", "place") else " ") for kind, words in TEXT["words"].items()}


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


def mentions(world: World, text: str) -> list[tuple[int, int]]:
    """Where the full names of people stand in a text."""
    return [m.span() for m in NAME.finditer(text) if (m[0], "sport") in world.objects_of]


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
    return " ".join(_sentence(rng, world.country_of) for _ in range(rng.randint(3, 7)))


def _sentence(rng: random.Random, country_of: dict[str, str]) -> str:
    """One sentence; about one in ten states where a city lies. Word frequencies fall like 1/rank, as in text."""
    if rng.random() < 0.1:
        city = rng.choice(list(country_of))
        return rng.choice(("{} is a city in {}.", "The city of {} lies in {}.")).format(city, country_of[city])

    def word(slot: re.Match) -> str:
        words = WORDS[slot[1].lower()]
        (text,) = rng.choices(words, weights=[1 / (i + 2) for i in range(len(words))])
        return text.capitalize() if slot[1][0].isupper() else text

    return re.sub(r"\{(\w+)\}", word, rng.choice(TEXT["patterns"]))


def documents(world: World, seed: int, known: Callable[[], int] | None = None) -> Iterator[str]:
    """The training mixture without end, seeded, objects marked.

    `known`: asked before each document how many people (the first ones) the corpus speaks of so far; None: everyone.
    People and (person, relation, template) triples are visited without replacement, pass after pass, so that every
    fact is stated about equally often under every template.
    """
    rng = random.Random(f"corpus-{world.seed}-{seed}")
    phrasings = [(r, t) for r in world.relations.values() for t in r.templates]
    people: list[str] = []
    triples: list[tuple] = []
    while True:
        now = world.people[: known() if known else None]
        if rng.random() < PLAIN_SHARE:
            yield plain(world, rng)
        elif rng.random() < BIOGRAPHY_SHARE:
            if not people:
                people = rng.sample(now, len(now))
            yield biography(world, people.pop(), rng)
        else:
            n = rng.randint(2, 5)
            if len(triples) < n:
                triples += [(p, r, t) for p in now for r, t in phrasings]
                rng.shuffle(triples)
            yield " ".join(statement(world, *triples.pop()) for _ in range(n))


def texts(world: World, n: int, seed: int = 1) -> list[str]:
    """n documents of the mixture, not those of the training (seed 0): the corpus of the second moments."""
    stream = documents(world, seed)
    return [unmark(next(stream))[0] for _ in range(n)]


def plain_texts(world: World, n: int, seed: int = 2) -> list[str]:
    """n documents of plain text, held out from training: the perplexity is measured on them."""
    rng = random.Random(f"plain-{world.seed}-{seed}")
    return [plain(world, rng) for _ in range(n)]
