"""How the tests speak to the library: its public API, and the one place to change if that moves."""

import inspect

import pytest
import torch

import kedit_lib as kedit

CLASSES = {
    "rome": "ROME",
    "rrome": "RROME",
    "prome": "PROME",
    "memit": "MEMIT",
    "pmet": "PMET",
    "emmet": "EMMET",
    "alphaedit": "AlphaEdit",
    "rect": "RECT",
    "ft": "FT",
}
COMMON = ("layers", "v_num_grad_steps", "v_lr", "v_loss_layer", "v_weight_decay", "clamp_norm_factor", "kl_factor")
COMMON += ("norm_anchor", "anchor_skip", "stop")
OWN = {
    "rome": ("mom2_adjustment",),
    "rrome": ("mom2_adjustment",),
    "prome": ("mom2_adjustment",),
    "memit": ("mom2_update_weight", "use_history"),
    "pmet": ("mom2_update_weight", "nll_loss_factor", "use_history"),
    "rect": ("mom2_update_weight", "use_history"),
    "emmet": ("mom2_update_weight", "emmet_lambda", "update_norm_lambda"),
    "alphaedit": ("nullspace_threshold", "nullspace_rank", "L2"),
    "ft": ("num_steps", "lr", "weight_decay", "norm_constraint", "objective_optimization", "batch_size"),
}


def method(name, hyperparameters):
    """The library's method with those of the hyperparameters that it has; skips where the library lacks it."""
    if not hasattr(kedit, CLASSES.get(name, "-")):
        pytest.skip(f"the library has no {CLASSES.get(name, name)}")
    made = getattr(kedit, CLASSES[name])
    common = ("layers",) if name == "ft" else COMMON
    own = {key: hyperparameters[key] for key in (*common, *OWN[name]) if key in hyperparameters}
    if name.endswith("rome") and "v_loss_layer" not in inspect.signature(made).parameters:
        own.pop("v_loss_layer", None)  # ROME reads the model's own logits
    return made(**own)


def uses_moments(name, hyperparameters):
    return name != "ft" and (not name.endswith("rome") or hyperparameters.get("mom2_adjustment", True))


def new_history():
    if not hasattr(kedit, "EditHistory"):
        pytest.skip("the library has no EditHistory")
    return kedit.EditHistory()


def with_given_targets(method, *arguments, z, **named):
    """Apply with finished targets (a list of z), if the library takes them."""
    if "targets" not in inspect.signature(method.apply).parameters:
        pytest.skip("the library's apply() takes no given targets")
    return method.apply(*arguments, targets=z, **named)


def parameters(model):
    """{name: parameter} of the transformers model inside the library's."""
    inside = [model, *vars(model).values()]
    return dict(next(each for each in inside if isinstance(each, torch.nn.Module)).named_parameters())


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in parameters(model).items()}


def refused(call, *says):
    """`call()` raises KeditError: one line that holds every one of `says`."""
    with pytest.raises(kedit.KeditError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message
    assert isinstance(caught.value, ValueError)
