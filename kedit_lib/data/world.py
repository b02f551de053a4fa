"""Edits of cities and countries: a function of what is so (geography.csv, from GeoNames, www.geonames.org, CC BY 4.0),
of what one model was found to say about it in the wordings of world.yaml, and of a seed."""

import csv
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..errors import KeditError
from .config import read_yaml
from .edit import Edit

TEXT = read_yaml(Path(__file__).with_name("world.yaml"))
NEIGHBORS, ENOUGH = 3, 2  # neighbors of an edit; wordings that a known fact must be said in
Said = dict[str, str]  # {wording: the object in the form that the model says it in, "France" or "the United States"}


class Relation(NamedTuple):
    """The fields are explained in world.yaml. wordings: statements, then questions."""

    statements: list[str]
    questions: list[str]
    inverse: str
    prose: str
    often: int = 1

    @property
    def wordings(self) -> list[str]:
        return self.statements + self.questions


class Fact(NamedTuple):
    relation: str  # a name of RELATIONS
    subject: str
    object: str  # without its article


RELATIONS = {name: Relation(**given) for name, given in TEXT["relations"].items()}


@dataclass(frozen=True)
class Geography:
    """facts: of cities, largest first, then of countries. articles: countries with "the", which no edit is about."""

    facts: tuple[Fact, ...]
    articles: frozenset[str]

    @property
    def asked(self) -> tuple[Fact, ...]:
        return tuple(f for f in self.facts if f.subject not in self.articles)

    @cached_property
    def objects_of(self) -> dict[str, dict[str, str]]:
        """{relation: {subject: object}}."""
        return {name: {f.subject: f.object for f in self.facts if f.relation == name} for name in RELATIONS}


def geography() -> Geography:
    """The facts of geography.csv, which bench/geography.py took from GeoNames. Each has one answer."""
    with Path(__file__).with_name("geography.csv").open(encoding="utf-8", newline="") as file:
        return Geography(tuple(Fact(**row) for row in csv.DictReader(file)), frozenset(TEXT["articles"]))


def alike(name: str, other: str) -> bool:
    """Whether one stands in the other, or both share a word of four letters: the prompt would give the answer away."""
    a, b = name.casefold(), other.casefold()
    return a in b or b in a or any(len(word) > 3 for word in set(a.split()) & set(b.split()))


class KnownWorld:
    """Edits of the facts that one model knows, and the facts around them that should not move. said: for each fact that
    was asked the wordings in which the model says it; facts: those said in ENOUGH; of_subject: {subject: these}."""

    def __init__(self, geography: Geography, said: dict[Fact, Said]):
        self.geography, self.said = geography, said
        self.facts = {f: wordings for f, wordings in said.items() if len(wordings) >= ENOUGH}
        self.of_subject: dict[str, list[Fact]] = defaultdict(list)
        self._objects = defaultdict(dict)  # {relation: new objects}: every known one that needs no article
        self._saying = defaultdict(list)  # {(wording, object as said): subjects}
        for f, wordings in self.facts.items():
            self.of_subject[f.subject].append(f)
            if f.object not in geography.articles:
                self._objects[f.relation][f.object] = None
            for pair in wordings.items():
                self._saying[pair].append(f.subject)
        self.of_subject = dict(self.of_subject)

    def edits(self, limit: int, seed: int = 0) -> list[Edit]:
        """`limit` edits, one per subject; the seed decides all. Fewer edits of one seed are the first of more."""
        subjects = list(self.of_subject)
        if not isinstance(limit, int) or not 1 <= limit <= len(subjects):
            known = f"the model knows facts of {len(subjects)} cities and countries, one edit each"
            raise KeditError(f"world edits: limit = {limit!r}, {known}; choose 1 to {len(subjects)}, or another model")
        random.Random(f"world-{seed}").shuffle(subjects)
        return [self._edit(subject, f"{seed}-{i}") for i, subject in enumerate(subjects[:limit])]

    def _edit(self, subject: str, name: str) -> Edit:
        rng = random.Random(f"world-edit-{name}")
        known = self.of_subject[subject]
        fact = rng.choices(known, [RELATIONS[f.relation].often for f in known])[0]
        said, relation = self.facts[fact], RELATIONS[fact.relation]
        prompt = rng.choice(list(said))
        new = rng.choice([o for o in self._objects[fact.relation] if o != fact.object and not alike(o, subject)])

        def others(answer: str) -> list[str]:
            """The edit's prompt about other subjects after which the model says the answer."""
            some = [s for s in self._saying[prompt, answer] if s != subject]
            return [prompt.format(s) for s in rng.sample(some, min(NEIGHBORS, len(some)))]

        wordings = dict.fromkeys([*said, *relation.wordings])  # those that the model says it in first
        more = {
            "paraphrases": [w.format(subject) for w in wordings if w != prompt],
            "neighborhood": others(said[prompt]),
            "attribute_prompts": others(new),
            "generation_prompts": [relation.prose.format(subject)],
        }
        edit = Edit(prompt, subject, new, said[prompt], relation=fact.relation, id=name, **more)
        follows = [(prompt, new) for _, prompt, new, _ in self.follows(edit)]
        return replace(edit, portability=follows, locality=[self.stated(f) for f in self.beside(edit)])

    def stated(self, fact: Fact, rng: random.Random | None = None) -> tuple[str, str]:
        """(prompt, answer) in the first wording that the model says it in, or in a drawn one."""
        said = list(self.facts[fact].items())
        prompt, answer = rng.choice(said) if rng else said[0]
        return prompt.format(fact.subject), answer

    def follows(self, edit: Edit) -> list[tuple[str, str, str, str]]:
        """(kind, prompt, answer by the new object, answer until now) of what an edited city's new country changes."""
        found = []
        for kind, relation, prompt in TEXT["follows"] if edit.relation == "city-country" else ():
            of = self.geography.objects_of[relation]
            new, true = of.get(edit.target_new), of.get(edit.target_true.removeprefix("the "))
            if new and true and new != true:
                found.append((kind, prompt.format(edit.subject), new, true))
        return found

    def inverse(self, edit: Edit) -> tuple[str, str]:
        """The fact asked from its object's side, with the new object and with the true one."""
        return tuple(RELATIONS[edit.relation].inverse.format(o) for o in (edit.target_new, edit.target_true))

    def beside(self, edit: Edit) -> list[Fact]:
        """The subject's other known facts that stay true: a country's; a city's continent that is its new country's."""
        others = [f for f in self.of_subject.get(edit.subject, []) if f.relation != edit.relation]
        of = self.geography.objects_of["country-continent"]
        free = edit.subject in of or edit.relation.startswith("country-")
        return [f for f in others if free or (edit.relation == "city-country" and of.get(edit.target_new) == f.object)]

    def untouched(self, edits: list[Edit], limit: int | None = None, seed: int = 0) -> list[Fact]:
        """Known facts that no edit names or changes (who has an edited city as capital; on which continent a city of a
        moved country lies). limit: a panel of that many, decided by edits and seed; None: all."""
        edited, country = {e.subject for e in edits}, self.geography.objects_of["city-country"]
        moved = {e.subject for e in edits if e.relation == "country-continent"}
        named = {f for f in self.facts if f.subject in edited}
        named |= {f for f in self.facts if f.relation == "country-capital" and f.object in edited}
        named |= {f for f in self.facts if f.relation == "city-continent" and country[f.subject] in moved}
        facts = [f for f in self.facts if f not in named]
        if limit is None or limit >= len(facts):
            return facts
        return random.Random(f"world-panel-{seed}").sample(facts, limit)

    def near(self, edit: Edit, rng: random.Random, n: int = 10) -> list[tuple[str, str]]:
        """Up to n (prompt, answer) of other subjects: half with the edit's true object, the others of its relation."""
        of = [f for f in self.facts if f.relation == edit.relation and f.subject != edit.subject]
        true = (edit.target_true or "").removeprefix("the ")
        same, rest = [f for f in of if f.object == true], [f for f in of if f.object != true]
        some = rng.sample(same, min(len(same), n // 2))
        return [self.stated(f, rng) for f in some + rng.sample(rest, min(len(rest), n - len(some)))]
