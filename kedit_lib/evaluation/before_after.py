"""A model's answers to an edit's prompts, before and after the edit, as a table."""

from __future__ import annotations

import pandas as pd

from ..data.edit import Edit
from ..models.generation import complete
from .teacher_forcing import answer_probability


def ask(model, edit: Edit) -> pd.DataFrame:
    """Rows: the edit prompt, its paraphrases, its neighbors; what the model says, p of the new and the true object."""
    prompts = [
        ("edit", edit.text),
        *(("paraphrase", p) for p in edit.paraphrases),
        *(("neighbor", p) for p in edit.neighborhood),
    ]
    texts = [p for _, p in prompts]
    table = pd.DataFrame(prompts, columns=["", "prompt"])
    objects = [o for o in (edit.target_new, edit.target_true) if o is not None]
    table["says"] = complete(model.hf, model.tokenizer, texts, answers=objects)
    for column, answer in (("p(new)", edit.target_new), ("p(true)", edit.target_true)):
        if answer is not None:
            table[column] = answer_probability(model, texts, [answer] * len(texts)).numpy()
    return table.set_index("").round(4)


def ask_table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The answers of `ask` before and after the edit, side by side."""
    table = before[["prompt", "says"]].rename(columns={"says": "said before"})
    table["says after"] = after["says"]
    table["p(new) before"], table["p(new) after"] = before["p(new)"], after["p(new)"]
    return table
