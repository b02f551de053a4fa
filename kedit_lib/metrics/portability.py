"""Portability: what follows from an edit, asked in other ways than the edit was written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..generation import complete
from .accuracy import generation_accuracy
from .forced import teacher_forced
from .success import success


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


def portability(model, questions: list[Question]) -> list[bool]:
    """For each question: free greedy decoding gives exactly the answer.

    Floor: one over the number of likely answers, for a model that knows the relation and nothing else.
    Source: Yao et al. 2023 (portability); the spelled-out hop asks a step at a time as MeLLo does
    (Zhong et al. 2023).
    """
    prompts = [q.prompt for q in questions]
    hops = [i for i, q in enumerate(questions) if q.bridge]
    for i, said in zip(hops, complete(model.hf, model.tokenizer, [prompts[i] for i in hops]), strict=True):
        prompts[i] = f"{prompts[i]} {said}. {questions[i].bridge.format(said)}"
    return generation_accuracy(model, prompts, [q.answer for q in questions])


def answerable(model, questions: list[Question]) -> list[bool]:
    """For each question: the model as it is passes its gate. Ask the unedited model, once."""
    pairs = [(i, *pair) for i, q in enumerate(questions) for pair in q.gate]
    said = generation_accuracy(model, [p for _, p, _ in pairs], [a for *_, a in pairs])
    failed = {i for (i, *_), right in zip(pairs, said, strict=True) if not right}
    return [i not in failed for i in range(len(questions))]


def inverse_success(model, subjects: list[str], prompts_new: list[str], prompts_true: list[str]) -> Tensor:
    """[n] 1 where the subject is more probable after the new object's inverse prompt ("Graz is the birthplace of")
    than after the true object's, [p(subject | new) > p(subject | true)], else 0. Range 0..1, floor ½.

    A model that learnt facts in one direction only is at the floor before any edit: read the value at
    0 edits first. Source: Ma et al. 2023 (reversibility of edits), as a comparison because many
    subjects share an object.
    """
    n = len(subjects)
    both = teacher_forced(model, [*prompts_new, *prompts_true], [*subjects, *subjects])
    return success(both.at(range(n)), both.at(range(n, 2 * n)))
