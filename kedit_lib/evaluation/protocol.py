"""What all probes share: rows, names for the store, a panel of the edits, and the unedited model's answers."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import dataclass_transform

from ..data.atomic import cached
from ..data.edit import Edit
from ..errors import KeditError
from ..models.tokenization import target_ids

SELDOM = 50  # edits between two checkpoints at which what is costly is asked
DEAD = 0.5  # accuracy on unrelated facts below which the model counts as dead


def identity_of(name: str, what) -> str:
    """A probe's identity: its name (with a version: raise it when the numbers change) and a hash of its questions."""
    return f"{name}-{hashlib.sha256(json.dumps(what, default=repr).encode()).hexdigest()[:16]}"


@dataclass_transform(frozen_default=True)
class Probe:
    """Questions, the fields of a frozen dataclass. A call with the model in its present state and the edits so far
    gives rows (metric, cohort, value, n). `run_stream` takes whatever is called so and has an `identity`, which names
    what is measured for the store's key: here the class's version and all fields. A probe may also have

    every  edits: it is asked at the first checkpoint at or after each multiple of it, and at the last. Without: at
           every checkpoint. None: at 0 edits, at the first after either `collapse_point`, and at the last
    brief  called like the probe itself at the checkpoints in between: fewer questions, rows of the same names
    """

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
