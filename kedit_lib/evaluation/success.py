"""Which of two answers the model prefers: efficacy, paraphrase and neighborhood success, magnitude, and their score S.

Source: Meng et al. 2022a, the scores of CounterFact (ES, PS, NS, EM, PM, NM, S).
"""

from torch import Tensor

from .teacher_forcing import Forced


def success(wanted: Forced, other: Forced) -> Tensor:
    """[n] 1 where the wanted answer is the more probable one, [p(wanted) > p(other)], else 0 (a tie or NaN too).

    p by the mean token log-probability, so that long answers do not lose for their length. ES: wanted new, other true,
    on the edit prompt; PS: the same on paraphrases; NS: wanted true, other new, on neighbors. Floor about ½.
    """
    return (wanted.log_probability > other.log_probability).double()


def magnitude(wanted: Forced, other: Forced) -> Tensor:
    """[n] p(wanted) − p(other), p the geometric mean over the answer's tokens. Range −1..1, floor 0. EM, PM and NM,
    with the answers in the same places as for success."""
    return wanted.probability - other.probability


def score(es: float, ps: float, ns: float) -> float:
    """S = 3 / (1/ES + 1/PS + 1/NS), the harmonic mean: 0 as soon as one of them is 0. Range 0..1 for shares; floor:
    about that of its parts, a half."""
    return 3 / (1 / es + 1 / ps + 1 / ns) if min(es, ps, ns) > 0 else 0.0
