"""Edits of the facts that one model knows, and the facts around them that should not move. Everything is a function of
the geography, of what the model was found to say, and of a seed."""

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

from ...errors import KeditError
from ..edit import Edit
from .geonames import FOLLOWS, RELATIONS, Fact, Geography, alike

NEIGHBORS, ENOUGH = 3, 2  # neighbors of an edit; wordings that a known fact must be said in
Said = dict[str, str]  # {wording: the object in the form that the model says it in, "France" or "the United States"}


@dataclass(frozen=True)
class KnownWorld:
    """said: for each fact that was asked the wordings in which the model says it, statements before questions."""

    geography: Geography
    said: dict[Fact, Said]

    @cached_property
    def facts(self) -> dict[Fact, Said]:
        """The facts that the model says in at least ENOUGH wordings."""
        return {f: said for f, said in self.said.items() if len(said) >= ENOUGH}

    @cached_property
    def of_subject(self) -> dict[str, list[Fact]]:
        found: dict[str, list[Fact]] = defaultdict(list)
        for f in self.facts:
            found[f.subject].append(f)
        return dict(found)

    @cached_property
    def objects(self) -> dict[str, list[str]]:
        """{relation: new objects}: every known one that needs no article."""
        found = {name: dict.fromkeys(f.object for f in self.facts if f.relation == name) for name in RELATIONS}
        return {name: [o for o in some if o not in self.geography.articles] for name, some in found.items()}

    @cached_property
    def _saying(self) -> dict[tuple[str, str], list[str]]:
        """{(wording, object as said): subjects}."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for f, said in self.facts.items():
            for pair in said.items():
                found[pair].append(f.subject)
        return dict(found)

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
        prompt = rng.choice(list(self.facts[fact]))
        objects = [o for o in self.objects[fact.relation] if o != fact.object and not alike(o, subject)]
        edit = Edit(prompt, subject, rng.choice(objects), relation=fact.relation, id=name)
        return self._surrounded(edit, fact, rng)

    def surround(self, edit: Edit) -> Edit:
        """The edit with what is known around it; unchanged where its prompt is no wording, or its fact is not known."""
        for fact in self.of_subject.get(edit.subject, []):
            if edit.prompt in self.facts[fact]:
                return self._surrounded(edit, fact, random.Random(f"world-{edit.text}"))
        return edit

    def _surrounded(self, edit: Edit, fact: Fact, rng: random.Random) -> Edit:
        relation, said = RELATIONS[fact.relation], self.facts[fact]
        true = said[edit.prompt]
        others = [w for w in (*said, *(w for w in relation.wordings if w not in said)) if w != edit.prompt]
        edit = replace(
            edit,
            target_true=true,
            paraphrases=tuple(w.format(edit.subject) for w in others),
            neighborhood=self._others(edit, true, rng),
            attribute_prompts=self._others(edit, edit.target_new, rng),
            generation_prompts=(relation.prose.format(edit.subject),),
            relation=fact.relation,
        )
        follows = tuple((prompt, new) for _, prompt, new, _ in self.follows(edit))
        return replace(edit, portability=follows, locality=tuple(self.stated(f) for f in self.beside(edit)))

    def _others(self, edit: Edit, said: str, rng: random.Random) -> tuple[str, ...]:
        """The edit's prompt about other subjects after which the model says `said`."""
        some = [s for s in self._saying.get((edit.prompt, said), []) if s != edit.subject]
        return tuple(edit.prompt.format(s) for s in rng.sample(some, min(NEIGHBORS, len(some))))

    def stated(self, fact: Fact, rng: random.Random | None = None) -> tuple[str, str]:
        """(prompt, answer) in the first wording that the model says it in, or in a drawn one."""
        said = list(self.facts[fact].items())
        prompt, answer = rng.choice(said) if rng else said[0]
        return prompt.format(fact.subject), answer

    def follows(self, edit: Edit) -> list[tuple[str, str, str, str]]:
        """(kind, prompt, answer by the new object, answer until now) of what an edited city's new country changes."""
        if edit.relation != "city-country":
            return []
        found = []
        for kind, relation, prompt in FOLLOWS:
            of = self.geography.objects_of[relation]
            new, true = of.get(edit.target_new), of.get(edit.target_true.removeprefix("the "))
            if new and true and new != true:
                found.append((kind, prompt.format(edit.subject), new, true))
        return found

    def inverse(self, edit: Edit) -> tuple[str, str]:
        """The fact asked from its object's side, with the new object and with the true one."""
        template = RELATIONS[edit.relation].inverse
        return template.format(edit.target_new), template.format(edit.target_true)

    def beside(self, edit: Edit) -> list[Fact]:
        """Other known facts of the subject that the edit leaves true: a country's; a city's continent where its new
        country lies on it."""
        others = [f for f in self.of_subject.get(edit.subject, []) if f.relation != edit.relation]
        of = self.geography.objects_of["country-continent"]
        free = edit.subject in of or edit.relation.startswith("country-")
        return [f for f in others if free or (edit.relation == "city-country" and of.get(edit.target_new) == f.object)]

    def untouched(self, edits: list[Edit], limit: int | None = None, seed: int = 0) -> list[Fact]:
        """Known facts that no edit names or changes (who has an edited city as capital; on which continent a city of a
        moved country lies). limit: a panel of that many, decided by edits and seed; None: all."""
        edited, country = {e.subject for e in edits}, self.geography.objects_of["city-country"]
        moved = {e.subject for e in edits if e.relation == "country-continent"}

        def free(f: Fact) -> bool:
            capital = f.relation == "country-capital" and f.object in edited
            lies = f.relation == "city-continent" and country[f.subject] in moved
            return not (f.subject in edited or capital or lies)

        facts = [f for f in self.facts if free(f)]
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
