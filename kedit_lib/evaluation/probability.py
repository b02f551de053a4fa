"""Probability of a given answer, the model being handed the answer so far (teacher forcing)."""

from __future__ import annotations

from torch import Tensor

from .teacher_forcing import teacher_forced


def answer_log_probability(model, prompts: list[str], answers: list[str]) -> Tensor:
    """[n] mean log p over the tokens of each answer, after its prompt: (1/|t|) Σ log p(t_j). Range ≤ 0.

    Source: ROME's and MEMIT's evaluation (`test_batch_prediction`), which compare answers by it.
    """
    return teacher_forced(model, prompts, answers).log_probability


def answer_probability(model, prompts: list[str], answers: list[str]) -> Tensor:
    """[n] exp of the mean token log-probability: the geometric mean of the answer's token probabilities, 0..1."""
    return answer_log_probability(model, prompts, answers).exp()
