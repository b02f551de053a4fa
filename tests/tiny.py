"""Tiny random models with tokenizers of their own, made without a network: small enough for float64 in milliseconds.

Their edits are chosen to be awkward: subjects that end in a character of several bytes, stand first or last in the
prompt, or occur in a context too; targets of one and of many tokens.
"""

import json
import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

KINDS = ("llama", "llama-bos", "llama-metaspace", "gpt2")
MOST_SLOW = [pytest.param(k, marks=() if k in ("llama", "gpt2") else pytest.mark.slow) for k in KINDS]
D_MODEL, D_FF, N_LAYERS = 32, 48, 5
SHARPNESS = 4  # of the head: enough that an edit can succeed
SENTENCES = """The mother tongue of Danielle Darrieux is French. The mother tongue of Léon Blum is French.
Ana Brown plays the violin. Ana Brown plays the oboe. Zoë Müller plays the organ. The organ is old.
The birthplace of Zoë Müller is Graz. Danielle Darrieux was born in Bordeaux. The town is a port.
Because the rain is cold, you stay at home. Therefore I read. The profession of Ana Brown is judge.
Toko Yasuda speaks English. The language of Toko Yasuda is Japanese. The judge is a friend of the farmer.
Old English and Old Norse are old. The Old Norse word is an English word.
"""
LINES = tuple(SENTENCES.splitlines()) * 3

# Hyperparameters that every method here takes: few steps, so that float64 rounding stays far below the tolerances.
HYPER = {
    "layers": [1, 2, 3],
    "v_num_grad_steps": 8,
    "v_lr": 0.5,
    "v_loss_layer": N_LAYERS - 1,
    "v_weight_decay": 1e-3,
    "clamp_norm_factor": 4.0,
    "kl_factor": 0.0625,
    "mom2_update_weight": 5.0,
}

# (prompt, subject, target_new)
EDITS = [
    ("The mother tongue of {} is", "Danielle Darrieux", "English"),
    ("{} plays the", "Zoë", "violoncello da gamba"),
    ("The birthplace of {}, it is said, is", "Toko Yasuda", "Bordeaux"),
    ("The language of {} is", "Ana Brown", "Old Norse"),
    ("You read of {}", "Léon Blum", "French"),  # nothing between subject and target: this edit can succeed
]
CONTEXTS = [
    "{}",
    "The judge is a friend. {}",
    "Danielle Darrieux was born in Bordeaux. {}",  # a subject of the edits, before the subject itself
]
BRACES = ["{}", "I read {{1}} and {{}}. {}", "{{A}} I read. {}"]  # doubled braces stand for single ones


def _learn(words, size, special, alphabet, texts=LINES):
    learning = {"vocab_size": size, "special_tokens": list(special), "initial_alphabet": alphabet}
    words.train_from_iterator(texts, trainers.BpeTrainer(**learning, show_progress=False))


def byte_level(size, special, *texts):
    """GPT-2's way of writing words, learned from some texts."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    _learn(words, size, special, pre_tokenizers.ByteLevel.alphabet(), *texts)
    return words


def _begins(words):
    """Texts begin with <s>."""
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words.token_to_id("<s>"))]
    )


def tokenizer(kind):
    """Byte-level BPE, with or without a begin-of-text token in front; or, as Llama-2 has it, BPE over words that
    carry their space as a ▁ of their own, the first word too."""
    special = ["<s>", "</s>", "<pad>"]
    if kind == "llama-metaspace":
        words = Tokenizer(models.BPE(unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        words.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet = sorted({*SENTENCES, *string.ascii_letters, *"1{}"} - set(string.whitespace))
        _learn(words, 260, [*special, "<unk>"], alphabet)
    else:
        words = byte_level(450, special)
    if kind in ("llama-bos", "llama-metaspace"):
        _begins(words)
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


ANY_TEXT = ("digits", "llama-2")


def any_text(kind):
    """A tokenizer for text of every script. "digits": byte-level BPE with every digit, and the space before it, as a
    token of its own (Llama-3, Qwen, Mistral, SmolLM2); "llama-2": a ▁ in front of every text, bytes for unknown
    signs."""
    special, bytes_ = ["<s>", "</s>"], [f"<0x{i:02X}>" for i in range(256)]
    if kind == "digits":
        words = Tokenizer(models.BPE())
        digits = pre_tokenizers.Digits(individual_digits=True)
        words.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        words.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        words = Tokenizer(models.BPE(unk_token="<s>", byte_fallback=True))
        words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        fall = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        words.decoder, alphabet, special = decoders.Sequence(fall), ["▁", *string.ascii_letters], [*special, *bytes_]
    _learn(words, len(special) + 400, special, alphabet)
    if kind == "llama-2":  # bytes are pieces of text, not special
        state = json.loads(words.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in bytes_]
        words = Tokenizer.from_str(json.dumps(state))
        _begins(words)
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


def model(kind, vocabulary):
    """Random weights large enough that every layer matters, biases included."""
    torch.manual_seed(sum(map(ord, kind)))
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if kind == "gpt2":
        config = GPT2Config(n_embd=D_MODEL, n_inner=D_FF, n_layer=N_LAYERS, n_head=4, n_positions=128, **common)
        made = GPT2LMHeadModel(config)
    else:
        shape = {"hidden_size": D_MODEL, "intermediate_size": D_FF, "num_hidden_layers": N_LAYERS}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        made = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False, **common))
    return randomised(made.double().eval(), vocabulary)


@torch.no_grad()
def randomised(made, vocabulary, gemma=False):
    """Biases around 0, norms around 1, a sharp head. gemma: its norms multiply by 1 + weight, its embeddings by √d."""
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64)
        if parameter.dim() == 1:
            parameter.copy_(noise / 5 + (name.endswith("weight") and not gemma))
        else:
            sharp = parameter.shape[0] == vocabulary and not gemma
            parameter.copy_(noise / D_MODEL**0.5 * (SHARPNESS if sharp else 1))
    return made


def save(kind, folder):
    words = tokenizer(kind)
    words.save_pretrained(folder)
    model(kind, len(words)).save_pretrained(folder)
    return folder


def second_moments(layers=range(N_LAYERS), seed=0):
    """{layer: a full-rank second moment}, float32 as they are kept on disk."""
    generator = torch.Generator().manual_seed(seed)
    samples = {layer: torch.randn(200, D_FF, generator=generator) * torch.linspace(0.2, 2, D_FF) for layer in layers}
    return {layer: X.T @ X / len(X) for layer, X in samples.items()}


def with_gap(moment, threshold):
    """The same directions, the lower half of the spectrum scaled far below the threshold and the rest far above."""
    values, directions = torch.linalg.eigh(moment.double())
    half = len(values) // 2
    low, high = values[:half] / values[half - 1] * threshold / 5, values[half:] / values[half] * threshold * 50
    return ((directions * torch.cat([low, high])) @ directions.T).float()
