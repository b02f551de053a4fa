"""kedit: what happens to a language model that is edited again and again, measured."""

from .analysis.forecast import foretell
from .data.config import load_profile
from .data.edit import Edit
from .editing import (
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
from .editing.contexts import generate_contexts
from .editing.external_hparams import method_from_file
from .editing.history import EditHistory
from .editing.null_space import NullSpace
from .editing.second_moments import SecondMoments
from .editing.transfer import transfer
from .errors import KeditError
from .evaluation.before_after import ask, ask_table
from .evaluation.known_facts import known_edits
from .models.deltas import Deltas, load_deltas
from .models.loading import load_model
from .models.model import EditableModel
from .streams.bench import Bench
from .streams.edit_sets import load_edits, read_edits
from .streams.lab_facts import lab_probes
from .streams.preflight import check_model
from .streams.runner import Run, collapse_point, run_stream

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
    "transfer",
]
