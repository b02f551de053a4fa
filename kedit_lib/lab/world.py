"""The lab's world of invented people, in which every true fact is known (words and phrasings: world.yaml), and the
documents that a lab model is trained on and C is taken over: statements, short biographies, and plain text that names
nobody. As in real text, most tokens are about no edited subject, so that keys are rare directions of C."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Self

from ..data.config import read_yaml
from ..errors import KeditError, check_editable, explained

TEXT = read_yaml(Path(__file__).with_name("world.yaml"))
ONSETS, VOWELS, CODAS = (TEXT[part].split() for part in ("onsets", "vowels", "codas"))
DEVELOPMENT = 100  # people whom layers are chosen on, at least
N_COUNTRIES, CITIES_EACH, N_LANGUAGES = 10, 4, 16
PLAIN_SHARE = 0.25  # of the documents, about a third of the tokens
BIOGRAPHY_SHARE = 0.45  # of the documents about people; the others are a few unrelated statements
MARK = "\x1f"  # stands on both sides of an object in a document, and nowhere else
WORDS = {kind: words.split(", " if kind in ("time", "place") else " ") for kind, words in TEXT["words"].items()}
MOMENT_TEXTS = 2000  # documents, about 100,000 tokens: a hundred times d_ff


@dataclass(frozen=True)
class Relation:
    """A property of people. `templates` hold one {} for the person; the object follows after a space, then a stop."""

    name: str
    objects: tuple[str, ...]
    templates: tuple[str, ...]
    pronoun: str  # the same statement when the person was just named; {} is He or She


@dataclass(frozen=True)
class Fact:
    """`template.format(person) + " " + object` is true for every template of the relation."""

    person: str
    relation: str
    object: str


@dataclass(frozen=True)
class World:
    seed: int
    people: tuple[str, ...]
    female: frozenset[str]
    relations: dict[str, Relation]
    objects_of: dict[tuple[str, str], str]  # (person, relation) -> object
    country_of: dict[str, str]  # city -> country
    names: tuple[tuple[str, ...], tuple[str, ...]] = field(repr=False)  # first names, last names

    @cached_property
    def development(self) -> tuple[str, ...]:
        """People on whose facts layers are chosen, and whom no edit sequence edits or asks about: all whose both names
        are among a few drawn ones. They share names, and were learnt neither early nor late."""
        rng, enough = random.Random(f"development-{self.seed}"), min(DEVELOPMENT, len(self.people) // 2)
        first, last = (rng.sample(names, len(names)) for names in self.names)
        drawn = ({f"{a} {b}" for a in first[:k] for b in last[:k]} for k in range(1, len(first) + 1))
        groups = (tuple(p for p in self.people if p in names) for names in drawn)
        return next(group for group in groups if len(group) >= enough)

    @cached_property
    def streamed(self) -> tuple[str, ...]:
        """All other people: those of the edit sequences."""
        return tuple(p for p in self.people if p not in self.development)

    def facts(self, people=None) -> list[Fact]:
        """All facts of `people` (None: everyone), person by person."""
        people = self.people if people is None else people
        return [Fact(p, name, self.objects_of[p, name]) for p in people for name in self.relations]

    @classmethod
    def make(cls, n_people: int = 1500, seed: int = 0, sharing: float | None = None) -> Self:
        """Draw a world of at least 10 people; the same arguments give the same world. sharing: how many people share a
        name part on average, ≥ 1; None: √(n_people/3), 26 for 2,000 people."""
        rng = random.Random(f"world-{seed}")
        used: set[str] = set()

        def invent(syllables: int, endings: str = "") -> str:
            ending = rng.choice(endings.split()) if endings else ""
            while True:
                word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
                word = (word + (ending or rng.choice(CODAS))).capitalize()
                if word not in used:
                    used.add(word)
                    return word

        countries = [invent(1, "nia land stan") for _ in range(N_COUNTRIES)]
        cities = [invent(rng.choice((1, 2)), "burg ton port ville mouth") for _ in range(N_COUNTRIES * CITIES_EACH)]
        languages = [invent(1, "ish ese ian") for _ in range(N_LANGUAGES)]
        # Several people share each name part, so that a person is only known by the pair.
        parts = max(8, round(n_people / sharing if sharing else (3 * n_people) ** 0.5))
        first = tuple(invent(rng.choice((1, 1, 2))) for _ in range(parts))
        last = tuple(invent(rng.choice((1, 2, 2))) for _ in range(parts))
        pairs = rng.sample([(i, j) for i in range(parts) for j in range(parts)], n_people)
        # Any number of the first people share their names among themselves as all of them do.
        people = tuple(f"{first[i]} {last[j]}" for i, j in sorted(pairs, key=max))
        objects = {name: TEXT[f"{name}s"].split() for name in ("profession", "instrument", "sport")}
        objects |= {"birthplace": cities, "language": languages}
        relations = {
            name: Relation(name, tuple(objects[name]), tuple(said["templates"]), said["pronoun"])
            for name, said in TEXT["relations"].items()
        }
        objects_of = {(person, name): rng.choice(r.objects) for person in people for name, r in relations.items()}
        female_first = set(rng.sample(first, len(first) // 2))
        female = frozenset(p for p in people if p.split()[0] in female_first)
        country_of = {city: countries[i // CITIES_EACH] for i, city in enumerate(cities)}
        return cls(seed, people, female, relations, objects_of, country_of, (first, last))


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
    """Three to seven sentences that name nobody, one in ten on where a city lies. Word frequencies fall like 1/rank."""

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


def world_of(model) -> World:
    """The world a lab model was trained on, from the provenance beside its weights; KeditError for any other model."""
    check_editable(model, "the lab's world")
    path = model.folder / "provenance.json" if model.folder else None
    if path is None or not path.exists():
        remedy = "give edits and texts of its own, or use lab or lab-small"
        raise KeditError(f"{model.name}: is not a lab model (no provenance.json beside its weights); {remedy}")
    with explained(f"{path}: cannot be read", "train or fetch the model again"):
        recipe = json.loads(path.read_text())["recipe"]
        return World.make(recipe["n_people"], recipe["seed"], recipe.get("sharing"))


def moment_texts(model) -> list[str]:
    """The lab's own text mixture for C (seed 1, not the training's documents)."""
    return texts(world_of(model), MOMENT_TEXTS)
