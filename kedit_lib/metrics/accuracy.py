"""Whether the model says the answer by itself."""

from __future__ import annotations

from ..generation import completions


def generation_accuracy(model, prompts: list[str], answers: list[str]) -> list[bool]:
    """For each prompt: free greedy decoding, up to a full stop, gives exactly the answer.

    Strict: no token of the answer is handed over, and nothing may follow it but the stop. Floor of a
    model that knows the relation but not the subject: one over the number of objects.
    """
    longest = max((len(model.tokenizer(" " + a, add_special_tokens=False).input_ids) for a in answers), default=1)
    said = completions(model.hf, model.tokenizer, prompts, max_new_tokens=longest + 1)
    return [ended and text == a.strip() for (text, ended), a in zip(said, answers, strict=True)]
