"""What follows from a lab edit, and what must not: consequences, inverses, prompts about other facts, reference texts.

Everything is a function of the world and the edit.
"""

from __future__ import annotations

import random

from ..data.edit import Edit, Question
from .corpus import biography, unmark
from .edits import ask, other_facts, others_of
from .world import World

BRIDGE = "The city of {} lies in"  # as the plain text says it
ONE_STEP = "The birthplace of {} is a city in"
INVERSE = {
    "birthplace": "The city {} is the birthplace of",
    "profession": "The profession {} is the one of",
    "language": "The language {} is the mother tongue of",
    "instrument": "The instrument {} is played by",
    "sport": "The sport {} is the favourite of",
}
REFERENCES = 5


def consequences(world: World, edit: Edit) -> tuple[Question, ...]:
    """The questions of one edit; each kind is a cohort.

    pronoun                 the subject is named in another true sentence, the fact is asked of He or She
    country through city    birthplaces: the model names the city and is asked where it lies (one hop, spelled out)
    country in one step     birthplaces: the country of birth at once

    Whether a model can answer these at all is measured by their gates on the unedited model. The lab model passes those
    of all pronoun questions (which its biographies train) and of all spelled-out hops, and none of those in one step:
    no text names a person and a country together. Moves within one country have no country questions.
    """
    rng = _rng(world, edit)
    other = rng.choice(other_facts(world, edit))
    called = "She" if edit.subject in world.female else "He"
    named = f"{ask(world, other, rng)} {other.object}."
    pronoun = f"{named} {world.relations[edit.relation].pronoun.format(called)}"
    found = [Question("pronoun", pronoun, edit.target_new, gate=((pronoun, edit.target_true),))]
    old, new = (world.country_of.get(city) for city in (edit.target_true, edit.target_new))
    if old and new and old != new:
        spelled_out = tuple(
            (f"{edit.text} {city}. {BRIDGE.format(city)}", country)
            for city, country in ((edit.target_true, old), (edit.target_new, new))
        )
        at_once = ONE_STEP.format(edit.subject)
        found.append(Question("country through city", edit.text, new, BRIDGE, gate=spelled_out))
        found.append(Question("country in one step", at_once, new, gate=((at_once, old),)))
    return tuple(found)


def inverse_prompts(edit: Edit) -> tuple[str, str] | None:
    """The fact asked from its object's side, with the new object and with the true one; None without a phrasing.

    No text of the lab says a fact that way: expect the floor.
    """
    template = INVERSE.get(edit.relation)
    return template and (template.format(edit.target_new), template.format(edit.target_true))


def own_prompt(world: World, edit: Edit) -> str:
    """A prompt of the same subject about another relation."""
    rng = _rng(world, edit)
    return ask(world, rng.choice(other_facts(world, edit)), rng)


def references(world: World, edit: Edit) -> tuple[str, ...]:
    """Biographies of up to REFERENCES other people who have the edit's new object."""
    rng = _rng(world, edit)
    like = [p for p in others_of(world, edit.subject) if world.objects_of[p, edit.relation] == edit.target_new]
    return tuple(unmark(biography(world, p, rng))[0] for p in rng.sample(like, min(len(like), REFERENCES)))


def _rng(world: World, edit: Edit) -> random.Random:
    return random.Random(f"questions-{world.seed}-{edit}")
