"""The editing methods by name, and their published hyperparameters for each model."""

from ..data.config import load_model_params
from ..errors import KeditError, check_editable, meant
from .alphaedit import AlphaEdit
from .betaedit import BetaEdit
from .emmet import EMMET
from .encore import ENCORE
from .evoedit import EvoEdit
from .filters import Wrapper
from .ft import FT
from .gate import Gate
from .grace import GRACE
from .lyaplock import LyapLock
from .memit import MEMIT
from .method import Method
from .pmet import PMET
from .prune import PRUNE
from .rect import RECT
from .retrieval import Retrieval
from .revive import REVIVE
from .rlsedit import RLSEdit
from .rome import PROME, ROME, RROME
from .simie import SimIE
from .sphere import SPHERE
from .ultraedit import UltraEdit

OLDER = ROME, RROME, PROME, MEMIT, PMET, EMMET, AlphaEdit, RECT, PRUNE, FT
NEWER = ENCORE, EvoEdit, BetaEdit, LyapLock, RLSEdit, SimIE, SPHERE, REVIVE, UltraEdit
METHODS: dict[str, type[Method]] = {m.__name__: m for m in OLDER + NEWER}
# Outside the family: they write no weights.
BASELINES: dict[str, type[Method]] = {"Retrieval": Retrieval, "GRACE": GRACE, "Gate": Gate}
# One class under several names: they differ in how it is called or in its hyperparameters.
ALSO_CALLED = {"MEMITMASS": "MEMIT", "FTL": "FT", "FTM": "FT", "STREAM": "GATE"}


def _plain(name: str) -> str:
    return str(name).upper().replace("-", "").replace("_", "")


def method_class(name: str) -> type[Method]:
    """The method of that name, in any case: "r-rome" is RROME, "memit-mass" MEMIT, "ft-l" and "ft-m" FT, "simie-rome"
    SimIE, around ROME. KeditError for an unknown one."""
    classes = {_plain(known): cls for known, cls in (METHODS | BASELINES).items()}
    around, _, base = str(name).partition("-")
    if found := classes.get(ALSO_CALLED.get(_plain(name), _plain(name))):
        return found
    if base and issubclass(found := classes.get(_plain(around), Method), Wrapper) and method_class(base):
        return found
    anchored, _, last = str(name).rpartition("-")
    if last.upper() == "NAS" and "norm_anchor" in method_class(anchored := anchored or "alphaedit").model_fields:
        how = f"r = kedit.anchor_norm(model, method, edits), then method_for(model, {anchored!r}, norm_anchor=r)"
        raise KeditError(f"method {name!r}: its anchor is measured first, on pilot edits: {how}")
    unknown = f"is unknown{meant(name, [*METHODS, *BASELINES, *map(str.lower, METHODS | BASELINES)])}"
    raise KeditError(f"method {name!r}: {unknown}; use one of {', '.join(METHODS | BASELINES)}")


def method_for(model, name: str, **overrides) -> Method:
    """The method with the hyperparameters of params/models/<model>.yaml, some of them overridden. model: an
    EditableModel or its name. A section of that very name ("ft-m") goes before the method's ("ft"). The base of a
    wrapper may be a name. For one edit after the other (docs/sequences.md): "stream" (Gate), or in the weights
    "stream-weights" (MEMIT with early stopping, a line search and a history). KeditError without hyperparameters."""
    if name == "stream-weights":
        name, overrides = "memit", {"use_history": True, "stop": "argmax", "line_search": 1.12, **overrides}
    if hasattr(model, "forward"):
        check_editable(model, "method_for")
    cls, model_name = method_class(name), str(getattr(model, "name", model))
    if cls is Retrieval:  # nothing about it depends on the model
        return cls(**overrides)
    sections = {_plain(key): values for key, values in load_model_params(model_name).items()}
    published, own = sections["MODEL"].get("d_ff"), getattr(model, "d_ff", None)
    if None not in (published, own) and published != own:
        problem = f"its parameters are of a model with d_ff {published}, it has {own}"
        raise KeditError(f"model {model_name!r}: {problem}; rename one of two models that share a name")
    values = sections.get(_plain(name), sections.get(_plain(cls.__name__)))
    if values is None:
        where = f"params/models has no hyperparameters for it under {model_name!r}"
        raise KeditError(f"method {name!r}: {where}; pass them yourself")
    values = {**values, **overrides}
    if issubclass(cls, Wrapper) and isinstance(values.get("base"), str):
        named = _plain(name) not in sections and name.partition("-")[2]
        values["base"] = method_for(model, overrides.get("base") or named or values["base"])
    return cls(**values)
