"""A tiny random model of every family that has a layout, from its own configuration and tokenizer classes.

Each has what is particular about its family: grouped queries, a tied head, biases, attention beside the MLP, norms
around it, a soft cap on the logits, more embeddings than tokens, tokens added later, no pad token or one that is `eos`.
"""

import json
from dataclasses import dataclass, field

import torch
import transformers
from tiny import D_FF, D_MODEL, N_LAYERS, SENTENCES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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
PIECES = ("<unk>", "<s>", "</s>")
FAMILIES = {
    "llama": Family("Llama", "LlamaTokenizer", PIECES, "marks", {**GROUPED}, bos=True),
    "llama3": Family(  # byte-level with a BOS, and a head that is the embeddings
        "Llama",
        "PreTrainedTokenizerFast",
        ("<|begin_of_text|>", "<|end_of_text|>"),
        config={**GROUPED, "tie_word_embeddings": True},
        tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        bos=True,
    ),
    "mistral": Family("Mistral", "LlamaTokenizer", PIECES, "marks", {**GROUPED, "sliding_window": 4096}, bos=True),
    "qwen2": Family(  # pad = eos, tokens of chats, embeddings to spare
        "Qwen2", "Qwen2Tokenizer", END, config={**GROUPED, "tie_word_embeddings": True}, added=(*CHAT,), room=7
    ),
    "qwen3": Family("Qwen3", "Qwen2Tokenizer", END, config={**GROUPED, "head_dim": 12}, added=(*CHAT,)),
    "gemma": Family(
        "Gemma",
        "GemmaTokenizer",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
        "marks",
        {**GROUPED, "num_key_value_heads": 1, "head_dim": 12},
        bos=True,
    ),
    "gpt2": Family("GPT2", "GPT2Tokenizer", END, config={"n_head": 4}),
    "gptj": Family(  # no pad token, extra tokens
        "GPTJ", "GPT2Tokenizer", END, config={"n_head": 4, "rotary_dim": 4}, added=("<|extratoken_1|>",), room=5
    ),
    "gpt_neox": Family(
        "GPTNeoX",
        "GPTNeoXTokenizer",
        (*END, "<|padding|>"),
        config={"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
}
NORMED = {  # a norm stands between the MLP and the stream
    "gemma2": Family(
        "Gemma2",
        "GemmaTokenizer",
        FAMILIES["gemma"].special,
        "marks",
        {**GROUPED, "head_dim": 12, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 12},
        bos=True,
    ),
    "gemma3": Family(
        "Gemma3Text",
        "GemmaTokenizer",
        FAMILIES["gemma"].special,
        "marks",
        {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window_pattern": 2},
        bos=True,
    ),
}
FAST = "PreTrainedTokenizerFast"
ENDS = {"bos_token": END[0], "eos_token": END[0]}
LIKE_GPT2 = {"tokenizer": "GPT2Tokenizer", "special": END}
FURTHER = {  # nothing of their own but the layers: their tokenizers are of the kinds above
    "phi3": Family("Phi3", **LIKE_GPT2, config=GROUPED),
    "ministral3": Family("Ministral3", **LIKE_GPT2, config={**GROUPED, "head_dim": 8}),
    "olmo": Family("Olmo", **LIKE_GPT2, config={**GROUPED, "clip_qkv": 2.0}),
    "olmo2": Family("Olmo2", **LIKE_GPT2, config=GROUPED),
    "olmo3": Family("Olmo3", **LIKE_GPT2, config={**GROUPED, "sliding_window": 6}),
    "smollm3": Family("SmolLM3", **LIKE_GPT2, config={**GROUPED, "no_rope_layer_interval": 2}),
    "stablelm": Family("StableLm", **LIKE_GPT2, config={**GROUPED, "use_qkv_bias": True}),
    "stablelm side by side": Family(
        "StableLm", **LIKE_GPT2, config={**GROUPED, "use_parallel_residual": True, "qk_layernorm": True}
    ),
    "granite": Family(
        "Granite",
        **LIKE_GPT2,
        config={
            **GROUPED,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
        },
    ),
    "cohere": Family("Cohere", **LIKE_GPT2, config={**GROUPED, "logit_scale": 0.25}),
    "cohere2": Family(
        "Cohere2", **LIKE_GPT2, config={**GROUPED, "logit_scale": 0.25, "sliding_window": 6, "head_dim": 8}
    ),
    "glm": Family("Glm", **LIKE_GPT2, config={**GROUPED, "head_dim": 8}),
    "glm4": Family("Glm4", **LIKE_GPT2, config={**GROUPED, "head_dim": 8}),
    "starcoder2": Family("Starcoder2", **LIKE_GPT2, config={**GROUPED, "sliding_window": 6}),
    "falcon": Family("Falcon", **LIKE_GPT2, config={"num_attention_heads": 4, "ffn_hidden_size": D_FF}),
    "falcon grouped": Family(
        "Falcon",
        **LIKE_GPT2,
        config={
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "ffn_hidden_size": D_FF,
            "bias": True,
        },
    ),
    "falcon alibi": Family(
        "Falcon",
        **LIKE_GPT2,
        config={"num_attention_heads": 4, "alibi": True, "parallel_attn": False, "ffn_hidden_size": D_FF},
    ),
    "opt": Family("OPT", **LIKE_GPT2, config={"num_attention_heads": 4, "ffn_dim": D_FF, "dropout": 0.0}),
    "bloom": Family("Bloom", **LIKE_GPT2, config={"hidden_size": D_FF // 4, "n_layer": N_LAYERS, "n_head": 4}),
    "llama4": Family(
        "Llama4Text",
        **LIKE_GPT2,
        config={
            **GROUPED,
            "head_dim": 8,
            "intermediate_size_mlp": D_FF,
            "moe_layers": [],
            "attention_chunk_size": 6,
            "no_rope_layer_interval": 2,
        },
    ),
    "gemma4": Family(
        "Gemma4Text",
        **LIKE_GPT2,
        config={
            **GROUPED,
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
            "final_logit_softcapping": 3.0,
        },
    ),
}
EVERY = {**FAMILIES, **NORMED}
ALL = {**EVERY, **FURTHER}


def tokenizer(name):
    family = ALL[name]
    vocabulary, merges = _learned(family)
    begins = {"add_bos_token": True} if family.bos else {}
    if family.tokenizer == "PreTrainedTokenizerFast":
        backend = _byte_level(models.BPE(vocab=vocabulary, merges=merges))
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **begins, **family.tokens)
    else:
        made = getattr(transformers, family.tokenizer)(vocab=vocabulary, merges=merges, **begins, **family.tokens)
    if family.added:
        made.add_tokens([transformers.AddedToken(token, special=True) for token in family.added])
    return made


def _learned(family):
    """Vocabulary and merges, as such a tokenizer would have learned them from the sentences."""
    if family.words == "marks":
        learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        learner.normalizer = normalizers.Replace(" ", "▁")
        learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        trainer = trainers.BpeTrainer(
            vocab_size=560, special_tokens=[*family.special, *BYTES], show_progress=False, limit_alphabet=90
        )
    else:
        learner = _byte_level(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=450, special_tokens=list(family.special), show_progress=False, initial_alphabet=alphabet
        )
    learner.train_from_iterator([" " + line for line in SENTENCES.splitlines()], trainer)
    learned = json.loads(learner.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


def _byte_level(bpe):
    words = Tokenizer(bpe)
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return words


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
    gemma = family.model.startswith("Gemma")  # its norms multiply by 1 + weight, its embeddings by √d
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64)
            if parameter.dim() == 1:
                parameter.copy_(noise / 5 + (1 if parameter_name.endswith("weight") and not gemma else 0))
            else:
                head = parameter.shape[0] == vocabulary + family.room
                parameter.copy_(noise / D_MODEL**0.5 * (4 if head and not gemma else 1))
    return made


def save(name, folder, dtype=torch.float64, **also):
    words = tokenizer(name)
    words.save_pretrained(folder)
    model(name, len(words), dtype, **also).save_pretrained(folder)
    return folder
