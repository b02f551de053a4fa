"""The real world as a source of edits: which of its facts a model knows, and what a bench asks of it."""

import random
from functools import cached_property
from pathlib import Path

from ..data.atomic import cached
from ..data.edit import Edit, Question
from ..data.provenance import ALGORITHMS, key_of
from ..data.world import RELATIONS, Geography, KnownWorld, geography
from ..evaluation import generation_accuracy, teacher_forced
from .facts import DatasetFacts

# Which wording is asked, of those said in how many before
STEPS = ((lambda r: r.statements[0], 0), (lambda r: r.questions[0], 1), (lambda r: r.statements[1], 1))


def known_world(model, cache: Path | None = None) -> KnownWorld:
    """The facts of `geography` that the unedited model says by greedy decoding, and in which wordings.

    All are asked in the first statement of their relation; known ones then in the first question, the others in the
    second statement (each in every wording would take three times as long). The text must begin with the answer, "the"
    or not. cache: a folder where the answers are kept, by the model's weights and every word asked.
    """
    world = geography()
    asked = [[f.relation, f.subject, f.object] for f in world.asked]
    wordings = {name: r.wordings for name, r in RELATIONS.items()}
    key = key_of(world=[asked, wordings], model=[model.checksum, model.setting], algorithms=ALGORITHMS)
    path = None if cache is None else Path(cache) / f"{key}.json"

    def ask() -> list[dict[str, str]]:
        with model.temporarily():
            return _ask(model, world)

    said = cached(path, ask)
    return KnownWorld(world, {f: s for f, s in zip(world.asked, said, strict=True) if s})


def _ask(model, world: Geography) -> list[dict[str, str]]:
    """{wording: the object as it was said} of each fact."""
    said: list[dict[str, str]] = [{} for _ in world.asked]
    for wording_of, before in STEPS:
        pairs = [(i, wording_of(RELATIONS[f.relation])) for i, f in enumerate(world.asked) if len(said[i]) == before]
        prompts, answers = (
            [w.format(world.asked[i].subject) for i, w in pairs],
            [world.asked[i].object for i, _ in pairs],
        )
        right = generation_accuracy(model, prompts, answers, "begins") if pairs else []
        for (i, wording), says in zip(pairs, right, strict=True):
            if says:
                said[i][wording] = world.asked[i].object
    # Of objects that English puts "the" before, the form that the model says is the one to be scored.
    both = [(i, w) for i, words in enumerate(said) for w in words if world.asked[i].object in world.articles]
    if both:
        prompts = [w.format(world.asked[i].subject) for i, w in both]
        whole = teacher_forced(model, prompts, [f"the {world.asked[i].object}" for i, _ in both]).tokens_right
        for (i, wording), right in zip(both, whole.tolist(), strict=True):
            said[i][wording] = f"the {world.asked[i].object}" if right == 1 else world.asked[i].object
    return said


class WorldFacts(DatasetFacts):
    """Edits of cities and countries, one a subject, of facts that the model knows in two wordings or more; what no edit
    touches are its other known facts."""

    @cached_property
    def known(self) -> KnownWorld:
        return known_world(self.model, self.cache)

    def edits(self, n: int, seed: int) -> list[Edit]:
        return self.known.edits(n, seed)

    def some(self, n: int) -> list[Edit]:
        return self.known.edits(min(n, len(self.known.of_subject)), 0)

    @property
    def unknown(self) -> int:
        return len(self.known.geography.asked) - len(self.known.facts)

    @property
    def selection(self) -> str:
        asked = f"Of {len(self.known.geography.asked)} facts about cities and countries (GeoNames)"
        return f"{asked} the model does not know {self.unknown} in two wordings; these were left out before any edit."

    def surround(self, edit: Edit) -> Edit:
        return self.known.surround(edit)

    def around(self, edit: Edit, rng: random.Random) -> tuple[list, list]:
        return self.known.near(edit, rng), [self.known.stated(f, rng) for f in self.known.beside(edit)]

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        rng, found = random.Random(f"strangers-{seed}"), self.known.untouched(edits, limit, seed)
        said = [rng.choice(list(self.known.facts[f].items())) for f in found]
        return [(prompt, f.subject, answer) for f, (prompt, answer) in zip(found, said, strict=True)]

    def own(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        rng, facts = random.Random(f"own-{seed}"), [f for e in edits for f in self.known.beside(e)]
        return [self.known.stated(f, rng) for f in rng.sample(facts, min(limit, len(facts)))]

    def neighbors(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        return []  # every fact is a record of its own

    def consequences(self, edits) -> list[tuple[Question, ...]]:
        """What an edited city's new country changes, asked where the unedited model answers by the old one."""
        asked = [self.known.follows(e) for e in edits]
        return [tuple(Question(k, p, new, gate=((p, true),)) for k, p, new, true in each) for each in asked]

    def inverses(self, edits) -> list[tuple[str, str]]:
        return [self.known.inverse(e) for e in edits]
