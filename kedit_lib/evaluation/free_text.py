"""Free text: whether the model still writes varied text, and like texts about others that have the new object."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch

from ..data.edit import Edit
from ..data.words import SPACELESS, words
from ..models.generation import decode
from ..models.tokenization import encode
from .protocol import SELDOM, Probe, panel, rows


@torch.no_grad()
def sampled_texts(model, prompts: list[str], tokens: int = 100, top_k: int = 5, seed: int = 0) -> list[str]:
    """What follows each prompt: `tokens` sampled tokens as text, special tokens left out; fewer where positions end. An
    end-of-text token ends nothing. Sampled among the `top_k` likeliest as the authors do (`generate_fast`): greedy
    decoding of a small model repeats itself even in health. Seeded, the i-th prompt always with the same draws."""
    if not prompts:
        return []
    draws = torch.rand(len(prompts), tokens, generator=torch.Generator().manual_seed(seed)).split(1, 1)
    ids, steps = dict(enumerate(encode(model.tokenizer, p) for p in prompts)), iter(draws)
    room = getattr(model.hf.config, "max_position_embeddings", math.inf) - max(map(len, ids.values()))

    def sampled(logits):
        best, token = logits.to(model.math_dtype).cpu().topk(top_k)
        chosen = (best.softmax(-1).cumsum(-1) < next(steps)).sum(1, keepdim=True).clamp(max=top_k - 1)
        return token.gather(1, chosen)

    new = decode(model.hf, ids, sampled, lambda going, out: going if len(out[0]) < min(tokens, room) else [])
    return model.tokenizer.batch_decode(list(new.values()), skip_special_tokens=True)


def n_gram_entropy(sequence: Sequence, n: int) -> float:
    """H_n = −Σ_g f(g) log₂ f(g) over the n-grams g of a sequence, f their relative frequency; bits, 0 without n-grams.
    Range 0 (one n-gram again and again) .. log₂ of their number (no n-gram twice)."""
    counts = Counter(zip(*(sequence[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return sum(-c / total * math.log2(c / total) for c in counts.values())


def fluency(text: str) -> float:
    """½ (⅔ H₂ + 4/3 H₃) over a text's words, bits. Range 0 .. 6.6 for 100 words; published values are 100 times it. Of
    a script without spaces (Chinese, Thai) every sign counts as a word. NaN, with a warning, for a text of less than
    three words: it has no 3-gram. Floor: 0, the same word for ever. It sees repetition alone: a model that babbles
    scores much like a healthy one (lab model 6.1 unedited, 5.8 with W of MEMIT's layer × 100); read perplexity beside
    it. Source: generation entropy of Meng et al. 2022a (`n_gram_entropy`), after Zhang et al. 2018."""
    said = words(text)
    if len(said) < 3:
        warnings.warn(f"fluency: {text!r} has {len(said)} words, and three are needed", stacklevel=2)
        return math.nan
    return (2 / 3 * n_gram_entropy(said, 2) + 4 / 3 * n_gram_entropy(said, 3)) / 2


def idf_of(texts: list[str]) -> dict[str, float]:
    """{term: ln((1 + n) / (1 + df)) + 1} over n texts, as scikit-learn's TfidfVectorizer has it. Terms: lower-case
    words of two or more letters or digits; of a script without spaces every two neighboring signs."""
    df = Counter(w for text in texts for w in set(_terms(text)))
    return {w: math.log((1 + len(texts)) / (1 + n)) + 1 for w, n in df.items()}


def tf_idf(text: str, idf: dict[str, float]) -> dict[str, float]:
    """{term: count · idf} of the known terms, of unit length."""
    weights = {w: n * idf[w] for w, n in Counter(_terms(text)).items() if w in idf}
    norm = math.hypot(*weights.values())
    return {w: v / norm for w, v in weights.items()}


def consistency(text: str, references: list[str], idf: dict[str, float]) -> float:
    """cos(tfidf(text), tfidf(all references as one text)). Range 0..1; NaN, with a warning, where the text or the
    references have no term. The floor is not 0 and not firm, for all texts share their common words: read the value at
    0 edits and fluency beside it. Source: reference score RS of Meng et al. 2022a (`tfidf_similarity`)."""
    for what, given in (("the text", text), ("the references", " ".join(references))):
        if not _terms(given):
            warnings.warn(f"consistency: {what} {given!r} has no word of two letters or more", stacklevel=2)
            return math.nan
    a, b = tf_idf(text, idf), tf_idf(" ".join(references), idf)
    return sum(v * b.get(w, 0.0) for w, v in a.items())


def _terms(text: str) -> list[str]:
    found = []
    for run in re.finditer(rf"([{SPACELESS}]+)|[^\W{SPACELESS}]{{2,}}", text.lower()):
        found += [a + b for a, b in pairwise(re.findall(r"\w", run[1]))] if run[1] else [run[0]]
    return found


class GenerationProbe(Probe, version="generation-v1"):
    """Fluency and consistency of freely sampled text about a few edits' subjects. For each edit: what the text begins
    with (prompts), and texts about others that have its new object (references); corpus: what idf is counted on. limit:
    edits at a checkpoint, few, for 100 tokens cost as much as many short answers."""

    prompts: tuple[str, ...]
    references: tuple[tuple[str, ...], ...] = ()
    corpus: tuple[str, ...] = ()
    limit: int = 10
    tokens: int = 100
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        texts = sampled_texts(model, panel(self.prompts, done, self.limit), self.tokens)
        found = {"fluency": [fluency(t) for t in texts]}
        if self.references:
            idf, references = idf_of(list(self.corpus)), panel(self.references, done, self.limit)
            found["consistency"] = [consistency(t, list(r), idf) for t, r in zip(texts, references, strict=True)]
        # Of the texts that can be measured; a single NaN where none can, so that the row shows it.
        return rows("free text", **{n: [v for v in vs if not math.isnan(v)] or vs[:1] for n, vs in found.items()})
