"""The lab's ground truth: invented people, their facts and the phrasings of each, whose words are in world.yaml."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..data.config import read_yaml

TEXT = read_yaml(Path(__file__).with_name("world.yaml"))
ONSETS, VOWELS, CODAS = (TEXT[part].split() for part in ("onsets", "vowels", "codas"))
DEVELOPMENT = 100  # people whom layers are chosen on, at least
N_COUNTRIES, CITIES_PER_COUNTRY, N_LANGUAGES = 10, 4, 16


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
        development = set(self.development)
        return tuple(p for p in self.people if p not in development)

    def facts(self, people=None) -> list[Fact]:
        """All facts of `people` (None: everyone), person by person."""
        people = self.people if people is None else people
        return [Fact(p, name, self.objects_of[p, name]) for p in people for name in self.relations]

    @classmethod
    def make(cls, n_people: int = 1500, seed: int = 0, sharing: float | None = None) -> World:
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

        n_cities = N_COUNTRIES * CITIES_PER_COUNTRY
        countries = [invent(1, "nia land stan") for _ in range(N_COUNTRIES)]
        cities = [invent(rng.choice((1, 2)), "burg ton port ville mouth") for _ in range(n_cities)]
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
        country_of = {city: countries[i // CITIES_PER_COUNTRY] for i, city in enumerate(cities)}
        return cls(seed, people, female, relations, objects_of, country_of, (first, last))
