"""Portability: what follows from an edit, asked in other ways than the edit was written; and distracting neighbors."""

from torch import Tensor

from ..data.edit import Edit, Question
from ..data.words import full_stop, joint
from ..models.generation import complete
from .accuracy import generation_accuracy
from .success import success
from .teacher_forcing import teacher_forced


def portability(model, questions: list[Question], match: str = "exact") -> list[bool]:
    """For each question whether free greedy decoding gives the answer, by `match` as in `generation_accuracy`. Floor:
    one over the number of likely answers. Source: Yao et al. 2023; the spelled-out hop asks a step at a time as MeLLo
    does (Zhong et al. 2023)."""
    prompts = [q.prompt for q in questions]
    hops = [i for i, q in enumerate(questions) if q.bridge]
    for i, said in zip(hops, complete(model.hf, model.tokenizer, [prompts[i] for i in hops]), strict=True):
        prompts[i] = f"{prompts[i]} {said}. {questions[i].bridge.format(said)}"
    return generation_accuracy(model, prompts, [q.answer for q in questions], match)


def answerable(model, questions: list[Question], match: str = "exact") -> list[bool]:
    """For each question whether the model, in its present state, passes the gate. Ask the unedited model, once."""
    pairs = [(i, *pair) for i, q in enumerate(questions) for pair in q.gate]
    said = generation_accuracy(model, [p for _, p, _ in pairs], [a for *_, a in pairs], match)
    failed = {i for (i, *_), right in zip(pairs, said, strict=True) if not right}
    return [i not in failed for i in range(len(questions))]


def inverse_success(model, subjects: list[str], prompts_new: list[str], prompts_true: list[str]) -> Tensor:
    """[n] 1 where the subject is more probable after the new object's inverse prompt ("Graz is the birthplace of") than
    after the true object's, else 0. Floor ½, where a model that learnt facts in one direction only is before any edit.
    Source: Ma et al. 2023 (reversibility of edits), as a comparison because many subjects share an object."""
    n = len(subjects)
    both = teacher_forced(model, [*prompts_new, *prompts_true], [*subjects, *subjects])
    return success(both.at(range(n)), both.at(range(n, 2 * n)))


def distracted(edit: Edit, prompt: str) -> str:
    """The edited sentence, then a neighbor's prompt: "The mother tongue of Danielle Darrieux is English. The mother
    tongue of Léon Blum is". Score it like a neighbor: an edit that only boosts its object gives way. The unedited model
    is distracted too: show its value beside it. Source: Hoelscher-Obermaier et al. 2023 (CounterFact+)."""
    said = f"{edit.text}{joint(edit.text, edit.target_new, edit.separator)}{edit.target_new}"
    return f"{said}{full_stop(said)}{prompt}"
