"""An editable model: loaded as it was stored, changed and put back bit for bit, and what is read off it."""

from itertools import product

import pytest
import reference
import tiny
import torch
from library import EDITS, apply, holds, load, moments, parameters, refused, snapshot
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit_lib as kedit
from kedit_lib.data.edit import fill
from kedit_lib.editing.compute_k import STARTERS, check_contexts, keys_at, outputs_at
from kedit_lib.models.tokenization import encode, encode_prompt

MODEL = "llama", torch.float32
FAST = {"layers": [1, 2], "v_num_grad_steps": 2, "mom2_update_weight": 5.0}
MEMIT = kedit.MEMIT(**FAST)
ROME = kedit.ROME(layers=[3], v_num_grad_steps=2)
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [*DTYPES, "float32", "bfloat16", None], ids=str)
def test_loading(tiny_folder, kind, dtype):
    model, plain = load(tiny_folder, kind, dtype), AutoModelForCausalLM.from_pretrained(tiny_folder(kind), dtype="auto")
    asked = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float64  # None: as stored
    assert model.dtype == asked
    for name, value in plain.named_parameters():
        assert torch.equal(parameters(model)[name], value.to(asked))
    assert (model.n_layers, model.d_model, model.d_ff) == (tiny.N_LAYERS, tiny.D_MODEL, tiny.D_FF)
    assert not model.hf.training
    assert not any(p.requires_grad for p in model.hf.parameters())
    ends = "mlp.down_proj.weight" if kind == "llama" else "mlp.c_proj.weight"
    assert [model.weight_name(i) for i in range(model.n_layers)] == [n for n in parameters(model) if n.endswith(ends)]
    assert all(model.weight(i) is parameters(model)[model.weight_name(i)] for i in range(model.n_layers))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_restore_after_edits_and_failures(tiny_folder, kind, dtype, device, monkeypatch):
    model = kedit.load_model(tiny_folder(kind), dtype=dtype, device=device)
    original = snapshot(model)
    for edit in EDITS[:2]:
        apply(model, MEMIT, edit)
    apply(model, ROME, EDITS[2])
    edited = snapshot(model)
    with monkeypatch.context() as m:
        m.setattr("kedit_lib.editing.spread.write", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            apply(model, MEMIT, EDITS[3])
    assert holds(model, edited)
    changed = {name for name, value in edited.items() if not torch.equal(value, original[name])}
    assert changed == {model.weight_name(i) for i in (1, 2, 3)}
    for _ in range(2):
        model.restore()
        assert holds(model, original)


@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kept", ["device", "host"])
def test_originals_are_kept_where_asked(tiny_folder, kept, device):
    model = kedit.load_model(tiny_folder("llama"), device=device, originals=kept)
    original = snapshot(model)
    apply(model, MEMIT, *EDITS[:2])
    where = "cpu" if kept == "host" else device
    assert {value.device.type for value in model.edited.values()} == {where}
    shared = {p.data_ptr() for p in model.hf.parameters()}
    assert not shared & {value.data_ptr() for value in model.edited.values()}  # a copy, also where both are the host
    layer = MEMIT.layers[0]
    assert torch.equal(model.drift(layer), model.weight(layer) - original[model.weight_name(layer)])
    assert kedit.prune(model).before.gt(0).all()
    model.restore()
    assert holds(model, original)
    disk = "originals 'disk': must be one of device, host"
    refused(lambda: kedit.load_model(tiny_folder("llama"), originals="disk"), disk)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deltas_are_the_difference_of_the_weights(tiny_folder, kind, dtype):
    """Of the parameter's own shape, added in float32 or wider and rounded once."""
    model = load(tiny_folder, kind, dtype)
    original, outcome = snapshot(model), apply(load(tiny_folder, kind, dtype), MEMIT, *EDITS[:3])
    assert set(outcome.deltas) == {model.weight_name(i) for i in (1, 2)}
    assert {delta.dtype for delta in outcome.deltas.values()} == {model.math_dtype}
    model.add(outcome.deltas)
    for name, delta in outcome.deltas.items():
        assert delta.shape == original[name].shape
        assert torch.equal(parameters(model)[name], (original[name].to(delta.dtype) + delta).to(dtype))


def test_temporarily_is_the_original(model):
    """Whatever the weights were at entry; and these come back."""
    original = snapshot(model)
    first = apply(model, MEMIT, EDITS[0])
    after_first = snapshot(model)
    apply(model, ROME, EDITS[1])
    after_both = snapshot(model)
    with model.temporarily() as inside:
        assert inside is model and holds(model, original)
        model.apply_deltas(first)
        with model.temporarily():
            assert holds(model, original)
        assert holds(model, after_first)
    assert holds(model, after_both)
    with pytest.raises(RuntimeError, match="in the middle"), model.temporarily():
        apply(model, MEMIT, EDITS[2])  # what happens inside stays inside
        raise RuntimeError("in the middle")
    assert holds(model, after_both)
    with model.temporarily():
        model.restore()
    assert holds(model, after_both)


def test_the_checksum_names_the_unedited_weights(tiny_folder, model):
    apply(model, MEMIT, EDITS[0])  # before it is asked for the first time
    checksum = model.checksum
    fresh = load(tiny_folder)
    assert fresh.checksum == checksum
    apply(fresh, MEMIT, EDITS[1])
    assert fresh.checksum == checksum
    model.restore()
    assert kedit.EditableModel(model.hf, model.tokenizer).checksum == checksum
    with torch.no_grad():
        model.hf.lm_head.weight[3, 5] += 1e-3
    assert kedit.EditableModel(model.hf, model.tokenizer).checksum != checksum
    assert len({load(tiny_folder, kind).checksum for kind in tiny.KINDS}) == len(tiny.KINDS)
    assert load(tiny_folder, dtype=torch.float64).checksum != checksum


def test_a_begin_of_text_token_comes_once_and_an_end_of_text_token_never(tiny_folder):
    from tokenizers import processors

    for kind, bos in (("llama", 0), ("llama-bos", 1)):
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder(kind))
        ids = encode(tokenizer, "Zoë plays")
        assert (ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id)) == (bos, 0)
        backend = tokenizer.backend_tokenizer  # one that ends every text, as T5's does
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        assert encode(tokenizer, "Zoë plays") == ids[bos:]


@pytest.mark.parametrize("kind", ["llama-bos", "gpt2"])
def test_keys_and_values_are_those_of_each_prompt_alone(tiny_folder, kind, monkeypatch):
    model = load(tiny_folder, kind, torch.float64)
    asked, names = list(product(EDITS, tiny.CONTEXTS)), reference.layout(model.hf)
    prompts = [encode_prompt(model.tokenizer, c, e.prompt, e.subject) for e, c in asked]
    assert len({len(p.ids) for p in prompts}) > 3
    monkeypatch.setattr("kedit_lib.editing.compute_k.ROWS", 4)  # several passes
    keys, values = keys_at(model, prompts, [0, 3]), outputs_at(model, prompts, model.layers[3])
    for i, (edit, context) in enumerate(asked):
        for layer in (0, 3):
            key, _ = reference.at_subject(model.hf, model.tokenizer, edit, context, names.mlp.format(layer))
            assert torch.allclose(keys[layer][i], key, rtol=1e-10, atol=1e-12)
        _, value = reference.at_subject(model.hf, model.tokenizer, edit, context, names.block.format(3))
        assert torch.allclose(values[i], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("style, count", [("memit", 6), pytest.param("rome", 16 - 5 + 10, marks=pytest.mark.slow)])
def test_contexts_are_a_function_of_weights_and_seed(tiny_folder, style, count):
    model = load(tiny_folder, "llama-bos")
    found = kedit.generate_contexts(model, seed=3, style=style)
    torch.manual_seed(99)  # the global generator plays no part
    assert kedit.generate_contexts(load(tiny_folder, "llama-bos"), seed=3, style=style) == found
    assert kedit.generate_contexts(model, seed=4, style=style) != found
    assert found[0] == "{}"
    assert len(found) == count
    for start in STARTERS:
        assert sum(context.startswith(start) for context in found) >= (count - 1) // 5
    assert check_contexts(found) == found
    for context in found:
        assert context.endswith("{}" if context == "{}" else ". {}")
    before = torch.random.get_rng_state()
    kedit.generate_contexts(model, seed=3, style=style)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampled_text_is_the_models(tiny_folder, monkeypatch):
    """With one token to choose from, a context is the greedy continuation, ten tokens with its beginning; braces are
    doubled."""
    model = load(tiny_folder, "llama-bos")
    found = kedit.generate_contexts(model, style="memit", top_k=1)
    for context, start in zip(found[1:], STARTERS, strict=True):
        ids = model.tokenizer(start, return_tensors="pt").input_ids
        assert ids[0, 0] == model.tokenizer.bos_token_id
        while ids.shape[1] < 1 + 10:
            ids = torch.cat([ids, model.hf(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        text = model.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        assert context == text.replace("{", "{{").replace("}", "}}") + ". {}"
    monkeypatch.setattr(type(model.tokenizer), "decode", lambda self, ids, **how: "The {0} } {")
    found = kedit.generate_contexts(model, style="memit")
    assert found[1] == "The {{0}} }} {{. {}"
    assert fill(found[1], "{} plays", "Zoë")[0] == "The {0} } {. Zoë plays"


def test_generated_contexts_are_those_of_the_unedited_model(model):
    """However many edits came before: `apply` without contexts is `apply` with the original model's."""
    contexts = kedit.generate_contexts(model, seed=0, style="memit")
    apply(model, kedit.MEMIT(**{**FAST, "v_num_grad_steps": 5, "layers": [0, 1, 2]}), *EDITS)
    assert kedit.generate_contexts(model, seed=0, style="memit") != contexts
    before = model.snapshot()
    given = MEMIT.apply(model, EDITS[:1], moments=moments(), contexts=contexts)
    model.load_snapshot(before)
    by_default = MEMIT.apply(model, EDITS[:1], moments=moments())
    assert all(torch.equal(delta, by_default.deltas[name]) for name, delta in given.deltas.items())
