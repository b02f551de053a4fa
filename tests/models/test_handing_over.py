"""A model as people hand it over: by keyword, wrapped, with adapters, quantised, spread out, without a tokenizer."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import tiny
import torch
import transformers
from library import refused

import kedit_lib as kedit
from kedit_lib import __main__ as commands

FACTS = Path(__file__).parents[2] / "params" / "examples" / "chinese.jsonl"
EDIT = kedit.Edit(*tiny.EDITS[4])
ROME = kedit.ROME(layers=[1], mom2_adjustment=False, v_num_grad_steps=2)


@pytest.fixture
def plain(tiny_model):
    """A fresh model of transformers and its tokenizer."""
    made = tiny_model("llama")
    return made.model.float(), made.tokenizer


@pytest.mark.parametrize(
    "device", [0, "0", "cpu", "cpu:0", torch.device("cpu"), None, -1, 99, "gpu", 1.5, "meta"], ids=repr
)
def test_any_device_that_torch_takes_and_no_other(tiny_folder, device):
    """0 is the first GPU."""
    kind = "cuda" if device in (0, "0") else "cpu"
    if device in (-1, 99, "gpu", 1.5, "meta") or (kind == "cuda" and not torch.cuda.is_available()):
        refused(lambda: kedit.load_model(tiny_folder("llama"), device=device), f"device {device!r}")
    else:
        assert kedit.load_model(tiny_folder("llama"), device=device).device.type == kind


def test_the_words_of_from_pretrained(tiny_folder):
    given = {"torch_dtype": torch.bfloat16, "device_map": "cpu", "revision": "main", "attn_implementation": "eager"}
    model = kedit.load_model(tiny_folder("llama"), **given)
    assert model.dtype == torch.bfloat16 and model.hf.config._attn_implementation == "eager"
    assert kedit.load_model(tiny_folder("llama"), dtype="auto", device_map="auto").dtype == torch.float64
    for command in (commands.check_model, commands.edit, commands.stream, commands.evaluate):
        assert inspect.signature(command).parameters["trust_remote_code"].default is False


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"load_in_4bit": True}, "quantised weights cannot be edited"),
        ({"attn_implementation": "flash_attention_2"}, "eager or sdpa"),
        ({"dtipe": "float32"}, "takes no dtipe, did you mean dtype; there are dtype, device"),
        ({"revison": "main"}, "takes no revison, did you mean revision; there are"),
        ({"trust_remote": True}, "takes no trust_remote, did you mean trust_remote_code; there are"),
        ({"colour": "red"}, "takes no colour; there are dtype"),
        ({"low_cpu_mem_usage": True}, "takes no low_cpu_mem_usage"),
    ],
)
def test_words_that_cannot_be_taken(tiny_folder, given, says):
    refused(lambda: kedit.load_model(tiny_folder("llama"), **given), says)


def test_code_that_a_folder_brings_is_asked_for_by_name(tmp_path):
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    says = ["if you have read that code", "trust_remote_code=True", "--trust-remote-code"]
    refused(lambda: kedit.load_model(tmp_path), *says)


WRAPPED = {
    "plain": lambda hf: hf,
    "compiled": torch.compile,
    "both": lambda hf: torch.compile(torch.nn.DataParallel(hf)),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_model_in_hand_is_edited_whatever_wraps_it(plain, how):
    """The weights that change are its own, and it is called as it was loaded."""
    hf, tokenizer = plain
    before = hf.model.layers[1].mlp.down_proj.weight.clone()
    model = kedit.EditableModel(WRAPPED[how](hf), tokenizer)
    outcome = ROME.apply(model, [EDIT], contexts=["{}"])
    (delta,) = outcome.deltas.values()
    torch.testing.assert_close(hf.model.layers[1].mlp.down_proj.weight - before, delta, rtol=0, atol=1e-5)
    assert model.name == hf.config._name_or_path


def test_models_without_a_name_do_not_share_one(plain):
    """Their parameter files would be one."""
    hf, tokenizer = plain
    hf.config._name_or_path = ""
    one = kedit.EditableModel(hf, tokenizer).name
    with torch.no_grad():
        hf.lm_head.weight[0, 0] += 1
    assert one.startswith("model-") and kedit.EditableModel(hf, tokenizer).name != one


def test_what_is_no_editable_model_is_told_to_be_wrapped(plain):
    hf, _ = plain
    wrap = "kedit.EditableModel(model, tokenizer)"
    refused(lambda: ROME.apply(hf, [EDIT]), "ROME", "LlamaForCausalLM", wrap)
    refused(lambda: kedit.SecondMoments.estimate(hf, ["a"], [1]), "moments", wrap)
    refused(lambda: kedit.check_model(hf), "check_model", wrap)
    refused(lambda: ROME.apply("lab", [EDIT]), "a str is not an EditableModel", "kedit.load_model")
    refused(lambda: kedit.known_edits(hf, [EDIT]), "known_edits", wrap)
    refused(lambda: kedit.generate_contexts(hf), "generate_contexts", wrap)
    refused(lambda: kedit.load_edits(FACTS, model=hf), "load_edits", wrap)
    refused(lambda: kedit.load_edits(FACTS, model="lab"), "load_edits", "kedit.load_model")
    refused(lambda: kedit.load_edits("world", hf), "load_edits", wrap)
    refused(lambda: kedit.load_edits("lab", hf), "load_edits", wrap)
    refused(lambda: kedit.lab_probes(hf, [EDIT]), "lab", wrap)
    refused(lambda: kedit.ask(hf, EDIT), "ask", wrap)
    refused(lambda: kedit.run_stream(hf, [EDIT], ROME, progress=False), "ROME", wrap)
    refused(lambda: ROME.contexts(hf), "ROME", wrap)
    refused(lambda: kedit.MEMIT(layers=[1], use_history=True).new_history(hf, keep=[EDIT]), "MEMIT", wrap)
    refused(lambda: kedit.anchor_norm(hf, ROME, [EDIT]), "anchor norm", wrap)
    refused(lambda: kedit.prune(hf), "prune", wrap)
    refused(lambda: kedit.method_for(hf, "memit"), "method_for", wrap)
    refused(lambda: kedit.transfer("memit", "Llama-2-7b-hf", hf), "transfer", wrap)
    refused(lambda: kedit.load_model(hf), "must be text or a path, not a LlamaForCausalLM", wrap)
    refused(lambda: kedit.EditableModel(hf), "without its tokenizer")
    refused(lambda: kedit.EditableModel(hf.model, plain[1]), "a LlamaModel is not a causal language model")
    refused(lambda: kedit.EditableModel(*reversed(plain)), "is not a causal language model")


def test_weights_that_are_not_all_in_memory(plain, tiny_folder, tmp_path):
    hf, tokenizer = plain
    hf.model.layers[1].to("meta")
    refused(lambda: kedit.EditableModel(hf, tokenizer), "meta", "devices that hold all of it")
    spread = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    spread |= {f"model.layers.{i}": "disk" if i == 4 else "cpu" for i in range(tiny.N_LAYERS)}
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder("llama"), device_map=spread, offload_folder=tmp_path
    )
    refused(lambda: kedit.EditableModel(hf, tokenizer), "on disk", "devices that hold all of it")


def test_an_adapter_is_refused_until_it_is_merged(plain, tmp_path):
    """An edit of a model with one is lost on saving: peft saves the adapter alone."""
    hf, tokenizer = plain
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(hf, config)
    refused(lambda: kedit.EditableModel(adapted, tokenizer), "adapter", "merge_and_unload")
    adapted.save_pretrained(tmp_path)
    refused(lambda: kedit.load_model(tmp_path), "is a PEFT adapter, not a full model", "merge_and_unload")
    (tmp_path / "adapter_config.json").unlink()
    refused(lambda: kedit.load_model(tmp_path), "is a PEFT adapter, not a full model", "merge_and_unload")
    adapted.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(hf.config._name_or_path)
    again.load_adapter(str(tmp_path))
    refused(lambda: kedit.EditableModel(again, tokenizer), "adapter", "merge_and_unload")
    model = kedit.EditableModel(adapted.merge_and_unload(), tokenizer)
    ROME.apply(model, [EDIT], contexts=["{}"])
    model.save_pretrained(tmp_path / "merged")
    ids = torch.arange(7)[None]
    saved = kedit.load_model(tmp_path / "merged").hf(input_ids=ids).logits
    torch.testing.assert_close(saved, model.hf(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_a_weight_that_a_folder_lacks_is_not_made_up(plain, copied):
    """transformers would fill it with random numbers."""
    name = "model.layers.2.mlp.down_proj.weight"
    plain[0].save_pretrained(copied, state_dict={n: w for n, w in plain[0].state_dict().items() if n != name})
    says = "1 weights are not in its files", name, "save the whole model again"
    refused(lambda: kedit.load_model(copied), *says)


def test_a_token_that_is_not_embedded_is_one_line(plain):
    """Added to the tokenizer alone, as is often forgotten in fine-tuning; elsewhere it does no harm."""
    hf, tokenizer = plain
    model, rows = kedit.EditableModel(hf, tokenizer), len(tokenizer)
    tokenizer.add_tokens(["Qwertz"])
    says = f"token {rows}, of which the model has no embedding (it has 0 to {rows - 1})", "resize_token_embeddings"
    for edit in (kedit.Edit("{} plays the", "Qwertz", "organ"), kedit.Edit("{} plays the", "Ana", "Qwertz")):
        refused(lambda edit=edit: ROME.apply(model, [edit], contexts=["{}"]), *says)
        refused(
            lambda edit=edit: kedit.known_edits(model, [replace(edit, target_new="organ", target_true="Qwertz")]), *says
        )
    ROME.apply(model, [EDIT], contexts=["{}"])
    model.restore()
    hf.resize_token_embeddings(len(tokenizer))
    ROME.apply(model, [edit], contexts=["{}"])


def test_a_folder_that_is_not_there(tmp_path):
    for gone in (tmp_path / "gone", "./gone", "../models/gone"):
        refused(lambda gone=gone: kedit.load_model(gone), "gone'", "there is no such folder", "owner/name")


@pytest.mark.parametrize("first", ["shards", "one file", "an adapter"])
def test_saving_leaves_no_weights_of_before(plain, tmp_path, first):
    """Old shards, or an old single file beside new shards, would be loaded instead; what is not weights stays."""
    hf, tokenizer = plain
    if first == "an adapter":
        (tmp_path / "adapter_config.json").write_text("{}")
    hf.save_pretrained(tmp_path, max_shard_size="20KB" if first == "shards" else "5GB")
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "deltas.safetensors").write_text("an edit")
    model = kedit.EditableModel(hf, tokenizer)
    ROME.apply(model, [EDIT], contexts=["{}"])
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name.startswith(("model", "adapter"))} == {"model.safetensors"}
    assert {"notes.md", "deltas.safetensors"} <= names
    again = kedit.load_model(tmp_path)
    assert torch.equal(again.weight(1), model.weight(1))


def test_what_other_programs_cannot_save_or_load(plain, tmp_path):
    """A temperature without sampling in generation_config.json (Llama-2-chat); a head of its own that the configuration
    calls tied (vocabularies extended in fine-tuning)."""
    hf, tokenizer = plain
    hf.config.tie_word_embeddings = True
    hf.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    (tmp_path / "chat" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6}')
    model = kedit.load_model(tmp_path / "chat")
    ROME.apply(model, [EDIT], contexts=["{}"])
    model.save_pretrained(tmp_path / "edited")
    ids, again = torch.arange(7)[None], kedit.load_model(tmp_path / "edited")
    assert torch.equal(again.hf(input_ids=ids).logits, model.hf(input_ids=ids).logits)
    assert again.hf.generation_config.temperature == 0.9
    model.hf.generation_config.temperature = 0.8
    refused(lambda: model.save_pretrained(tmp_path / "no"), "`do_sample` is not set", "change hf.generation_config")
    assert not list(tmp_path.glob("*no*"))


PACKED = {
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq, 4 bits": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8"},
}


def test_quantised_weights_are_refused_in_a_folder_and_in_hand(plain, copied):
    """Whatever the configuration says: packed 4-bit weights are uint8 of one column."""
    hf, tokenizer = plain
    config = json.loads((copied / "config.json").read_text())
    for said, packed in PACKED.items():
        (copied / "config.json").write_text(json.dumps({**config, "quantization_config": packed}))
        says = f"quantised ({said})", "load the model that was quantised"
        refused(lambda: kedit.load_model(copied), *says)
    hf.config.quantization_config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    refused(lambda: kedit.EditableModel(hf, tokenizer), "quantised (bitsandbytes, 4 bits)")
    del hf.config.quantization_config
    down = hf.model.layers[2].mlp.down_proj
    for dtype in (torch.uint8, torch.float8_e4m3fn):
        packed = torch.zeros(down.weight.numel() // 2, 1).to(dtype)
        down.weight = torch.nn.Parameter(packed, requires_grad=False)
        says = "model.layers.2.mlp.down_proj.weight", str(dtype)
        refused(lambda: kedit.EditableModel(hf, tokenizer), *says)
