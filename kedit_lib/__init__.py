"""kedit: what happens to a language model that is edited again and again, measured."""

from .contexts import generate_contexts
from .edits import Edit
from .errors import KeditError
from .methods import MEMIT, PMET, ROME, RROME, METHODS, Method, Outcome, method_class, method_for
from .model import EditableModel, load_model
from .moments import SecondMoments

__all__ = [
    "MEMIT", "METHODS", "PMET", "ROME", "RROME", "Edit", "EditableModel", "KeditError", "Method", "Outcome",
    "SecondMoments", "generate_contexts", "load_model", "method_class", "method_for",
]
