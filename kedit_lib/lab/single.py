"""Independent single edits, weights restored between: whether one edit is healthy on this model."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice

import pandas as pd

from ..edits import Edit
from ..metrics import generation_accuracy
from ..metrics.interference import interference
from ..moments import SecondMoments
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


def single_edits(model, method, edits, moments, contexts, seed: int = 0, around=None) -> pd.DataFrame:
    """Each edit alone on the original weights. A row an edit, shares of right answers by free generation:

    edit          the edit prompt gives the new object (0 or 1)
    templates     the other phrasings of the relation give it
    near          facts of other subjects that share a name part or the relation are still right
    same_subject  the subject's other relations are still right
    interference  tr ΔCΔᵀ, summed over the layers

    around: (edit, rng) -> two lists of (prompt, answer), near and same subject; None: the lab's.
    """
    around = around or partial(lab_around, world_of(model))
    rng, rows = random.Random(f"single-{seed}"), []
    for edit in edits:
        near, own = around(edit, rng)
        asked = [(edit.text, edit.target_new)] + [(p, edit.target_new) for p in edit.paraphrases]
        asked += near + own
        outcome = method.apply(model, [edit], moments=moments, contexts=contexts)
        right = iter(generation_accuracy(model, [p for p, _ in asked], [a for _, a in asked]))
        model.restore()
        target = outcome.targets[0]
        rows.append(
            {
                "method": method.name,
                "layers": "-".join(map(str, method.layers)),
                "edit": float(next(right)),
                "templates": _mean(list(islice(right, len(edit.paraphrases)))),
                "near": _mean(list(islice(right, len(near)))),
                "same_subject": _mean(list(islice(right, len(own)))),
                "probability_last": target.probabilities[-1],
                "steps": target.steps,
                "clamped": target.clamped,
                "interference": interference(model, outcome.deltas, moments),
                "relation": edit.relation,
                "prompt": edit.prompt,
                **{f"s_{i}": s[0].item() for i, s in outcome.s.items()},
            }
        )
    return pd.DataFrame(rows)


def _mean(values) -> float:
    return sum(values) / len(values) if values else float("nan")
