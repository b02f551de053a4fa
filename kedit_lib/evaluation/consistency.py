"""Consistency: does what the model writes about a subject look like texts about others with the new object?"""

import math
import re
from collections import Counter
from itertools import pairwise

from ..data.words import SPACELESS
from .protocol import unmeasured


def idf_of(texts: list[str]) -> dict[str, float]:
    """{term: ln((1 + n) / (1 + df)) + 1} over n texts, as scikit-learn's TfidfVectorizer has it.

    Terms: lower-case words of two or more letters or digits; of a script without spaces every two neighboring signs.
    """
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
            return unmeasured(f"consistency: {what} {given!r} has no word of two letters or more")
    a, b = tf_idf(text, idf), tf_idf(" ".join(references), idf)
    return sum(v * b.get(w, 0.0) for w, v in a.items())


def _terms(text: str) -> list[str]:
    found = []
    for run in re.finditer(rf"([{SPACELESS}]+)|[^\W{SPACELESS}]{{2,}}", text.lower()):
        found += [a + b for a, b in pairwise(re.findall(r"\w", run[1]))] if run[1] else [run[0]]
    return found
