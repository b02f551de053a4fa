"""Hyperparameters for a model that has none yet: Llama-2-7B's, the layers and the weights of C fitted to the model.

    layers   ROME's is the layer whose state at the subject's last token carries most of a fact (causal tracing);
             methods that spread an edit take the up to five layers that end there, as published
    λ        15000 · d_ff / 11008, so that λ/d_ff is Llama-2-7B's; the others' weights of C by the same rule

Tracing alone does not say where editing works best. Single edits do; try the neighbouring layers.
"""

from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.config import PROPOSED, REPOSITORY, file_name, find_model_params, results_folder
from ..data.yaml_text import dump, read_yaml
from .transfer import BY_WIDTH, rounded

LIKE, D_FF, N_LAYERS = "Llama-2-7b-hf", 11008, 32  # where the other values are from
DEPTH, WIDEST = 8 / N_LAYERS, 5  # of its last edited layer, and how many layers an edit is spread over there
ONE_LAYER = ("rome", "rrome", "prome", "emmet", "gate")


def propose_layers(n_layers: int, effect: pd.DataFrame | None = None) -> tuple[list[int], list[int]]:
    """ROME's layer, and the layers of methods that spread an edit, both as lists. effect: what `causal_trace` gives
    (None: the depth is Llama-2-7B's). The last layer is left out: a change there reaches only the next token."""
    if effect is None:
        at = round(DEPTH * n_layers)
    else:
        states = effect[(effect.place == "last subject token") & (effect.layer < max(1, n_layers - 1))]
        at = int(states.set_index("layer").effect.idxmax())
    at = max(0, min(at, n_layers - 2))
    width = min(WIDEST, max(1, round(WIDEST * n_layers / N_LAYERS)), at + 1)
    return [at], list(range(at - width + 1, at + 1))


def propose(model, effect: pd.DataFrame | None = None) -> dict[str, dict]:
    """Sections of a params/models file for `model` (see `propose_layers` for `effect`)."""
    one, several = propose_layers(model.n_layers, effect)
    tuned, late, *deep = (min(model.n_layers - 1, round(i / N_LAYERS * model.n_layers)) for i in (21, 27, 29, 30))
    at = dict.fromkeys(ONE_LAYER, one) | {"ft": [tuned], "ft-m": [tuned], "grace": [late]}
    published = read_yaml(REPOSITORY / "params" / "models" / f"{LIKE}.yaml")
    sections = {**{name: {**values} for name, values in published.items()}, "model": {"d_ff": model.d_ff}}
    for name, values in sections.items():
        if "layers" in values:
            values["layers"] = at.get(name, several)
        if "modules" in values:
            values["modules"] = [f"{model.layout.layers}.{i}.{model.layout.mlp_out}" for i in sorted({*deep})]
            values["lr"] = rounded(values["lr"] * D_FF / model.d_ff)
        values |= {f: rounded(values[f] * model.d_ff / D_FF) for f in BY_WIDTH if f in values}
    return sections


def write_proposal(name: str, sections: dict[str, dict], why: str) -> Path:
    """Write models/<name>.yaml into the results folder, where method_for finds it, unless there is one; its path. why:
    how the layers came about."""
    if (there := find_model_params(name)) is not None:
        return there
    weights = f"weights of C (mom2_update_weight, L2): times {sections['model']['d_ff']} / {D_FF}, the models' d_ff"
    text = f"{PROPOSED}: the values of {LIKE}.yaml, but\n#   layers: {why}\n#   {weights}\n{dump(sections)}"
    path = results_folder() / "models" / f"{file_name(name)}.yaml"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path
