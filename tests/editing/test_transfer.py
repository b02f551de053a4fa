"""Published hyperparameters on another model: by depth, by width, and with steps as long relative to ‖v₀‖."""

from math import sqrt

import pytest
import torch
from library import refused
from tiny import EDITS

import kedit_lib as kedit
from kedit_lib.editing.transfer import FACTS, at_depth

SOURCE = "Llama-2-7b-hf"
PAIRS = [(prompt, subject) for prompt, subject, _ in EDITS[:3]]


def norms(model, module, at_the_end=False):
    """‖output‖ of a module for each pair, the slow way: one prompt at a time, at the last token of the subject or of
    the prompt."""
    found, seen = [], []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output))
    for prompt, subject in PAIRS:
        before = prompt.format(subject)[: None if at_the_end else prompt.index("{}") + len(subject)]
        model.hf(torch.tensor([model.tokenizer(prompt.format(subject)).input_ids]))
        found.append(seen[-1][0, len(model.tokenizer(before).input_ids) - 1].norm().item())
    handle.remove()
    return sorted(found)


@pytest.mark.parametrize("name, of_mlp", [("memit", False), ("alphaedit", False), ("rome", True), ("pmet", True)])
def test_steps_have_the_length_that_was_asked_for(model, name, of_mlp):
    carried = kedit.transfer(name, SOURCE, model, facts=PAIRS, rho=2.0)
    layer = carried.layers[-1]
    v0 = norms(model, model.mlp(layer) if of_mlp else model.layers[layer])[1]
    assert carried.v0_norm == pytest.approx(v0, rel=1e-9)
    assert carried.v_lr * sqrt(model.d_model) / v0 == pytest.approx(2.0, rel=5e-3)
    assert carried.rho == pytest.approx(2.0, rel=5e-3)
    assert kedit.transfer(name, SOURCE, model, facts=PAIRS, rho=8).v_lr == pytest.approx(4 * carried.v_lr, rel=1e-2)
    printed = kedit.transfer(name, SOURCE, model, facts=PAIRS, rho=None)
    assert printed.v_lr == kedit.method_for(SOURCE, name).v_lr
    assert printed.rho == pytest.approx(printed.v_lr * sqrt(model.d_model) / v0)


def test_lambda_goes_with_the_width_and_layers_with_the_depth(model):
    carried = kedit.transfer("memit", SOURCE, model, facts=PAIRS)
    assert carried.mom2_update_weight / model.d_ff == pytest.approx(15000 / 11008, rel=1e-4)
    assert carried.layers == at_depth([4, 5, 6, 7, 8], 32, model.n_layers) == [1]
    assert carried.v_loss_layer is None and carried.clamp_norm_factor == 4
    assert at_depth([4, 5, 6, 7, 8], 32, 30) == [4, 5, 6, 7, 8] and at_depth([21], 32, 30) == [20]
    assert at_depth([31], 32, 4) == [3]
    alphaedit = kedit.transfer("alphaedit", SOURCE, model, facts=PAIRS)
    assert alphaedit.L2 / model.d_ff == pytest.approx(10 / 14336, rel=1e-3)
    assert kedit.transfer("ft", SOURCE, model).method.layers == at_depth([21], 32, model.n_layers)
    assert kedit.transfer("grace", SOURCE, model).method == kedit.GRACE(layers=[4])


def test_ultraedits_one_step_is_a_hundredth_of_rho(model):
    """Relative to the stream behind its last layer, at the token that predicts the answer."""
    carried = kedit.transfer("ultraedit", "Mistral-7B-v0.1", model, facts=PAIRS)
    assert carried.method.modules == [f"model.layers.{i}.mlp.down_proj" for i in at_depth([29, 30], 32, model.n_layers)]
    length = carried.lr * model.d_ff * sqrt(model.d_model)
    stream = norms(model, model.layers[carried.layers[-1]], at_the_end=True)[1]
    assert length / stream == pytest.approx(0.02, rel=5e-3) and carried.rho == pytest.approx(2, rel=5e-3)
    printed = kedit.transfer("ultraedit", "Mistral-7B-v0.1", model, facts=PAIRS, rho=None)
    assert printed.lr * model.d_ff == pytest.approx(1e-6 * 14336, rel=1e-4)
    inside = kedit.transfer("ultraedit", "Meta-Llama-3-8B", model, facts=PAIRS)  # its modules do not write the stream
    assert inside.rho is None and inside.lr == kedit.transfer("ultraedit", "Meta-Llama-3-8B", model, rho=None).lr


def test_it_says_what_it_did_and_edits_as_the_method(model):
    given = kedit.ROME(layers=[16], v_loss_layer=20, mom2_adjustment=False)
    edit = kedit.Edit(*EDITS[0])
    carried = kedit.transfer(given, SOURCE, model, facts=[edit, *PAIRS])
    assert [change[:2] for change in carried.changes] == [("layers", [16]), ("v_loss_layer", 20), ("v_lr", 0.5)]
    assert carried.changes[0][2] == [3]
    assert "ρ = v_lr·√32/‖v₀‖ = 2" in str(carried) and SOURCE in str(carried)
    outcome = carried.apply(model, [edit], contexts=["{}"])
    assert list(outcome.deltas) == [model.weight_name(3)]
    assert outcome.hyperparameters["v_lr"] == carried.method.v_lr
    assert carried.v0_norm == kedit.transfer(given, SOURCE, model, facts=[edit, *PAIRS]).v0_norm  # the unedited model's


def test_what_cannot_be_carried_is_one_line(model):
    refused(lambda: kedit.transfer("memit", "lab", model, facts=PAIRS), "n_layers")
    refused(lambda: kedit.transfer("memit", SOURCE, model, facts=PAIRS, rho=0), "rho = 0")
    refused(lambda: kedit.transfer("memit", SOURCE, kedit.load_model("lab-small")), "its own world")
    assert len(FACTS) == len(set(FACTS)) == 25
