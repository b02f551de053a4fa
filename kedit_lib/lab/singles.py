"""What single edits of the lab need: its plain text for C, and the facts around an edit."""

from __future__ import annotations

import random

from ..data.edit import Edit
from ..editing.second_moments import SecondMoments
from . import world_of
from .corpus import texts
from .edits import ask, near_facts, other_facts

MOMENT_TEXTS = 2000  # documents, about 100,000 tokens: a hundred times d_ff


def moment_texts(model) -> list[str]:
    """The lab's own text mixture (seed 1, not the training's documents)."""
    return texts(world_of(model), MOMENT_TEXTS)


def lab_moments(model, layers, cache=None, progress: bool = False) -> SecondMoments:
    """C over `moment_texts`."""
    return SecondMoments.estimate(model, moment_texts(model), layers, cache=cache, progress=progress)


def lab_around(world, edit: Edit, rng: random.Random) -> tuple[list, list]:
    """(prompt, answer) pairs that an edit should leave alone: facts of others that are near, the subject's others."""
    near, own = near_facts(world, edit, rng), other_facts(world, edit)
    return tuple([(ask(world, f, rng), f.object) for f in facts] for facts in (near, own))
