"""A question that an edit has consequences for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One consequence of one edit.

    kind    what sort of consequence; a cohort in tables
    prompt  full prompt; the model completes it freely
    answer  what it should say once the edit holds
    bridge  "" or a sentence with one `{}`: what the model says to `prompt` is put there, the sentence
            follows in the same text, and the answer is what comes behind. One hop spelled out: the
            model names the new object itself and is asked about it
    gate    (prompt, answer) pairs: only where the unedited model gives all of these does the question
            count, because what a model never could infer no edit can break
    """

    kind: str
    prompt: str
    answer: str
    bridge: str = ""
    gate: tuple[tuple[str, str], ...] = ()
