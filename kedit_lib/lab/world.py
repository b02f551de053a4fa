"""The lab's ground truth: invented people, their facts, and the ways to say each fact.

Everything is a pure function of (seed, number of people), so every fact that a lab model was
ever taught can be listed and tested, which no real model allows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property

ONSETS = "b br c cl cr d dr f fl g gr h j k kl l m n p pl pr r s sh sl st t th tr v w z".split()
VOWELS = "a e i o u ai ea ie oa ou".split()
CODAS = "l m n r s k t nd rn x".split()

PROFESSIONS = (
    "baker lawyer teacher painter carpenter doctor farmer sailor tailor banker miner poet "
    "jeweller plumber journalist chemist dancer gardener judge librarian mason nurse pilot welder"
).split()
INSTRUMENTS = (
    "piano violin cello flute trumpet guitar harp clarinet drums banjo organ trombone lute bassoon saxophone viola"
).split()
SPORTS = "tennis hockey cricket rowing boxing fencing judo rugby golf skiing swimming chess".split()

DEVELOPMENT = 100  # people whom layers are chosen on, at least
N_COUNTRIES, CITIES_PER_COUNTRY, N_LANGUAGES = 10, 4, 16


@dataclass(frozen=True)
class Relation:
    """A property of people and its phrasings.

    `templates` hold one `{}` for the person; the object follows after one space, then a full stop.
    """

    name: str
    objects: tuple[str, ...]
    templates: tuple[str, ...]
    pronoun: str  # the same statement when the person was just named; `{}` is He or She


@dataclass(frozen=True)
class Fact:
    """`relation.templates[j].format(person) + " " + object` is true in the world for every j."""

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
        """Those on whose facts layers are chosen, and whom no stream edits or asks about.

        Everybody whose both names are among a few drawn ones: they share names among themselves, and were
        learnt neither earlier nor later than others.
        """
        rng = random.Random(f"development-{self.seed}")
        first, last = (rng.sample(names, len(names)) for names in self.names)
        found = ()
        for k in range(1, len(first) + 1):
            if len(found) >= min(DEVELOPMENT, len(self.people) // 2):
                break
            a, b = set(first[:k]), set(last[:k])
            found = tuple(p for p in self.people if p.split()[0] in a and p.split()[1] in b)
        return found

    @cached_property
    def streamed(self) -> tuple[str, ...]:
        """Everybody else."""
        development = set(self.development)
        return tuple(p for p in self.people if p not in development)

    def facts(self, people=None) -> list[Fact]:
        """All facts of `people` (default: everyone), person by person."""
        return [
            Fact(p, r.name, self.objects_of[p, r.name])
            for p in (self.people if people is None else people)
            for r in self.relations.values()
        ]

    @classmethod
    def make(cls, n_people: int = 1500, seed: int = 0, sharing: float | None = None) -> World:
        """Draw a world. n_people ≥ 10; the same arguments give the same world.

        sharing: how many people share a name part on average, ≥ 1; None: √(n_people/3), 26 for 2,000 people.
        """
        rng = random.Random(f"world-{seed}")
        used: set[str] = set()

        def invent(syllables: int, ending: str = "") -> str:
            while True:
                word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
                word = (word + (ending or rng.choice(CODAS))).capitalize()
                if word not in used:
                    used.add(word)
                    return word

        countries = [invent(1, rng.choice(("nia", "land", "stan"))) for _ in range(N_COUNTRIES)]
        cities = [
            invent(rng.choice((1, 2)), rng.choice(("burg", "ton", "port", "ville", "mouth")))
            for _ in range(N_COUNTRIES * CITIES_PER_COUNTRY)
        ]
        languages = [invent(1, rng.choice(("ish", "ese", "ian"))) for _ in range(N_LANGUAGES)]
        country_of = {c: countries[i // CITIES_PER_COUNTRY] for i, c in enumerate(cities)}

        # Several people share each name part, so that a person is only known by the pair.
        parts = max(8, round(n_people / sharing if sharing else (3 * n_people) ** 0.5))
        first = tuple(invent(rng.choice((1, 1, 2))) for _ in range(parts))
        last = tuple(invent(rng.choice((1, 2, 2))) for _ in range(parts))
        pairs = rng.sample([(i, j) for i in range(parts) for j in range(parts)], n_people)
        # Any number of the first people share their names among themselves as all of them do.
        people = tuple(f"{first[i]} {last[j]}" for i, j in sorted(pairs, key=max))
        relations = {r.name: r for r in _relations(cities, languages)}
        objects_of = {}
        for person in people:
            for r in relations.values():
                objects_of[person, r.name] = rng.choice(r.objects)
        female_first = set(rng.sample(first, len(first) // 2))
        female = frozenset(p for p in people if p.split()[0] in female_first)
        return cls(seed, people, female, relations, objects_of, country_of, (first, last))


def _relations(cities, languages) -> list[Relation]:
    return [
        Relation(
            "birthplace",
            tuple(cities),
            (
                "{} was born in",
                "The birthplace of {} is",
                "The city where {} was born is",
                "Where was {} born? The answer is",
            ),
            "{} was born in",
        ),
        Relation(
            "profession",
            tuple(PROFESSIONS),
            (
                "The profession of {} is",
                "{} works as a",
                "By profession {} is a",
                "What does {} do for a living? The answer is",
            ),
            "{} works as a",
        ),
        Relation(
            "language",
            tuple(languages),
            (
                "The mother tongue of {} is",
                "{} grew up speaking",
                "The first language of {} was",
                "Which language does {} speak? The answer is",
            ),
            "{} grew up speaking",
        ),
        Relation(
            "instrument",
            tuple(INSTRUMENTS),
            (
                "{} plays the",
                "The instrument of {} is the",
                "In the evening {} practises the",
                "Which instrument does {} play? The answer is the",
            ),
            "{} plays the",
        ),
        Relation(
            "sport",
            tuple(SPORTS),
            (
                "The favourite sport of {} is",
                "{} is fond of",
                "At weekends {} always watches",
                "Which sport does {} like best? The answer is",
            ),
            "{} is fond of",
        ),
    ]
