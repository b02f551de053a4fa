"""Published hyperparameters on another model: layers by depth, weights of C by width, steps by ‖v₀‖.

    layers     at the same depth, i · n_layers / n_layers′, rounded; the loss is read at the last layer
    λ, L2      λ / d_ff held
    v_lr       ρ = v_lr · √d_model / ‖v₀‖ held (a proposal has it as printed)
    lr         of UltraEdit: ρ = 100 · lr · d_ff · √d_model / ‖v₀‖ held
    others     as they are: clamp and decay are relative to ‖v₀‖ already

Adam's first updates are v_lr·√d_model long whatever the gradient: ρ is a step relative to the vector that it
changes, near 2 of the published v_lr on Llama-2-7B, between 1 and 4 (evidence: docs/your_model.md). ‖v₀‖ is the median
over facts that no edit uses, at the clean prompt on the unedited weights, of the value that the method optimises: the
stream after its last layer (MEMIT and its kin), the MLP's output (ROME, PMET). UltraEdit takes one step of length
lr·d_ff·√d_model (‖k̂‖² = d_ff). Where its modules write into the stream, ρ is 100 times that length over ‖v₀‖, of the
stream after its last layer at the token that predicts the answer; else lr scales with width."""

import re
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from ..data import config
from ..data.atomic import replacing
from ..errors import KeditError, check_editable
from ..models.tokenization import Prompt
from . import Method, UltraEdit, Wrapper, method_for
from .compute_k import outputs_at, prompts_of

# hyperparameters that weigh an edit against C, whose scale is d_ff
BY_WIDTH = ("mom2_update_weight", "L2", "update_norm_lambda", "lambda1", "lambda2", "lamHyper")
LIKE, WIDEST = "Llama-2-7b-hf", 5  # whose values a proposal takes, and over how many layers an edit is spread there
DIGITS = 3  # kept of a measured v_lr: too few for another machine's rounding to change the key of a stored run

# (prompt, subject), people and things, in front of the prompt or inside as in public data sets; only ‖v₀‖ is measured
KNOWN = config.read_yaml(Path(__file__).with_name("known_facts.yaml"))
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

    def __repr__(self) -> str:
        changes = "; ".join(f"{name} {there} → {here} ({rule})" for name, there, here, rule in self.changes)
        return f"{self.method.name} of {self.source} on {self.model}: {changes}; all else as printed"


def transfer(method: str | Method, source: str, model, facts=None, rho: float | None = 2.0) -> Transfer:
    """The method of `source` carried to `model`, a wrapper with its base. method: a name, as of `method_for`, or a
    Method of the source. source: a file of params/models, such as "Llama-2-7b-hf", which says n_layers and d_ff. facts:
    edits, or (prompt with {}, subject) pairs, that nothing else uses, to measure ‖v₀‖ on; None: well-known ones. rho:
    ρ that steps are to have, > 0; None: v_lr as printed. KeditError for an unknown method, source or size."""
    check_editable(model, "transfer")
    published = method if isinstance(method, Method) else method_for(source, method)
    values, changes, measured = dict(published), [], (None, None)
    carried = by_size(values, source, model)
    if isinstance(published, Wrapper):
        inner = transfer(published.base, source, model, facts, rho)
        values |= {"base": inner.method, "layers": inner.method.layers}
        changes, measured = [*inner.changes], (inner.v0_norm, inner.rho)
        del carried["layers"]
    for name, (value, rule) in carried.items():
        changes.append((name, values[name], value, rule))
        values[name] = value
    if "v_loss_layer" in values:
        there = "last" if published.v_loss_layer is None else published.v_loss_layer
        changes.append(("v_loss_layer", there, "last", f"here {model.n_layers - 1}"))
        values["v_loss_layer"] = None
    here = type(published)(**values)
    if step := step_of(here, model):
        here, v0 = with_rho(here, model, rho, facts)
        name, formula, length = step
        measured = v0, getattr(here, name) * length / v0
        rule = f"ρ = {formula}/‖v₀‖ = {measured[1]:.3g} with ‖v₀‖ = {v0:.4g}"
        changes.append((name, values[name], getattr(here, name), rule))
    return Transfer(here, str(source), model.name, tuple(changes), *measured)


def by_size(values: dict, source: str, model) -> dict[str, tuple]:
    """{hyperparameter: (value on `model`, rule)} of those that go with depth or width. KeditError for unknown sizes."""
    size = config.load_model_params(source)["model"]
    if missing := [name for name in ("n_layers", "d_ff") if name not in size]:
        raise KeditError(f"source {source!r}: its parameters do not say {missing[0]}; add it there under 'model:'")
    (depth, width), here, found = (size["n_layers"], size["d_ff"]), model.n_layers, {}
    if "layers" in values:
        found["layers"] = at_depth(values["layers"], depth, here), f"depth of {depth} layers and of {here}"
    for name in BY_WIDTH:
        if value := values.get(name):
            found[name] = rounded(value * model.d_ff / width), f"per d_ff, {width} and {model.d_ff}"
    if "modules" in values:
        numbered = [(m, n) for m in values["modules"] for n in re.findall(r"\.(\d+)\.", m)[:1]]
        moved = {m.replace(f".{n}.", f".{at_depth([int(n)], depth, here)[0]}.", 1) for m, n in numbered}
        found["modules"] = sorted(moved), "as layers"
        found["lr"] = rounded(values["lr"] * width / model.d_ff), "lr · ‖k̂‖², which is d_ff"
    return found


def with_rho(method: Method, model, rho: float | None, facts=None) -> tuple[Method, float]:
    """`method`, one of `model` itself, with the v_lr (UltraEdit: lr) that has this ρ (None: as it is), and ‖v₀‖."""
    if rho is not None and not (isfinite(rho) and rho > 0):
        raise KeditError(f"rho = {rho!r}: must be above 0, or None for v_lr as printed")
    if isinstance(method, Wrapper):
        base, v0 = with_rho(method.base, model, rho, facts)
        return type(method)(**{**dict(method), "base": base}), v0
    v0, (name, _, length) = v0_norm(model, method, facts), step_of(method, model)
    value = getattr(method, name) if rho is None else rounded(rho * v0 / length, DIGITS)
    return type(method)(**{**dict(method), name: value}), v0


def step_of(method: Method, model) -> tuple[str, str, float] | None:
    """What ρ decides: the hyperparameter, ρ‖v₀‖ as a formula, and ρ‖v₀‖ where the hyperparameter is 1."""
    if "v_lr" in type(method).model_fields:
        return "v_lr", f"v_lr·√{model.d_model}", sqrt(model.d_model)
    writing = {model.weight_name(i).removesuffix(".weight") for i in range(model.n_layers)}
    if isinstance(method, UltraEdit) and writing.issuperset(method.modules):
        return "lr", f"100·lr·{model.d_ff}·√{model.d_model}", 100 * model.d_ff * sqrt(model.d_model)
    return None


@torch.no_grad()
def v0_norm(model, method: Method, facts=None) -> float:
    """Median ‖v₀‖ over `facts`, as in `transfer`, of the value that `method` optimises, on the unedited weights."""
    if facts is None and model.name in config.LAB_MODELS:
        some = "facts=kedit.load_edits('lab', model=model, limit=25, seed=1)"
        raise KeditError(f"facts: {model.name} knows its own world only; give some of it, such as {some}")
    model.check_layers(method.layers)
    prompts, last = prompts_of(model, facts or FACTS), model.layers[method.layers[-1]]
    if isinstance(method, UltraEdit):
        prompts = [Prompt(p.ids, len(p.ids) - 1) for p in prompts]
    else:
        last = method._site(model).values[0]
    with model.temporarily():
        return median(outputs_at(model, prompts, last).norm(dim=1).tolist())


def at_depth(layers: list[int], of: int, here: int) -> list[int]:
    """Layers at the same depth in a model of `here` layers as `layers` in one of `of`; fewer where two fall on one."""
    return sorted({min(here - 1, int(i * here / of + 0.5)) for i in layers})


def rounded(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def propose_layers(n_layers: int, effect: pd.DataFrame | None = None) -> tuple[list[int], list[int]]:
    """ROME's layer, and the layers of methods that spread an edit, both as lists. effect: what `causal_trace` gives
    (None: the depth is Llama-2-7B's). The last layer is left out: a change there reaches only the next token."""
    of = config.load_model_params(LIKE)["model"]["n_layers"]
    if effect is None:
        at = round(8 / of * n_layers)
    else:
        states = effect[(effect.place == "last subject token") & (effect.layer < max(1, n_layers - 1))]
        at = int(states.set_index("layer").effect.idxmax())
    at = max(0, min(at, n_layers - 2))
    width = min(WIDEST, max(1, round(WIDEST * n_layers / of)), at + 1)
    return [at], list(range(at - width + 1, at + 1))


def propose(model, effect: pd.DataFrame | None = None) -> dict[str, dict]:
    """Sections of a params/models file for `model` (see `propose_layers` for `effect`), steps as printed."""
    published, (one, several), sections = config.load_model_params(LIKE), propose_layers(model.n_layers, effect), {}
    for name, values in published.items():
        carried = {field: value for field, (value, _) in by_size(values, LIKE, model).items()}
        for traced, found in (("rome", one), ("memit", several)):
            if values.get("layers") == published[traced]["layers"]:
                carried["layers"] = found
        if "modules" in values:
            at = re.findall(r"\.(\d+)\.", " ".join(carried["modules"]))
            carried["modules"] = [f"{model.layout.layers}.{i}.{model.layout.mlp_out}" for i in at]
        sections[name] = values | carried
    return sections | {"model": {"d_ff": model.d_ff}}


def write_proposal(name: str, sections: dict[str, dict], why: str) -> Path:
    """Write results/models/<name>.yaml, where method_for finds it, unless there is one; its path. why: these layers."""
    if (there := config.find_model_params(name)) is not None:
        return there
    d_ff = config.load_model_params(LIKE)["model"]["d_ff"]
    weights = f"weights of C (mom2_update_weight, L2): times {sections['model']['d_ff']} / {d_ff}, the models' d_ff"
    text = f"{config.PROPOSED}: the values of {LIKE}.yaml, but\n#   layers: {why}\n#   {weights}\n"
    path = config.results_folder() / "models" / f"{config.file_name(name)}.yaml"
    with replacing(path) as partial:
        partial.write_text(text + config.dump(sections), encoding="utf-8")
    return path
