"""A tiny random model of every family that has a layout, from its own configuration and tokenizer classes.

Each has what is particular about its family: grouped queries, a tied head, biases, attention beside the MLP, norms
around it, a soft cap on the logits, more embeddings than tokens, tokens added later, no pad token or one that is `eos`.
"""

import json
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from tiny import D_FF, D_MODEL, LINES, N_LAYERS, byte_level, randomised
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # what a sentencepiece model falls back to
CHAT = ["<|im_start|>", "<|im_end|>"]
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Family:
    """Names of transformers' classes; `special` stands first in the vocabulary; `added` comes behind it later."""

    model: str
    tokenizer: str
    special: tuple[str, ...]
    words: str = "bytes"  # "bytes": GPT-2's byte-level BPE; "marks": sentencepiece's BPE over words with a ▁
    config: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)  # arguments of the tokenizer
    added: tuple[str, ...] = ()
    room: int = 0  # embeddings that no token has
    bos: bool = False  # whether texts begin with one


END = ("<|endoftext|>",)
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>")
PIECES = ("<unk>", "<s>", "</s>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
HALF = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
FAMILIES = {
    "llama": Family("Llama", "LlamaTokenizer", PIECES, "marks", {**GROUPED}, bos=True),
    "llama3": Family(  # byte-level with a BOS, and a head that is the embeddings
        *("Llama", "PreTrainedTokenizerFast", LLAMA3, "bytes", {**GROUPED, "tie_word_embeddings": True}),
        tokens=dict(zip(("bos_token", "eos_token"), LLAMA3, strict=True)),
        bos=True,
    ),
    "mistral": Family("Mistral", "LlamaTokenizer", PIECES, "marks", {**GROUPED, "sliding_window": 4096}, bos=True),
    "qwen2": Family(  # pad = eos, tokens of chats, embeddings to spare
        "Qwen2", "Qwen2Tokenizer", END, config={**GROUPED, "tie_word_embeddings": True}, added=(*CHAT,), room=7
    ),
    "qwen3": Family("Qwen3", "Qwen2Tokenizer", END, config={**GROUPED, "head_dim": 12}, added=(*CHAT,)),
    "gemma": Family(
        "Gemma", "GemmaTokenizer", GEMMA, "marks", {**GROUPED, "num_key_value_heads": 1, "head_dim": 12}, bos=True
    ),
    "gpt2": Family("GPT2", "GPT2Tokenizer", END, config={"n_head": 4}),
    "gptj": Family(  # no pad token, extra tokens
        "GPTJ", "GPT2Tokenizer", END, config={"n_head": 4, "rotary_dim": 4}, added=("<|extratoken_1|>",), room=5
    ),
    "gpt_neox": Family("GPTNeoX", "GPTNeoXTokenizer", (*END, "<|padding|>"), config={"num_attention_heads": 4, **HALF}),
}
WIDE = {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 12}
NORMED = {  # a norm stands between the MLP and the stream
    name: Family(model, "GemmaTokenizer", GEMMA, "marks", {**WIDE, **config}, bos=True)
    for name, model, config in (
        ("gemma2", "Gemma2", {"final_logit_softcapping": 3.0}),
        ("gemma3", "Gemma3Text", {"sliding_window_pattern": 2}),
    )
}


def like_gpt2(model, grouped=True, **config):
    """Nothing of its own but the layers; the tokenizer is GPT-2's."""
    heads = GROUPED if grouped else {"num_attention_heads": 4}
    return Family(model, "GPT2Tokenizer", END, config={**heads, **config})


LLAMA4 = {"head_dim": 8, "intermediate_size_mlp": D_FF, "moe_layers": []}
GEMMA4 = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "sliding_window": 6}
GEMMA4["layer_types"] = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
GRANITE = {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.3}
NEW_FALCON = {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": True}
FURTHER = {
    "phi3": like_gpt2("Phi3"),
    "ministral3": like_gpt2("Ministral3", head_dim=8),
    "olmo": like_gpt2("Olmo", clip_qkv=2.0),
    "olmo2": like_gpt2("Olmo2"),
    "olmo3": like_gpt2("Olmo3", sliding_window=6),
    "smollm3": like_gpt2("SmolLM3", no_rope_layer_interval=2),
    "stablelm": like_gpt2("StableLm", use_qkv_bias=True),
    "stablelm side by side": like_gpt2("StableLm", use_parallel_residual=True, qk_layernorm=True),
    "granite": like_gpt2("Granite", logits_scaling=4.0, **GRANITE),
    "cohere": like_gpt2("Cohere", logit_scale=0.25),
    "cohere2": like_gpt2("Cohere2", logit_scale=0.25, sliding_window=6, head_dim=8),
    "glm": like_gpt2("Glm", head_dim=8),
    "glm4": like_gpt2("Glm4", head_dim=8),
    "starcoder2": like_gpt2("Starcoder2", sliding_window=6),
    "falcon": like_gpt2("Falcon", grouped=False, ffn_hidden_size=D_FF),
    "falcon grouped": like_gpt2("Falcon", grouped=False, ffn_hidden_size=D_FF, **NEW_FALCON),
    "falcon alibi": like_gpt2("Falcon", grouped=False, alibi=True, parallel_attn=False, ffn_hidden_size=D_FF),
    "opt": like_gpt2("OPT", grouped=False, ffn_dim=D_FF, dropout=0.0),
    "bloom": Family("Bloom", "GPT2Tokenizer", END, config={"hidden_size": D_FF // 4, "n_layer": N_LAYERS, "n_head": 4}),
    "llama4": like_gpt2("Llama4Text", attention_chunk_size=6, no_rope_layer_interval=2, **LLAMA4),
    "gemma4": like_gpt2("Gemma4Text", final_logit_softcapping=3.0, **GEMMA4),
}
EVERY = {**FAMILIES, **NORMED}
ALL = {**EVERY, **FURTHER}
FAST = {"llama3", "qwen2", "gptj", "gemma2"}  # one of each kind; the others are marked slow


def marked(names):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


FLOAT32_INSIDE = {"gptj", "gemma2", "bloom"}  # attention in float32, whatever the weights are


def tokenizer(name):
    family = ALL[name]
    vocabulary, merges = _learned(family)
    begins = {"add_bos_token": True} if family.bos else {}
    if family.tokenizer == "PreTrainedTokenizerFast":
        backend = byte_level(450, ())
        backend.model = models.BPE(vocab=vocabulary, merges=merges)
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **begins, **family.tokens)
    else:
        made = getattr(transformers, family.tokenizer)(vocab=vocabulary, merges=merges, **begins, **family.tokens)
    if family.added:
        made.add_tokens([transformers.AddedToken(token, special=True) for token in family.added])
    return made


def _learned(family):
    """Vocabulary and merges, as such a tokenizer would have learned them from the sentences."""
    lines = [" " + line for line in LINES]
    if family.words == "marks":
        learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        learner.normalizer = normalizers.Replace(" ", "▁")
        learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        trainer = trainers.BpeTrainer(
            vocab_size=560, special_tokens=[*family.special, *BYTES], show_progress=False, limit_alphabet=90
        )
        learner.train_from_iterator(lines, trainer)
    else:
        learner = byte_level(450, family.special, lines)
    learned = json.loads(learner.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


def model(name, vocabulary, dtype=torch.float64, **also):
    """Random weights large enough that every layer matters, biases and norms included. also: of its configuration."""
    family = ALL[name]
    torch.manual_seed(sum(map(ord, name)))
    config = getattr(transformers, f"{family.model}Config")
    if family.model in ("GPT2", "GPTJ"):
        widths = {"n_embd": D_MODEL, "n_inner": D_FF, "n_layer": N_LAYERS, "n_positions": 128}
    else:
        widths = {"hidden_size": D_MODEL, "intermediate_size": D_FF, "num_hidden_layers": N_LAYERS}
        widths["max_position_embeddings"] = 128
    given = {"vocab_size": vocabulary + family.room, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    made = AutoModelForCausalLM.from_config(config(**{**widths, **given, **family.config, **also})).to(dtype).eval()
    return randomised(made, vocabulary + family.room, family.model.startswith("Gemma"))


def save(name, folder, dtype=torch.float64, **also):
    words = tokenizer(name)
    words.save_pretrained(folder)
    model(name, len(words), dtype, **also).save_pretrained(folder)
    return folder
