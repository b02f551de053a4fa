"""What 1,000 edits in three orders would cost on models that are not at hand, reckoned from measured rates.

    python bench/on_paper.py     → figures/benchmarks_on_paper.csv

Seconds are an edit's arithmetic (`roofline.edit_cost`), of prompts as long as SmolLM2's first edits of the world and of
all the steps that a method may take, over the share of that speed which was reached: on a core by `make bench
PROFILE=smollm2`, at the peaks measured there; on a card by the replayed single edits of `make gpu`, at the peaks that
its maker prints (no batch was measured there). Memory: weights, and C of the edited layers on the host.
"""

from math import ceil, nan
from types import SimpleNamespace

import llama_shape
import pandas as pd
import torch
from roofline import Cost, edit_cost, peaks
from speed import FIGURES, save
from transformers import LlamaConfig, LlamaForCausalLM

import kedit_lib as kedit
from kedit_lib.data.config import load_model_params
from kedit_lib.editing.engine import requests_of

SHAPES = {  # Touvron et al. 2023, arXiv 2307.09288
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
}
H200 = Cost(989e12, 4.8e12)  # operations and bytes a second in bfloat16, NVIDIA's data sheet: 141 GB, which is 131 GiB
CARD_GIB, EDITS, ORDERS = 131, 1000, 3


def shape(name: str, dtype: torch.dtype):
    """What `edit_cost` reads of a model: its shape, without weights."""
    with torch.device("meta"):
        hf = LlamaForCausalLM(LlamaConfig(**SHAPES[name], vocab_size=32000, tie_word_embeddings=False))
    layers, config = hf.model.layers, hf.config
    sizes = {"d_model": config.hidden_size, "d_ff": config.intermediate_size, "n_layers": len(layers)}
    return SimpleNamespace(
        hf=hf, layers=layers, mlp=lambda i: layers[i].mlp, dtype=dtype, math_dtype=torch.float32, **sizes
    )


def least(method, model, tokenizer, edits, contexts, peak) -> float:
    """Seconds an edit, where every edit takes all its steps."""
    call = SimpleNamespace(model=model, requests=requests_of(tokenizer, edits, contexts))
    return edit_cost(method, call, [method.v_num_grad_steps] * len(edits)).seconds(peak) / len(edits)


def reached_on_card(hyper) -> dict[str, float]:
    """{method: share of the card's speed that its single edits of `gpu.replay` reached}."""
    table = pd.read_csv(FIGURES / "gpu.NVIDIA-H200.replay.csv")
    seconds = table[table.model.str.startswith("llama-2-7b")].set_index("method")["s/edit replayed"]
    tokenizer, edits = llama_shape.made_up_words("llama-2-7b")
    contexts, model, found = llama_shape.made_up_contexts(5, ["and"]), shape("7B", torch.bfloat16), {}
    for section in ("memit", "pmet", "rome"):
        method = kedit.method_class(section)(**hyper[section])
        each = [least(method, model, tokenizer, [edit], contexts, H200) for edit in edits[1:4]]
        found[method.name] = sum(each) / len(each) / seconds[method.name]
    return found


def rows(n: int = 20) -> list[dict]:
    bench, here = kedit.Bench("smollm2", progress=False), peaks(torch.device("cpu"), torch.float32)
    on_core = pd.read_csv(FIGURES / "benchmarks_smollm2.csv").set_index("path")["share of roofline reached"]
    found, hyper = [], load_model_params("Llama-2-7b-hf")
    on_card = reached_on_card(hyper)
    for name in SHAPES:
        for machine, dtype, peak in (("one CPU core", torch.float32, here), ("H200", torch.bfloat16, H200)):
            model = shape(name, dtype)
            weights = sum(p.numel() for p in model.hf.parameters()) * dtype.itemsize / 2**30
            for section in ("memit", "pmet", "rome"):
                depth = [round(i * model.n_layers / 32) for i in hyper[section]["layers"]]
                method = kedit.method_class(section)(**{**hyper[section], "layers": depth})
                contexts = bench.contexts(bench.method(section))
                for size in (1,) if section == "rome" else (1, n):
                    seconds = least(method, model, bench.model.tokenizer, bench.edits(0, size), contexts, peak)
                    core = on_core[method.name if size == 1 or section != "memit" else "MEMIT, batch of 32"]
                    share = on_card[method.name] if machine == "H200" else core
                    hours, cards = EDITS * ORDERS * seconds / share / 3600, ceil(weights / (CARD_GIB - 8))
                    one, eight = hours if cards == 1 else nan, hours / min(ORDERS, 8 // cards)  # an order needs `cards`
                    on = {"cards": cards, "hours on 1 card": one, "hours on 8 cards": eight}
                    row = {"model": name, "machine": machine, "method": method.name, "edits at once": size}
                    row |= {"least s/edit": seconds, "share reached": share, "s/edit": seconds / share}
                    row |= on if machine == "H200" else {"hours on one core": hours}
                    memory = {"weights, GiB": weights, "C on the host, GiB": len(depth) * model.d_ff**2 * 4 / 2**30}
                    found.append(row | memory)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    save(pd.DataFrame(rows()), "benchmarks_on_paper.csv")
