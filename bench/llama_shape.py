"""What an edit costs at Llama-2-7B's shape, on a GPU: random weights in bf16, EasyEdit's hyperparameters, no download.

Random weights learn no target, so every optimisation takes all its steps: the longest an edit can take. What cannot be
known without the real model is made up and cheap: a byte-level tokenizer learned from the edits' own words, contexts of
ten of these, and as second moments a diagonal plus 64 random directions. The plain path optimises in bf16, as it has no
other precision than the model's: its seconds count here, its numbers do not.
"""

import random

import pandas as pd
import torch
from roofline import peaks
from speed import Paths, compared, device_name, line
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import kedit_lib as kedit
from kedit_lib.data.config import load_model_params

SHAPES = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 10, "num_attention_heads": 4},
}
SIZES = {"llama-2-7b": (5, 1, 1000), "tiny": (2, 1, 6)}  # single edits, of these by the plain path too, batch
SECONDS_ALONE, SECONDS_TOGETHER, GIB_OVER_WEIGHTS = 0.5, 0.1, 8  # the bars
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
OBJECTS = ["French", "German", "Old Norse", "English", "Japanese", "Latin"]
PROMPTS = ["The mother tongue of {} is", "{} was born and raised in a town where people speak", "{} writes in"]


def made_up_edits(n, seed=0):
    """Of n different people."""
    chance, people = random.Random(seed), {}
    while len(people) < n:
        first, last = ("".join(chance.choices(SYLLABLES, k=k)).title() for k in (3, 4))
        people[f"{first} {last}"] = True
    return [kedit.Edit(chance.choice(PROMPTS), name, chance.choice(OBJECTS)) for name in people]


def made_up_contexts(n, words, seed=0):
    """The clean one and n of ten words."""
    chance = random.Random(seed)
    return ["{}", *(" ".join(chance.choices(words, k=10)) + ". {}" for _ in range(n))]


def made_up_tokenizer(texts):
    words, special = Tokenizer(models.BPE()), ["<s>", "</s>", "<pad>"]
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learning = {"vocab_size": 2000, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    words.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=special, **learning))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def made_up_model(shape, tokenizer, device, dtype):
    """Random weights, made where they are used."""
    torch.manual_seed(0)
    vocabulary = 32000 if shape == "llama-2-7b" else len(tokenizer)
    config = LlamaConfig(**SHAPES[shape], vocab_size=vocabulary, tie_word_embeddings=False, pad_token_id=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            hf = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return kedit.EditableModel(hf, tokenizer, f"{shape}, random weights")


def made_up_moments(model, layers, seed=0, rank=64):
    """Full rank, on the host in float32, as measured ones are."""
    chance, d = torch.Generator().manual_seed(seed), model.d_ff
    found = {}
    for layer in layers:
        directions = torch.randn(d, rank, generator=chance) / rank**0.5
        found[layer] = (directions @ directions.T + torch.eye(d)) * 1e-2
    return kedit.SecondMoments.from_tensors(found)


def made_up_words(shape):
    """(tokenizer, edits)"""
    edits = made_up_edits(max(SIZES[shape][0] + 1, SIZES[shape][2]))
    return made_up_tokenizer([f"{e.text} {e.target_new}" for e in edits]), edits


def made_up(shape):
    """(model, edits). KeditError where there is no GPU for a large shape."""
    cuda = torch.cuda.is_available()
    if shape not in SHAPES:
        raise kedit.KeditError(f"shape {shape!r}: is unknown; there are {', '.join(SHAPES)}")
    if not cuda and shape != "tiny":
        raise kedit.KeditError(f"{shape}: no CUDA device is here; run it on one with 24 GB, or try SHAPE=tiny here")
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    tokenizer, edits = made_up_words(shape)
    return made_up_model(shape, tokenizer, device, dtype), edits


def methods_with_moments(model):
    """{name: method} with EasyEdit's hyperparameters for Llama-2-7B, and moments of their layers."""
    hyper = load_model_params("Llama-2-7b-hf")
    made = {name: kedit.method_class(name)(**hyper[name]) for name in ("memit", "pmet", "rome")}
    return made, made_up_moments(model, sorted({layer for method in made.values() for layer in method.layers}))


def large(shape, model, methods, moments, edits, batch=False):
    """The table of single edits by each method, after every row; or of a batch by MEMIT."""
    (singles, plain, together), cuda, rows = SIZES[shape], model.device.type == "cuda", []
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters()) / 2**30
    print(f"{model.name} in {model.dtype}: {weights:.2f} GiB on {device_name(model.device)}", flush=True)
    plan = [(method, 1, plain, SECONDS_ALONE) for method in methods.values()]
    if batch:
        plan = [(methods["memit"], together, 0, SECONDS_TOGETHER)]
    peak = peaks(model.device, model.dtype, size=8192 if cuda else 256)
    words = [word for e in edits[:50] for word in e.text.split()]
    for method, size, plain_edits, bar in plan:
        contexts = made_up_contexts(20 if method.context_style == "rome" else 5, words)
        batches = [edits[:size]] if size > 1 else [[e] for e in edits[1 : singles + 1]]
        title = method.name if size == 1 else f"{method.name}, batch of {size}"
        row = compared(Paths(model, method, moments, contexts), batches, plain_edits, peak, title, bar)
        print(line(row), flush=True)
        over = row["peak MB"] / 1024 - weights if cuda else float("nan")
        bars = f"{bar} s/edit, weights + {GIB_OVER_WEIGHTS} GiB"
        rows.append(row | {"bar": bars, "peak over weights, GiB": over, "shape": shape})
        yield pd.DataFrame(rows).drop(columns=["largest difference", "same number of steps"])
