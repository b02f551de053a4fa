"""Fluency: does the model still write varied text, or repeat itself?"""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from ..data.words import words
from ..models.generation import Feed
from ..models.tokenization import encode
from .protocol import unmeasured

ROWS = 64


@torch.no_grad()
def sampled_texts(model, prompts: list[str], tokens: int = 100, top_k: int = 5, seed: int = 0) -> list[str]:
    """What follows each prompt: `tokens` sampled tokens as text, special tokens left out; fewer where the model has no
    more positions. An end-of-text token ends nothing.

    Sampled among the `top_k` likeliest as the authors do (`generate_fast`): greedy decoding of a small model repeats
    itself even in health. Seeded, the i-th prompt always with the same draws.
    """
    draws = torch.rand(len(prompts), tokens, generator=torch.Generator().manual_seed(seed))
    rows = [encode(model.tokenizer, p) for p in prompts]
    texts = []
    for begin in range(0, len(rows), ROWS):
        texts += _sample(model, rows[begin : begin + ROWS], draws[begin : begin + ROWS], top_k)
    return texts


def _sample(model, rows: list[list[int]], draws, top_k: int) -> list[str]:
    room = getattr(model.hf.config, "max_position_embeddings", math.inf) - max(map(len, rows))
    feed, new = Feed(rows, model.device), []
    for t in range(int(min(draws.shape[1], room))):
        best, token = feed.logits(model.hf).to(model.math_dtype).cpu().topk(top_k)
        chosen = (best.softmax(-1).cumsum(-1) < draws[:, t : t + 1]).sum(1, keepdim=True).clamp(max=top_k - 1)
        new.append(token.gather(1, chosen).to(model.device))
        feed.say(new[-1])
    return model.tokenizer.batch_decode(torch.cat(new, 1).tolist(), skip_special_tokens=True)


def n_gram_entropy(sequence: Sequence, n: int) -> float:
    """H_n = −Σ_g f(g) log₂ f(g) over the n-grams g of a sequence, f their relative frequency; bits, 0 without n-grams.
    Range 0 (one n-gram again and again) .. log₂ of their number (no n-gram twice)."""
    counts = Counter(zip(*(sequence[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return sum(-c / total * math.log2(c / total) for c in counts.values())


def fluency(text: str) -> float:
    """½ (⅔ H₂ + 4/3 H₃) over a text's words, bits. Range 0 .. 6.6 for 100 words; published values are 100 times it.

    Of a script without spaces (Chinese, Thai) every sign counts as a word. NaN, with a warning, for a text of less than
    three words: it has no 3-gram. Floor: 0, the same word for ever. It sees repetition alone: a model that babbles
    scores much like a healthy one (lab model 6.1 unedited, 5.8 with W of MEMIT's layer × 100); read perplexity beside
    it. Source: generation entropy of Meng et al. 2022a (`n_gram_entropy`), after Zhang et al. 2018.
    """
    said = words(text)
    if len(said) < 3:
        return unmeasured(f"fluency: {text!r} has {len(said)} words, and three are needed")
    return (2 / 3 * n_gram_entropy(said, 2) + 4 / 3 * n_gram_entropy(said, 3)) / 2
