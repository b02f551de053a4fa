"""Overfitting: how probable the new object has become where it is not the answer."""

from __future__ import annotations

from torch import Tensor

from ..data.edit import Edit
from .probability import answer_probability


def intrusion(model, edits: list[Edit], prompts: list[str]) -> Tensor:
    """[n] p(new object of edit i | prompt i), the prompt asking for something else: another relation of the same
    subject, or another subject. Range 0..1; the floor is the unedited model's value, next to 0.

    A target that is reached by making one word likely everywhere shows here first, while the edit
    prompt looks perfect. Source: Zhang et al. 2024 (editing overfit), who compare the probability of
    the edit's target with that of the right answer on such prompts.
    """
    return answer_probability(model, prompts, [e.target_new for e in edits])
