"""What is measured at a checkpoint of a stream: the edits themselves, facts, perplexity."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data.edit import Edit
from . import (
    generation_accuracy,
    magnitude,
    perplexity,
    score,
    strict_accuracy,
    success,
    teacher_forced,
    token_accuracy,
)
from .protocol import DEAD, evenly, identity_of, row, rows, true_object
from .retention import each_edit

COHORT_LIMIT = 50  # edits so far whose paraphrases and neighbors are asked, and two answers compared, at most
BRIEF = 100  # facts between the full checkpoints; of the edits at most COHORT_LIMIT
UNSURE = 0.15  # three standard errors of a share near one half among BRIEF
CONTAINED = 25  # edits whose long answers are searched for the new object
LATEST = 25  # edits of the cohort "latest edits"


@dataclass(frozen=True)
class EditProbe:
    """All edits so far, also the newest alone and each by itself, their paraphrases and neighbors.

    Rows for edits and latest edits: accuracy (generated) and probability of the new object; with `each` the
    same for each edit alone (see metrics.retention). For edits, paraphrases (one an edit) and neighbors (one an
    edit): accuracy, token accuracy, strict accuracy of the wanted object; success and magnitude against
    the other one, where the true object is known; for all three together the score S; for edits also
    containment, the generated accuracy that lets the new object stand anywhere in the sentence. Paraphrases,
    neighbors and comparisons on at most COHORT_LIMIT edits spread evenly over the stream so far.

    Between multiples of `every`: only accuracy and probability, on at most COHORT_LIMIT such edits and the latest.
    match: what counts as right, as in `metrics.generation_accuracy`.
    """

    each: bool = True
    every: int = 1
    match: str = "exact"

    @property
    def identity(self) -> str:
        return identity_of("edits-v2", [self.each, self.every, self.match])

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        if not done:
            return []
        some = [done[i] for i in evenly(len(done), COHORT_LIMIT)]
        true = {e: true_object(model, e) for e in some}
        asked = (
            [(e.text, e.target_new, true.get(e), e.separator) for e in done],
            [(e.paraphrases[0], e.target_new, true[e], e.separator) for e in some if e.paraphrases],
            [(e.neighborhood[0], true[e], e.target_new, e.separator) for e in some if e.neighborhood and true[e]],
        )
        own, others, near = (_Asked(model, part, self.match) for part in asked)
        found = own.rows("edits") + others.rows("paraphrases") + near.rows("neighbors")
        found += rows("edits", probability=own.wanted.probability, containment=self._contained(model, done))
        found += rows("latest edits", accuracy=own.right[-LATEST:], probability=own.wanted.probability[-LATEST:])
        found += rows("new on neighbors", probability=near.other.probability)
        three = [asked.success for asked in (own, others, near)]
        if n := min(map(len, three)):
            s = score(*(x.mean().item() for x in three))
            found.append({"metric": "score", "cohort": "edits", "value": s, "n": n})
        if self.each:
            found += each_edit("accuracy", own.right) + each_edit("probability", own.wanted.probability)
        return found

    def brief(self, model, done: list[Edit]) -> list[dict]:
        n = len(done)
        cohorts = {"edits": evenly(n, COHORT_LIMIT), "latest edits": range(max(0, n - LATEST), n)}
        asked = [done[i] for some in cohorts.values() for i in some]
        prompts, new = [e.text for e in asked], [e.target_new for e in asked]
        forced = teacher_forced(model, prompts, new, [e.separator for e in asked])
        right = generation_accuracy(model, prompts, new, self.match, forced)
        found, first = [], 0
        for cohort, some in cohorts.items():
            part = slice(first, first + len(some))
            found += rows(cohort, accuracy=right[part], probability=forced.probability[part])
            first += len(some)
        return found

    def _contained(self, model, done: list[Edit]) -> list[bool]:
        some = [done[i] for i in evenly(len(done), CONTAINED)]
        new, separators = [e.target_new for e in some], [e.separator for e in some]
        return generation_accuracy(model, [e.text for e in some], new, "contains", separators=separators)


class _Asked:
    """(prompt, wanted answer, other answer or None, separator), generated and scored.

    right: generated accuracy of each; wanted: all scored; success and magnitude: where there is another answer
    """

    def __init__(self, model, asked: list[tuple[str, str, str | None, str | None]], match: str):
        prompts, wanted, others, separators = map(list, zip(*asked, strict=True)) if asked else ([], [], [], [])
        two = [i for i, other in enumerate(others) if other is not None]
        again, both = [prompts[i] for i in two], wanted + [others[i] for i in two]
        both = teacher_forced(model, prompts + again, both, separators + [separators[i] for i in two])
        self.wanted, self.other = both.at(range(len(asked))), both.at(range(len(asked), len(asked) + len(two)))
        self.right = generation_accuracy(model, prompts, wanted, match, self.wanted)
        self.success, self.magnitude = (f(self.wanted.at(two), self.other) for f in (success, magnitude))

    def rows(self, cohort: str) -> list[dict]:
        return rows(
            cohort,
            accuracy=self.right,
            token_accuracy=token_accuracy(self.wanted),
            strict_accuracy=strict_accuracy(self.wanted),
            success=self.success,
            magnitude=self.magnitude,
        )


@dataclass(frozen=True)
class FactProbe:
    """Accuracy on a fixed list of (prompt, answer) that no edit of the stream asks for."""

    cohort: str
    prompts: tuple[str, ...] = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    every: int | None = 1
    match: str = "exact"

    @property
    def identity(self) -> str:
        what = [self.cohort, self.prompts, self.answers, self.every, self.match]
        return identity_of(f"{type(self).__name__}-v2", what)

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        return [row("accuracy", self.cohort, self._right(model, slice(None)))]

    def _right(self, model, some: slice) -> list[bool]:
        return generation_accuracy(model, list(self.prompts[some]), list(self.answers[some]), self.match)


@dataclass(frozen=True)
class VitalProbe(FactProbe):
    """Facts that decide whether the model counts as dead. Between multiples of `every` the first BRIEF are asked,
    and all where these leave it open."""

    def brief(self, model, done: list[Edit]) -> list[dict]:
        right = self._right(model, slice(BRIEF))
        if abs(sum(right) / len(right) - DEAD) < UNSURE:
            right += self._right(model, slice(BRIEF, None))
        return [row("accuracy", self.cohort, right)]


@dataclass(frozen=True)
class PerplexityProbe:
    """Perplexity on held-out plain text."""

    texts: tuple[str, ...] = field(repr=False)
    every: int = 1

    @property
    def identity(self) -> str:
        return identity_of("perplexity", [self.texts, self.every])

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        value = perplexity(model, list(self.texts))
        return [{"metric": "perplexity", "cohort": "plain text", "value": value, "n": len(self.texts)}]
