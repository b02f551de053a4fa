"""Distracting neighbors: does the edit leak once its new object has been mentioned?"""

from __future__ import annotations

from ..data.edit import Edit
from ..data.scripts import full_stop, joint


def distracted(edit: Edit, prompt: str) -> str:
    """The edited sentence, then the prompt: "The mother tongue of Danielle Darrieux is English. The mother tongue of
    Léon Blum is".

    Score it like a neighbor (success, generated accuracy): a good edit keeps its neighbors also here,
    while one that only boosts its object gives way. Range and floor are those of the score; the
    unedited model is distracted too, so its value on the same prompts belongs beside it.
    Source: Hoelscher-Obermaier et al. 2023 (CounterFact+).
    """
    said = f"{edit.text}{joint(edit.text, edit.target_new, edit.separator)}{edit.target_new}"
    return f"{said}{full_stop(said)}{prompt}"
