"""Whether a given answer is what the model would have said token by token, the answer so far being handed over.

Teacher forcing is lenient: after a wrong first token the model still gets the right one. Report both
beside the generated accuracy (accuracy.py); the gap is the point.
"""

from __future__ import annotations

from torch import Tensor

from .teacher_forcing import Forced


def token_accuracy(forced: Forced) -> Tensor:
    """[n] share of the answer's tokens that are the argmax, (1/|t|) Σ_j [argmax_j = t_j]: partial credit. Range 0..1.

    Floor: near 0 for one-token answers; long answers keep credit for endings that follow from their
    beginnings whatever the model knows. Source: `rewrite_acc` of EasyEdit (`test_prediction_acc`).
    """
    return forced.tokens_right


def strict_accuracy(forced: Forced) -> Tensor:
    """[n] 1 where every token of the answer is the argmax, else 0: Π_j [argmax_j = t_j]. Floor 0.

    Source: ROME's and MEMIT's evaluation (`rewrite_prompts_correct`).
    """
    return (forced.tokens_right == 1).double()
