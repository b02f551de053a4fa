"""Every family that has a layout, end to end: tokens, moments, and each method against the plain reference.

The models are random and tiny, of their family's own configuration and tokenizer classes (`families.py`), in float64.
GPT-J and Gemma 2 compute their attention in float32 whatever the weights are, and are held to less for it.
"""

from dataclasses import replace
from functools import cache

import families
import pytest
import reference
import test_reference
import tiny
import torch
import transformers
from library import EDITS, method, refused

import kedit_lib as kedit
from kedit_lib.data.edit import fill
from kedit_lib.evaluation import teacher_forced
from kedit_lib.models.architectures import LAYOUTS, check_type
from kedit_lib.models.causal_trace import causal_trace
from kedit_lib.models.generation import continuations
from kedit_lib.models.tokenization import encode, encode_prompt, target_ids

EVERY, ADDITIVE, FURTHER = map(families.marked, (families.EVERY, families.FAMILIES, families.FURTHER))
NORMED = {"olmo2", "olmo3", "glm4", "gemma4"}  # of the further ones
HYPER = {**tiny.HYPER, "v_num_grad_steps": 3, "L2": 2.0, "nullspace_threshold": 0.02, "mom2_adjustment": True}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(name)`: a model of that family, made once a session; `tiny_model(name)` loads from there."""
    return cache(lambda name: families.save(name, tmp_path_factory.mktemp(name)))


def test_every_layout_is_tried():
    tried = {families.model(name, 600, torch.float32).config.model_type for name in families.ALL}
    assert tried == set(LAYOUTS)


@pytest.fixture
def same(monkeypatch):
    """`same(name)`: the relative error that the reference is held to for this family."""
    return lambda name: monkeypatch.setattr(test_reference, "SAME", 1e-6 if name in families.FLOAT32_INSIDE else 1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_tokens(tiny_model, name):
    """BOS once and in front, or not at all; the subject's last token under every context; the target as it follows."""
    tokenizer, begins = tiny_model(name).tokenizer, families.EVERY[name].bos
    for prompt, subject, target in tiny.EDITS:
        edit = kedit.Edit(prompt, subject, target)
        ids, bos = encode(tokenizer, edit.text), tokenizer.bos_token_id
        assert ids.count(bos) == begins and (ids[0] == bos) is begins
        for context in tiny.CONTEXTS:
            found = encode_prompt(tokenizer, context, prompt, subject)
            before = fill(context, prompt, subject)[0][: fill(context, prompt, subject)[2]]
            until = tokenizer.decode(found.ids[: found.lookup + 1], skip_special_tokens=True)
            assert until.strip() == before
        whole = tokenizer.decode([*ids, *target_ids(tokenizer, edit.text, target)], skip_special_tokens=True)
        assert whole.strip() == f"{edit.text} {target}"


def test_a_pad_token_that_the_model_does_not_embed_does_no_harm(tiny_model):
    """Added to the tokenizer and not to the model, as is often done; rows are filled up with another."""
    model = kedit.load_model(tiny_model("llama").folder)
    prompts = [edit.prompt.format(edit.subject) for edit in EDITS]
    before = kedit.SecondMoments.estimate(model, prompts, [1]).tensors[1], said(model, prompts)
    model.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert model.tokenizer.pad_token_id >= model.hf.get_input_embeddings().num_embeddings
    assert torch.equal(kedit.SecondMoments.estimate(model, prompts, [1]).tensors[1], before[0])
    assert said(model, prompts) == before[1]


def said(model, prompts):
    return continuations(model.hf, model.tokenizer, prompts, 4)


@pytest.mark.parametrize("name", EVERY)
def test_a_pass_over_what_texts_share_scores_as_one_text_alone(tiny_model, same, name):
    same(name)
    edits = [kedit.Edit(*each) for each in tiny.EDITS]
    theirs, model = tiny_model(name), kedit.load_model(tiny_model(name).folder, dtype="float64")
    pairs = [(e.text, answer) for e in edits for answer in (e.target_new, "oboe")]
    found = teacher_forced(model, *map(list, zip(*pairs, strict=True)))
    for i, (prompt, answer) in enumerate(pairs):
        before, after = encode(theirs.tokenizer, prompt), target_ids(theirs.tokenizer, prompt, answer)
        rows = theirs.model(input_ids=torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
        each = rows.double().log_softmax(-1)[range(len(after)), list(after)]
        assert found.log_probability[i].item() == pytest.approx(each.mean().item(), rel=test_reference.SAME)
        assert found.said[i] == tuple(rows.argmax(-1).tolist())


@pytest.mark.parametrize("name", EVERY)
def test_moments(tiny_model, name):
    """In batches by length as one text after the other, and of the inputs that the plain model gives the map."""
    theirs, texts, layer, keys = tiny_model(name), tiny.LINES[:5], 2, []
    module = reference.layout(theirs.model).mlp.format(layer)
    for text in texts:
        with reference.watching(theirs.model, [module]) as seen:
            theirs.model(input_ids=torch.tensor([encode(theirs.tokenizer, text)]))
        keys.append(seen[module].input[0])
    k = torch.cat(keys)
    found = kedit.SecondMoments.estimate(kedit.load_model(theirs.folder), texts, [layer])
    assert found.about["tokens"] == len(k)
    assert torch.allclose(found.tensors[layer], k.T @ k / len(k), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EVERY + FURTHER)
def test_rome_and_pmet(tiny_model, same, name):
    """PMET's two places, the MLP's output and the attention's, stand side by side in GPT-J and GPT-NeoX."""
    same(name)
    test_reference.both(tiny_model, name, "rome", {**HYPER, "layers": [2]}, [EDITS[0]])
    test_reference.both(tiny_model, name, "pmet", HYPER, [EDITS[1]])


@pytest.mark.parametrize("name", ADDITIVE + [each for each in FURTHER if each.values[0] not in NORMED])
def test_memit(tiny_model, same, name):
    same(name)
    test_reference.both(tiny_model, name, "memit", HYPER, [EDITS[0], EDITS[4]])


@pytest.mark.parametrize("name", list(families.NORMED))
def test_a_norm_behind_the_map_leaves_no_place_for_targets_of_the_stream(tiny_folder, name, moments):
    """W k cannot be moved by a difference of the stream: RMSNorm stands between the two."""
    model, edit = kedit.load_model(tiny_folder(name)), EDITS[0]
    for method_name in ("memit", "alphaedit", "emmet", "rect"):
        apply = method(method_name, HYPER).apply
        refused(lambda f=apply: f(model, [edit], moments=moments), "post_feedforward_layernorm", "use ROME or PMET")


@pytest.mark.parametrize("name", EVERY)
def test_prompts_in_a_batch_say_what_each_says_alone(tiny_folder, name):
    model = kedit.load_model(tiny_folder(name), dtype="float32")
    prompts = [edit.prompt.format(edit.subject) for edit in EDITS]
    assert said(model, prompts) == [said(model, [prompt])[0] for prompt in prompts]


def test_tracing_shakes_gemmas_embeddings_as_large_as_they_leave_the_module(tiny_model):
    """Gemma multiplies them by √d: noise of three standard deviations of the matrix would be none."""
    model = kedit.load_model(tiny_model("gemma").folder)
    fact = [(EDITS[0].prompt, EDITS[0].subject, "French")]
    small = causal_trace(model, fact, noise=3 / tiny.D_MODEL**0.5, samples=2)
    assert not causal_trace(model, fact, noise=3.0, samples=2).effect.equals(small.effect)
    model.hf.get_input_embeddings().scalar_embed_scale = 1.0
    assert causal_trace(model, fact, noise=3.0, samples=2).effect.equals(small.effect)


def test_tracing_reads_the_first_token_that_is_more_than_a_space(tiny_model):
    """Llama-3, Qwen, Mistral and SmolLM2 write the space before a digit as a token of its own."""
    theirs = tiny_model("llama")
    model = kedit.EditableModel(theirs.model, tiny.any_text("digits"))
    apart = causal_trace(model, [("In {x}, {} was born in", "Ana", "1945")], samples=2)
    assert apart.equals(causal_trace(model, [("In {x}, {} was born in ", "Ana", "1945")], samples=2))
    assert not apart.effect.equals(causal_trace(model, [("In {x}, {} was born in", "Ana", "2945")], samples=2).effect)


EXPERTS, RECURRENT, ENCODER = "mixture of experts", "recurrent layers", "encoder"
NOT_EDITABLE = {
    **dict.fromkeys("Mixtral Qwen2Moe Qwen3Moe DeepseekV3 GptOss Llama4Text".split(), ({}, EXPERTS)),
    "GraniteMoe": ({"num_local_experts": 4}, EXPERTS),
    "Gemma4Text": ({"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}, EXPERTS),
    **dict.fromkeys("Mamba Mamba2 FalconMamba Rwkv RecurrentGemma".split(), ({}, RECURRENT)),
    "Qwen3Next": ({"num_experts": 0}, RECURRENT),
    **dict.fromkeys("Bert Roberta ModernBert T5 Bart".split(), ({}, ENCODER)),
    "OPT": ({"do_layer_norm_before": False}, "350M"),
    "Gemma4TextShared": ({"num_kv_shared_layers": 1, "hidden_size_per_layer_input": 0}, "E models"),
    "CTRL": ({}, "its layout is unknown"),
}


@pytest.mark.parametrize("name", NOT_EDITABLE)
def test_a_family_that_cannot_be_edited_is_refused_by_its_configuration(name):
    """With the reason, before any weight is read."""
    also, why = NOT_EDITABLE[name]
    config = getattr(transformers, f"{name.removesuffix('Shared')}Config")(**also)
    refused(lambda: check_type(config), repr(config.model_type), why)


def test_logits_that_are_not_the_models_own_are_one_line(tiny_model, monkeypatch):
    """What a Llama would give whose entry took another module for its norm."""
    monkeypatch.setitem(LAYOUTS, "llama", replace(LAYOUTS["llama"], norm="model.layers.0.mlp.act_fn"))
    refused(lambda: kedit.load_model(tiny_model("llama").folder), "the model's own logits", "'llama'", "LAYOUTS")
