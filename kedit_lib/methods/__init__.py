"""The editing methods by name, and their published hyperparameters for each model."""

from __future__ import annotations

from ..errors import KeditError
from ..params import load_model_params
from .base import Method, Outcome
from .memit import MEMIT
from .pmet import PMET
from .rome import ROME, RROME

METHODS: dict[str, type[Method]] = {m.__name__: m for m in (ROME, RROME, MEMIT, PMET)}


def method_class(name: str) -> type[Method]:
    """The method of that name, in any case; "memit-mass" is MEMIT. KeditError for an unknown one."""
    key = {"MEMITMASS": "MEMIT"}.get(plain := name.upper().replace("-", "").replace("_", ""), plain)
    if key not in METHODS:
        raise KeditError(f"method {name!r}: is unknown; use one of {', '.join(METHODS)}")
    return METHODS[key]


def method_for(model, name: str, **overrides) -> Method:
    """The method with the hyperparameters of params/models/<model>.yaml, some of them overridden.

    model: an EditableModel or its name.
    """
    cls, model_name = method_class(name), getattr(model, "name", model)
    params = load_model_params(str(model_name))
    found = {key.upper().replace("-", ""): values for key, values in params.items()}
    if cls.__name__ not in found:
        raise KeditError(
            f"method {name!r}: params/models has no hyperparameters for it under {model_name!r}; pass them yourself"
        )
    return cls(**{**found[cls.__name__], **overrides})


__all__ = ["METHODS", "MEMIT", "PMET", "ROME", "RROME", "Method", "Outcome", "method_class", "method_for"]
