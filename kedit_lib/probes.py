"""What is measured at a checkpoint of a stream: rows of (metric, cohort, value, n)."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Protocol

from .edits import Edit
from .metrics import answer_probability, generation_accuracy, perplexity

COHORT_LIMIT = 150  # paraphrases and neighbors are asked for at most this many of the edits so far


class Probe(Protocol):
    """Anything with these two: `identity` names what it measures for the store's key."""

    identity: str

    def __call__(self, model, done: list[Edit]) -> list[dict]: ...


def _row(metric: str, cohort: str, values) -> dict:
    values = [float(v) for v in values]
    return {"metric": metric, "cohort": cohort, "value": sum(values) / len(values), "n": len(values)}


@dataclass(frozen=True)
class EditProbe:
    """All edits so far, also the newest alone: generated accuracy, and probability of the new object.

    Paraphrases (one an edit) and neighbors (one an edit) on at most COHORT_LIMIT edits spread evenly
    over the stream so far.
    """

    identity: str = "edits-v1"

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        if not done:
            return []
        prompts, new = [e.text for e in done], [e.target_new for e in done]
        probability = answer_probability(model, prompts, new)
        right = generation_accuracy(model, prompts, new)
        rows = [
            _row("accuracy", "edits", right),
            _row("probability", "edits", probability),
            _row("accuracy", "latest edits", right[-25:]),
            _row("probability", "latest edits", probability[-25:]),
        ]
        step = -(-len(done) // COHORT_LIMIT)
        some = done[::step]
        if asked := [(e.paraphrases[0], e.target_new) for e in some if e.paraphrases]:
            rows.append(_row("accuracy", "paraphrases", generation_accuracy(model, *_columns(asked))))
        if asked := [(e.neighborhood[0], e.target_true) for e in some if e.neighborhood and e.target_true]:
            rows.append(_row("accuracy", "neighbors", generation_accuracy(model, *_columns(asked))))
        return rows


@dataclass(frozen=True)
class FactProbe:
    """Accuracy on a fixed list of (prompt, answer) that no edit of the stream asks for."""

    cohort: str
    prompts: tuple[str, ...] = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)

    @property
    def identity(self) -> str:
        text = json.dumps([self.cohort, self.prompts, self.answers])
        return f"facts-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        return [_row("accuracy", self.cohort, generation_accuracy(model, list(self.prompts), list(self.answers)))]


@dataclass(frozen=True)
class PerplexityProbe:
    """Perplexity on held-out plain text."""

    texts: tuple[str, ...] = field(repr=False)

    @property
    def identity(self) -> str:
        return f"perplexity-{hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]}"

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        value = perplexity(model, list(self.texts))
        return [{"metric": "perplexity", "cohort": "plain text", "value": value, "n": len(self.texts)}]


def lab_probes(model, edits: list[Edit], untouched: int = 300, texts: int = 40, seed: int = 0) -> list[Probe]:
    """The standard probes of a lab stream.

    edits; `untouched` facts of people no edit names; a third as many of the other facts of edited
    people; perplexity on `texts` documents of plain text.
    """
    from .lab import world_of
    from .lab.corpus import plain_texts
    from .lab.edits import ask, other_facts, untouched_facts

    world, rng = world_of(model), random.Random(f"probes-{seed}")
    strangers = untouched_facts(world, edits, untouched, seed)
    own = [f for e in edits for f in other_facts(world, e)]
    own = rng.sample(own, min(len(own), max(1, untouched // 3)))
    return [
        EditProbe(),
        *(
            FactProbe(cohort, tuple(ask(world, f, rng) for f in facts), tuple(f.object for f in facts))
            for cohort, facts in (("untouched", strangers), ("same subjects", own))
        ),
        PerplexityProbe(tuple(plain_texts(world, texts))),
    ]


def _columns(pairs):
    return [a for a, _ in pairs], [b for _, b in pairs]
