"""What all probes share (rows, identity, panel, the unedited answers), and the probes of edits and of facts."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import dataclass_transform

from ..data.atomic import cached
from ..data.edit import Edit
from ..data.provenance import sha256
from ..errors import KeditError
from ..models.tokenization import target_ids
from .accuracy import generation_accuracy
from .teacher_forcing import magnitude, score, strict_accuracy, success, teacher_forced

SELDOM = 50  # edits between two checkpoints at which what is costly is asked
DEAD = 0.5  # accuracy on unrelated facts below which the model counts as dead
COHORT_LIMIT = 50  # edits so far whose paraphrases and neighbors are asked, and two answers compared, at most
BRIEF = 100  # facts between the full checkpoints; of the edits at most COHORT_LIMIT
UNSURE = 0.15  # three standard errors of a share near one half among BRIEF
CONTAINED = 25  # edits whose long answers are searched for the new object
LATEST = 25  # edits of the cohort "latest edits"


def identity_of(name: str, what) -> str:
    """A probe's identity: its name (with a version: raise it when the numbers change) and a hash of its questions."""
    return f"{name}-{sha256(json.dumps(what, default=repr))[:16]}"


@dataclass_transform(frozen_default=True)
class Probe:
    """Questions, the fields of a frozen dataclass. A call with the model in its present state and the edits so far
    gives rows (metric, cohort, value, n). `run_stream` takes whatever is called so and has an `identity`, which names
    what is measured for the store's key: here the class's version and all fields. A probe may also have `every`, in
    edits: it is asked at the first checkpoint at or after each multiple of it, and at the last (without: at every
    checkpoint; None: at 0 edits, at the first after either `collapse_point`, and at the last); and `brief`, called like
    the probe itself at the checkpoints in between: fewer questions, rows of the same names."""

    def __init_subclass__(cls, version: str):
        cls.version = version
        dataclass(frozen=True)(cls)

    @property
    def identity(self) -> str:
        return identity_of(self.version, [getattr(self, f.name) for f in fields(self)])

    def unedited(self, model, ask):
        """ask(model) with the original weights in place; from memory the second time for a model of this checksum."""
        known = vars(self).setdefault("_known", {})
        if model.checksum not in known:
            with model.temporarily():
                known[model.checksum] = ask(model)
        return known[model.checksum]


def row(metric: str, cohort: str, values) -> dict:
    """The mean of at least one value as a row."""
    values = [float(v) for v in values]
    return {"metric": metric, "cohort": cohort, "value": sum(values) / len(values), "n": len(values)}


def rows(cohort: str, **metrics) -> list[dict]:
    """One row per metric (underscores stand for spaces), none for those without values."""
    return [row(name.replace("_", " "), cohort, values) for name, values in metrics.items() if len(values)]


def evenly(n: int, limit: int) -> range:
    """At most `limit` of the indices 0 … n − 1, spread evenly: a panel of the edits so far, old and new."""
    return range(0, n, max(1, -(-n // limit)))


def panel(items, done: list[Edit], limit: int) -> list:
    """At most `limit` of `items`, one for each edit, evenly over the edits so far; before the first, over all."""
    return [items[i] for i in evenly(len(done) or len(items), limit)]


def true_object(model, edit: Edit) -> str | None:
    """The edit's true object, None if it is unknown or this tokenizer cannot write it, so that it cannot be scored."""
    true = edit.target_true
    try:
        return true and target_ids(model.tokenizer, edit.text, true, edit.separator) and true
    except KeditError:
        return None


def once_at_start(probe, folder: Path, asked_of: list):
    """The probe as it is asked of the unedited model: once for all runs that share `folder`, where its rows are kept.
    asked_of: what the answers depend on beside the probe's identity."""
    path = folder / f"{identity_of(probe.identity, asked_of)}.json"
    return lambda model, done: cached(path, lambda: probe(model, done))


class EditProbe(Probe, version="edits-v2"):
    """All edits so far, the latest LATEST, and a paraphrase and a neighbor of each. Rows: accuracy (generated) and
    probability of the new object for edits, latest edits and, with `each`, each edit alone ("edit 1", "edit 2", …). For
    edits, paraphrases and neighbors accuracy, token and strict accuracy of the wanted object; success and magnitude
    against the other one, where the true object is known; the score S of all three; for edits also containment (match
    "contains"). Paraphrases, neighbors and comparisons: of COHORT_LIMIT edits at most, spread evenly over the sequence
    so far. Between multiples of `every`: only accuracy and probability, of such edits and of the latest."""

    each: bool = True
    every: int = 1
    match: str = "exact"

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        if not done:
            return []
        some, few = panel(done, done, COHORT_LIMIT), panel(done, done, CONTAINED)
        true = {e: true_object(model, e) for e in some}
        asked = (
            [(e, e.text, e.target_new, true.get(e)) for e in done],
            [(e, e.paraphrases[0], e.target_new, true[e]) for e in some if e.paraphrases],
            [(e, e.neighborhood[0], true[e], e.target_new) for e in some if e.neighborhood and true[e]],
        )
        own, others, near = parts = [_Asked(model, part, self.match) for part in asked]
        prompts, new, separators = zip(*((e.text, e.target_new, e.separator) for e in few), strict=True)
        contained = generation_accuracy(model, list(prompts), list(new), "contains", separators=list(separators))
        p = own.wanted.probability
        found = own.rows("edits") + others.rows("paraphrases") + near.rows("neighbors")
        found += rows("edits", probability=p, containment=contained)
        found += rows("latest edits", accuracy=own.right[-LATEST:], probability=p[-LATEST:])
        found += rows("new on neighbors", probability=near.other.probability)
        if n := min(len(part.success) for part in parts):
            s = score(*(part.success.mean().item() for part in parts))
            found.append({"metric": "score", "cohort": "edits", "value": s, "n": n})
        for metric, values in (("accuracy", own.right), ("probability", p)) if self.each else ():
            found += [row(metric, f"edit {i}", [value]) for i, value in enumerate(values, 1)]
        return found

    def brief(self, model, done: list[Edit]) -> list[dict]:
        some = panel(done, done, COHORT_LIMIT)
        asked = _Asked(model, [(e, e.text, e.target_new, None) for e in (*some, *done[-LATEST:])], self.match)
        right, p, n = asked.right, asked.wanted.probability, len(some)
        found = rows("edits", accuracy=right[:n], probability=p[:n])
        return found + rows("latest edits", accuracy=right[n:], probability=p[n:])


class _Asked:
    """(edit, prompt, wanted, other answer or None), generated (right) and scored; compared where there is another."""

    def __init__(self, model, asked: list[tuple[Edit, str, str, str | None]], match: str):
        two = [i for i, (*_, other) in enumerate(asked) if other is not None]
        prompts, wanted = [prompt for _, prompt, *_ in asked], [answer for _, _, answer, _ in asked]
        more, others = [prompts[i] for i in two], [asked[i][3] for i in two]
        separators = [e.separator for e, *_ in (*asked, *(asked[i] for i in two))]
        both, n = teacher_forced(model, prompts + more, wanted + others, separators), len(asked)
        self.wanted, self.other = both.at(range(n)), both.at(range(n, n + len(two)))
        self.right = generation_accuracy(model, prompts, wanted, match, self.wanted)
        compared = self.wanted.at(two), self.other
        self.success, self.magnitude = success(*compared), magnitude(*compared)

    def rows(self, cohort: str) -> list[dict]:
        token, strict = self.wanted.tokens_right, strict_accuracy(self.wanted)
        found = rows(cohort, accuracy=self.right, token_accuracy=token, strict_accuracy=strict)
        return found + rows(cohort, success=self.success, magnitude=self.magnitude)


class FactProbe(Probe, version="FactProbe-v2"):
    """Accuracy on a fixed list of (prompt, answer) that no edit of the sequence asks for."""

    cohort: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    every: int | None = 1
    match: str = "exact"

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        return [row("accuracy", self.cohort, self._right(model, slice(None)))]

    def _right(self, model, some: slice) -> list[bool]:
        return generation_accuracy(model, list(self.prompts[some]), list(self.answers[some]), self.match)


class VitalProbe(FactProbe, version="VitalProbe-v2"):
    """Facts that decide whether the model is dead. Between multiples of `every` the first BRIEF; all if undecided."""

    def brief(self, model, done: list[Edit]) -> list[dict]:
        right = self._right(model, slice(BRIEF))
        if abs(sum(right) / len(right) - DEAD) < UNSURE:
            right += self._right(model, slice(BRIEF, None))
        return [row("accuracy", self.cohort, right)]
