"""Published hyperparameters carried to another model: layers by depth, weights of C by width, steps by ‖v₀‖.

    layers     at the same depth, i · n_layers / n_layers′, rounded; the loss is read at the last layer
    λ, L2      λ / d_ff held
    v_lr       ρ = v_lr · √d_model / ‖v₀‖ held
    others     as they are: clamp and decay are relative to ‖v₀‖ already

Adam's first updates are v_lr·√d_model long whatever the gradient: ρ is a step relative to the vector that it changes.
‖v₀‖ is the median over facts that no edit uses, at the clean prompt on the unedited weights, of the value that the
method optimises: the stream after its last layer (MEMIT and its kin), the MLP's output (ROME, PMET).
On Llama-2-7B ρ of the published v_lr is near 2, between 1 and 4; docs/your_model.md has the public evidence.
"""

import re
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from ..data.config import LAB_MODELS, load_model_params
from ..data.yaml_text import read_yaml
from ..errors import KeditError
from . import Method, UltraEdit, Wrapper, method_for
from .compute_k import outputs_at, prompts_of

SETTINGS = {"as printed": None, "as scaled": 2.0}  # ρ of the two settings that streams are reported in
# hyperparameters that weigh an edit against C, whose scale is d_ff
BY_WIDTH = ("mom2_update_weight", "L2", "update_norm_lambda", "lambda1", "lambda2", "lamHyper")
DIGITS = 3  # of a measured v_lr: fewer than rounding on another machine moves, for it is in the keys of stored runs

# (prompt, subject), people and things, in front of the prompt or inside as in public data sets; only ‖v₀‖ is measured
KNOWN = read_yaml(Path(__file__).with_name("known_facts.yaml"))
FACTS = tuple((prompt, subject) for prompt, subjects in KNOWN.items() for subject in subjects)


@dataclass(frozen=True, repr=False)
class Transfer:
    """A published method on another model, which edits as `method` does, and how it was carried from `source` to
    `model`: (hyperparameter, there, here, the rule) of each change; ‖v₀‖ and ρ here (None: there are no targets)."""

    method: Method
    source: str
    model: str
    changes: tuple[tuple[str, object, object, str], ...]
    v0_norm: float | None = None
    rho: float | None = None

    def __getattr__(self, name):
        if name.startswith("__") or name == "method":
            raise AttributeError(name)
        return getattr(self.method, name)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each hyperparameter that was carried."""
        return pd.DataFrame(self.changes, columns=["hyperparameter", self.source, self.model, "rule"])

    def __repr__(self) -> str:
        changes = "; ".join(f"{name} {there} → {here} ({rule})" for name, there, here, rule in self.changes)
        return f"{self.method.name} of {self.source} on {self.model}: {changes}; all else as printed"


def transfer(method: str | Method, source: str, model, facts=None, rho: float | None = 2.0) -> Transfer:
    """The method of `source` carried to `model`, a wrapper with its base.

    method   a name, as of `method_for`, or a Method of the source
    source   a file of params/models, such as "Llama-2-7b-hf", which says n_layers and d_ff
    facts    edits, or (prompt with {}, subject) pairs, that nothing else uses, to measure ‖v₀‖ on; None: well-known
             ones in English
    rho      ρ that v_lr is to have, > 0; None: v_lr as printed

    KeditError for an unknown method or source, or one of unknown size.
    """
    published = method if isinstance(method, Method) else method_for(source, method)
    size = load_model_params(source)["model"]
    if missing := [name for name in ("n_layers", "d_ff") if name not in size]:
        raise KeditError(f"source {source!r}: its parameters do not say {missing[0]}; add it there under 'model:'")
    depth, width, values, changes, measured = size["n_layers"], size["d_ff"], dict(published), [], (None, None)

    def carry(name, value, rule):
        changes.append((name, values[name], value, rule))
        values[name] = value

    if isinstance(published, Wrapper):
        inner = transfer(published.base, source, model, facts, rho)
        values |= {"base": inner.method, "layers": inner.method.layers}
        changes, measured = [*inner.changes], (inner.v0_norm, inner.rho)
    else:
        rule = f"depth of {depth} layers and of {model.n_layers}"
        carry("layers", at_depth(published.layers, depth, model.n_layers), rule)
    for name in BY_WIDTH:
        if value := values.get(name):
            carry(name, rounded(value * model.d_ff / width), f"per d_ff, {width} and {model.d_ff}")
    if isinstance(published, UltraEdit):

        def carried_over(number: re.Match) -> str:
            return str(at_depth([int(number[0])], depth, model.n_layers)[0])

        values["modules"] = sorted({re.sub(r"(?<=\.)\d+(?=\.)", carried_over, m, count=1) for m in published.modules})
        carry("lr", rounded(published.lr * width / model.d_ff), "lr · ‖k̂‖², which is d_ff")
    if "v_loss_layer" in values:
        there = "last" if published.v_loss_layer is None else published.v_loss_layer
        changes.append(("v_loss_layer", there, "last", f"here {model.n_layers - 1}"))
        values["v_loss_layer"] = None
    carried = type(published)(**values)
    if "v_lr" in values:
        carried, v0 = with_rho(carried, model, rho, facts)
        measured = v0, carried.v_lr * sqrt(model.d_model) / v0
        rule = f"ρ = v_lr·√{model.d_model}/‖v₀‖ = {measured[1]:.3g} with ‖v₀‖ = {v0:.4g}"
        carry("v_lr", carried.v_lr, rule)
    return Transfer(carried, str(source), model.name, tuple(changes), *measured)


def with_rho(method: Method, model, rho: float | None, facts=None) -> tuple[Method, float]:
    """`method`, one of `model` itself, with the v_lr that has this ρ (None: as it is), and ‖v₀‖."""
    if rho is not None and not (isfinite(rho) and rho > 0):
        raise KeditError(f"rho = {rho!r}: must be above 0, or None for v_lr as printed")
    v0 = v0_norm(model, method, facts)
    v_lr = method.v_lr if rho is None else rounded(rho * v0 / sqrt(model.d_model), DIGITS)
    return type(method)(**{**dict(method), "v_lr": v_lr}), v0


@torch.no_grad()
def v0_norm(model, method: Method, facts=None) -> float:
    """Median ‖v₀‖ over `facts`, as in `transfer`, of the value that `method` optimises, on the unedited weights."""
    if facts is None and model.name in LAB_MODELS:
        some = "facts=kedit.load_edits('lab', model=model, limit=25, seed=1)"
        raise KeditError(f"facts: {model.name} knows its own world only; give some of it, such as {some}")
    model.check_layers(method.layers)
    prompts = prompts_of(model, facts or FACTS)
    with model.temporarily():
        return median(outputs_at(model, prompts, method._site(model).values[0]).norm(dim=1).tolist())


def at_depth(layers: list[int], of: int, here: int) -> list[int]:
    """Layers at the same depth in a model of `here` layers as `layers` in one of `of`; fewer where two fall on one."""
    return sorted({min(here - 1, int(i * here / of + 0.5)) for i in layers})


def rounded(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")
