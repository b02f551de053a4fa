"""A line search on an update: the shortest multiple of it after which the edited model says the targets.

A closed form gives the direction Δ of an update and, by its ridge, a length that depends on λ and on the keys in the
history, not on what the edit needs; every other fact gets its share of what is written beyond that. So W + αΔ is
written, with the smallest α, found by doubling and bisection (to 1/16, to 1/8 above 2), for which all tokens of the
targets are the most probable ones in every context, times a margin. A batch has one α.
"""

import torch
from torch import Tensor

from ..models.tokenwise import logits_at
from .engine import Request

LONGEST = 4  # multiples of Δ at most
HALVINGS = 4


def searched(model, requests: list[Request], before: dict, deltas: dict, margin: float) -> dict[str, Tensor]:
    """αΔ, which is what the model holds afterwards; α is at most LONGEST, and 1 where no multiple is enough. before:
    the weights without Δ (`model.snapshot()`)."""

    def write(alpha: float) -> dict[str, Tensor]:
        model.load_snapshot(before)
        scaled = {name: alpha * delta for name, delta in deltas.items()}
        model.add(scaled)
        return scaled

    def enough(alpha: float) -> bool:
        write(alpha)
        return says(model, requests)

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > LONGEST:
            return write(1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return write(min(margin * high, LONGEST))


def says(model, requests: list[Request]) -> bool:
    """Whether all tokens of each request's target are the most probable ones after its prompt in every context."""
    asked = [(p.ids + r.target[:-1], r.target) for r in requests for p in r.prompts]
    texts = [text for text, _ in asked]
    for part, logits in logits_at(model, texts, [range(len(text) - len(new), len(text)) for text, new in asked]):
        wanted = torch.tensor([token for i in part for token in asked[i][1]], device=logits.device)
        if not torch.equal(logits.argmax(-1), wanted):
            return False
    return True
