"""kedit: what happens to a language model that is edited again and again, measured.

Each public name is imported from its module when it is first used, so that `import kedit_lib` does not load torch.
"""

from importlib import import_module

__version__ = "0.1.0"  # pyproject.toml reads it here

_PUBLIC = {
    "analysis.forecast": ["foretell"],
    "analysis.runs": ["load_runs", "outcomes"],
    "data.config": ["load_profile"],
    "data.edit": ["Edit"],
    "editing": [
        *("AlphaEdit", "EMMET", "FT", "MEMIT", "PMET", "PROME", "RECT", "ROME", "RROME", "METHODS", "Method"),
        *("BetaEdit", "ENCORE", "EvoEdit", "LyapLock", "PRUNE", "REVIVE", "RLSEdit", "SPHERE", "SimIE", "UltraEdit"),
        *("GRACE", "Gate", "Retrieval", "method_class", "method_for"),
    ],
    "editing.alphaedit": ["NullSpace"],
    "editing.check_pipeline": ["check_pipeline"],
    "editing.compute_k": ["generate_contexts"],
    "editing.external_hparams": ["method_from_file"],
    "editing.history": ["EditHistory"],
    "editing.locate_then_edit": ["anchor_norm"],
    "editing.method": ["Outcome"],
    "editing.prune": ["prune"],
    "editing.second_moments": ["SecondMoments"],
    "editing.transfer": ["transfer"],
    "errors": ["KeditError"],
    "evaluation.accuracy": ["known_edits"],
    "evaluation.single_edits": ["ask", "ask_table"],
    "models.deltas": ["Deltas", "load_deltas"],
    "models.loading": ["load_model"],
    "models.model": ["EditableModel"],
    "streams.bench": ["Bench"],
    "streams.edit_sets": ["load_edits", "read_edits"],
    "streams.guard": ["CollapseGuard"],
    "streams.facts": ["lab_probes"],
    "streams.preflight": ["check_model"],
    "streams.store": ["Run", "collapse_point"],
    "streams.runner": ["run_stream"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
