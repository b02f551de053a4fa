"""The built-in model: a small Llama trained on an invented world in which every true fact is known."""

import json

from ..errors import KeditError, check_editable, explained
from .corpus import texts
from .world import World

MOMENT_TEXTS = 2000  # documents, about 100,000 tokens: a hundred times d_ff


def world_of(model) -> World:
    """The world a lab model was trained on, from the provenance beside its weights; KeditError for any other model."""
    check_editable(model, "the lab's world")
    path = model.folder / "provenance.json" if model.folder else None
    if path is None or not path.exists():
        remedy = "give edits and texts of its own, or use lab or lab-small"
        raise KeditError(f"{model.name}: is not a lab model (no provenance.json beside its weights); {remedy}")
    with explained(f"{path}: cannot be read", "train or fetch the model again"):
        recipe = json.loads(path.read_text())["recipe"]
        return World.make(recipe["n_people"], recipe["seed"], recipe.get("sharing"))


def moment_texts(model) -> list[str]:
    """The lab's own text mixture for C (seed 1, not the training's documents)."""
    return texts(world_of(model), MOMENT_TEXTS)
