"""Running the tails of prompts says what the plain model says of the whole prompts, beyond any window of attention."""

import families
import pytest
import torch
from transformers import AutoModelForCausalLM

import kedit_lib as kedit
from kedit_lib.editing.compute_z import optimise
from kedit_lib.editing.engine import Site, requests_of
from kedit_lib.models.tokenization import encode, target_ids

WINDOW = 6  # shorter than any prompt below
SLIDING = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": None},
}
CONTEXTS = ["{}", "The town is old, and because the rain is cold, you stay at home. {}", "Therefore I read. {}"]
EDIT = kedit.Edit("The birthplace of {}, it is said, is", "Toko Yasuda", "Bordeaux")


def first_step(model, inside):
    """The mean over contexts of p(target) before δ has moved, at a layer in the middle."""
    layer, requests = model.n_layers // 2, requests_of(model.tokenizer, [EDIT], CONTEXTS)
    edited = model.mlp_out(layer)
    value = edited if inside else model.layers[layer]
    site = Site(layer, model.n_layers - 1, (value,), edited, inside)
    steps = {"v_num_grad_steps": 1, "v_lr": 0.5, "v_weight_decay": 0.0, "clamp_norm_factor": 4.0, "kl_factor": 0.1}
    (target,), _ = optimise(model, requests, site, kedit.ROME(layers=[layer], mom2_adjustment=False, **steps))
    return target.probabilities[0]


def plainly(hf, tokenizer):
    """The same by whole forward passes of the plain model, one prompt at a time."""
    found, answer = [], target_ids(tokenizer, EDIT.text, EDIT.target_new)
    for context in CONTEXTS:
        ids = encode(tokenizer, context.format(EDIT.text))
        rows = hf(input_ids=torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
        found.append(rows[range(len(answer)), list(answer)].mean().exp())
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("name", SLIDING)
def test_the_first_step_is_at_the_plain_models_probability(tmp_path, name):
    """For targets of the stream and for those inside the layer. Within the window: `test_architectures.py`."""
    families.save(name, tmp_path, **SLIDING[name])
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    model = kedit.load_model(tmp_path, dtype="float64")
    right = plainly(hf, model.tokenizer)
    wide = families.model(name, len(model.tokenizer))
    wide.load_state_dict(hf.state_dict())
    assert abs(plainly(wide, model.tokenizer) - right) > 1e-9 * right  # the window is felt
    close = 1e-6 * right if name in families.FLOAT32_INSIDE else 1e-12
    for inside in (False, True):
        assert abs(first_step(model, inside) - right) <= close
