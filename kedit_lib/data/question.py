"""A question that an edit has consequences for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One consequence of one edit: the model completes `prompt` freely and should say `answer` once the edit holds.

    kind    what sort of consequence; a cohort in tables
    bridge  "" or a sentence with one `{}` for what the model says to `prompt`: both follow in the same text, and the
            answer comes after. One hop spelled out: the model names the new object itself and is asked about it
    gate    (prompt, answer) pairs: the question counts only where the unedited model gives all of these, because what a
            model never could infer no edit can break
    """

    kind: str
    prompt: str
    answer: str
    bridge: str = ""
    gate: tuple[tuple[str, str], ...] = ()
