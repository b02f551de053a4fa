"""Which facts a model knows before it is edited: only those can be edited away."""

from __future__ import annotations

from ..data.config import LAB_MODELS
from ..data.edit import Edit, check_edits
from . import generation_accuracy


def known_edits(model, edits: list[Edit], match: str | None = None) -> tuple[list[Edit], int]:
    """The edits whose target_true the model says by itself after the edit prompt, in order, and how many it does not.

    match   as in `metrics.generation_accuracy`: "exact", "begins" or "contains"; None: "exact" for the lab's models,
            which were trained on such sentences, "begins" for all others, which write on. An edit without
            target_true counts as not known.
    """
    match = match or ("exact" if model.name in LAB_MODELS else "begins")
    edits = check_edits(edits, "known_edits")
    asked = [e for e in edits if e.target_true is not None]
    true, separators = [e.target_true for e in asked], [e.separator for e in asked]
    right = generation_accuracy(model, [e.text for e in asked], true, match, separators=separators)
    known = [e for e, says in zip(asked, right, strict=True) if says]
    return known, len(edits) - len(known)
