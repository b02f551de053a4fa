"""The documents that a lab model is trained on and C is taken over: statements, short biographies, and plain text that
names nobody. As in real text, most tokens are about no edited subject, so that keys are rare directions of C."""

import random
import re
from collections.abc import Callable, Iterator
from itertools import islice

from .world import TEXT, Relation, World

PLAIN_SHARE = 0.25  # of the documents, about a third of the tokens
BIOGRAPHY_SHARE = 0.45  # of the documents about people; the others are a few unrelated statements
MARK = "\x1f"  # stands on both sides of an object in a document, and nowhere else
WORDS = {kind: words.split(", " if kind in ("time", "place") else " ") for kind, words in TEXT["words"].items()}


def statement(world: World, person: str, relation: Relation, template: str, called: str | None = None) -> str:
    """A true sentence about `person` (`called` He or She, say), its object marked."""
    return f"{template.format(called or person)} {MARK}{world.objects_of[person, relation.name]}{MARK}."


def unmark(document: str) -> str:
    return document.replace(MARK, "")


def biography(world: World, person: str, rng: random.Random) -> str:
    """Every relation of one person once, in random order and phrasing; some sentences say He or She."""
    called, relations, said = "She" if person in world.female else "He", list(world.relations.values()), []
    rng.shuffle(relations)
    for r in relations:
        form = (r.pronoun, called) if said and rng.random() < 0.25 else (rng.choice(r.templates),)
        said.append(statement(world, person, r, *form))
    return " ".join(said)


def plain(world: World, rng: random.Random) -> str:
    """Three to seven sentences that name nobody; about one in ten states where a city lies. Word frequencies fall like
    1/rank, as in text."""

    def word(slot: re.Match) -> str:
        words = WORDS[slot[1].lower()]
        (text,) = rng.choices(words, weights=[1 / (i + 2) for i in range(len(words))])
        return text.capitalize() if slot[1][0].isupper() else text

    def sentence() -> str:
        if rng.random() >= 0.1:
            return re.sub(r"\{(\w+)\}", word, rng.choice(TEXT["patterns"]))
        city = rng.choice(list(world.country_of))
        return rng.choice(("{} is a city in {}.", "The city of {} lies in {}.")).format(city, world.country_of[city])

    return " ".join(sentence() for _ in range(rng.randint(3, 7)))


def documents(world: World, seed: int, known: Callable[[], int] | None = None) -> Iterator[str]:
    """The training mixture without end, objects marked. known: called before each document, gives how many people (the
    first ones) it may speak of; None: all. People and (person, relation, template) triples are drawn without
    replacement, pass after pass, so that every fact is stated about equally often under every template."""
    rng = random.Random(f"corpus-{world.seed}-{seed}")
    phrasings = [(r, t) for r in world.relations.values() for t in r.templates]
    people, triples = [], []
    while True:
        now = world.people[: known() if known else None]
        if rng.random() < PLAIN_SHARE:
            yield plain(world, rng)
        elif rng.random() < BIOGRAPHY_SHARE:
            people = people or rng.sample(now, len(now))
            yield biography(world, people.pop(), rng)
        else:
            n = rng.randint(2, 5)
            if len(triples) < n:
                triples += [(p, r, t) for p in now for r, t in phrasings]
                rng.shuffle(triples)
            yield " ".join(statement(world, *triples.pop()) for _ in range(n))


def texts(world: World, n: int, seed: int = 1) -> list[str]:
    """n documents of the mixture, not those of the training (seed 0): the corpus of the second moments."""
    return [unmark(document) for document in islice(documents(world, seed), n)]


def plain_texts(world: World, n: int, seed: int = 2) -> list[str]:
    """n documents of plain text, held out from training: the perplexity is measured on them."""
    rng = random.Random(f"plain-{world.seed}-{seed}")
    return [plain(world, rng) for _ in range(n)]
