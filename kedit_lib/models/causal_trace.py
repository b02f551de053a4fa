"""Causal tracing: which states carry a fact (Meng et al. 2022a, section 2; `causal_trace.py` of kmeng01/rome)."""

from collections import Counter
from functools import partial
from itertools import product

import pandas as pd
import torch

from ..data.edit import fill
from .hooks import hooks, trace
from .tokenization import encode_prompt, target_ids

PLACES = ("first subject token", "last subject token", "next token", "last token")


@torch.no_grad()
def causal_trace(model, facts, noise=3.0, samples=5, seed=0, places: tuple[str, ...] = PLACES) -> pd.DataFrame:
    """How much of the answer's probability comes back when one state of the clean run is restored. facts: (prompt with
    {}, subject, answer) triples that the model knows. The subject's embeddings get Gaussian noise of `noise` standard
    deviations of the embedding matrix; then the stream after each layer at each of `places` is set to its clean value.
    p is of the answer's first token, behind a space that the tokenizer writes apart. Returns rows (place, layer,
    effect): mean over facts of (p_restored − p_corrupted) / (p_clean − p_corrupted), 1: all comes back."""
    embed, generator, effect = model.hf.get_input_embeddings(), torch.Generator().manual_seed(seed), Counter()
    scale = getattr(embed, "scalar_embed_scale", 1.0)  # Gemma's embeddings leave the module this much larger
    sigma = noise * scale * embed.weight.float().std().item()
    for fact in facts:
        for state, share in _restored(model, fact, partial(torch.randn, generator=generator), sigma, samples, places):
            effect[state] += share
    return pd.Series(effect, name="effect").div(len(facts)).rename_axis(["place", "layer"]).reset_index()


def _restored(model, fact, randn, sigma: float, samples: int, places):
    """((place, layer), the share of the probability that it brings back) of one fact."""
    prompt, subject, answer = fact
    asked, said = encode_prompt(model.tokenizer, "{}", prompt, subject), fill("{}", prompt, subject)[0]
    answer = target_ids(model.tokenizer, said, answer)
    space = next(i for i in range(len(answer)) if model.tokenizer.decode(answer[: i + 1]).strip())
    ids, last = torch.tensor([[*asked.ids, *answer[:space]]], device=model.device), len(asked.ids) + space - 1
    where = dict(zip(PLACES, (asked.first, asked.lookup, min(asked.lookup + 1, last), last), strict=True))
    embed = model.hf.get_input_embeddings()
    shake = sigma * randn(samples, asked.lookup + 1 - asked.first, embed.weight.shape[1])
    shake = torch.nn.functional.pad(shake, (0, 0, asked.first, last - asked.lookup)).to(model.device, model.dtype)
    _, clean = trace(model.hf, ids, outputs=model.layers)

    def p_of_answer(ids, *changes) -> float:
        with hooks(*changes):
            logits = model.hf(input_ids=ids).logits[:, -1].to(model.math_dtype)
        return logits.softmax(-1)[:, answer[space]].mean().item()

    def put_back(at: int, module, args, output):
        (output[0] if isinstance(output, tuple) else output)[:, at] = clean[module][:, at]

    many, corrupt = ids.expand(samples, -1), (embed, lambda module, args, output: output + shake)
    p_clean, p_low = p_of_answer(ids), p_of_answer(many, corrupt)
    for place, (layer, module) in product(places, enumerate(model.layers)):
        p = p_of_answer(many, corrupt, (module, partial(put_back, where[place])))
        yield (place, layer), (p - p_low) / max(p_clean - p_low, 1e-6)
