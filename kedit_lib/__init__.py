"""kedit: what happens to a language model that is edited again and again, measured."""

from .asking import ask, ask_table
from .checking import check_model
from .contexts import generate_contexts
from .datasets import load_edits, read_edits
from .edits import Edit
from .errors import KeditError
from .experiments import Run, collapse_point, run_stream
from .forecast import foretell
from .history import EditHistory
from .hparams import method_from_file
from .known import known_edits
from .methods import (
    EMMET,
    FT,
    MEMIT,
    METHODS,
    PMET,
    PROME,
    RECT,
    ROME,
    RROME,
    AlphaEdit,
    Method,
    Outcome,
    anchor_norm,
    method_class,
    method_for,
    prune,
)
from .model import EditableModel, load_model
from .moments import SecondMoments
from .nullspace import NullSpace
from .params import load_profile
from .probes import lab_probes
from .saving import Deltas, load_deltas
from .streams import Bench

__all__ = [
    "Bench",
    "EMMET",
    "FT",
    "MEMIT",
    "METHODS",
    "PMET",
    "PROME",
    "RECT",
    "ROME",
    "RROME",
    "AlphaEdit",
    "Deltas",
    "Edit",
    "EditHistory",
    "EditableModel",
    "KeditError",
    "Method",
    "NullSpace",
    "Outcome",
    "Run",
    "SecondMoments",
    "anchor_norm",
    "ask",
    "ask_table",
    "check_model",
    "collapse_point",
    "foretell",
    "generate_contexts",
    "known_edits",
    "lab_probes",
    "load_deltas",
    "load_edits",
    "load_model",
    "load_profile",
    "method_class",
    "method_for",
    "method_from_file",
    "prune",
    "read_edits",
    "run_stream",
]
