"""Whether a text that a model writes says the answer: at its end, or as soon as nothing that follows can change it.

`text` is what was written so far, `ended` whether the model ended it there.
"""

from __future__ import annotations

import re
import unicodedata

from ..data.scripts import SENTENCE_ENDS
from ..data.words import places
from ..models.generation import sentence


def says(text: str, ended: bool, answer: str) -> bool:
    """The first sentence is the answer and nothing else."""
    said, stopped = sentence(text, [answer])
    return said == answer and (stopped or ended)


def begins(text: str, ended: bool, answer: str) -> bool:
    """The text begins with the answer, as words of its own."""
    return 0 in places(_bare(text), _bare(answer))


def mentions(text: str, ended: bool, answer: str) -> bool:
    """The answer begins within the first sentence, as words of its own."""
    return _mentioned(text, answer) is not None


RULES = {"exact": says, "begins": begins, "contains": mentions}


def settled(match: str, text: str, ended: bool, answer: str) -> bool | None:
    """The verdict of a text that may go on, None while it is open."""
    if ended:
        return RULES[match](text, True, answer)
    text = text.rstrip("\ufffd")  # a character of which some bytes are still to come
    if match == "exact":
        return None if answer.startswith(text.strip()) and "\n" not in text.lstrip() else says(text, False, answer)
    if match == "begins":
        if begins(text, False, answer):
            return True if len(_bare(text)) > len(_bare(answer)) else None
        return None if may_begin(text, answer) else False
    at, end = _mentioned(text, answer), len(_plain(answer))
    beyond = (_first(text) if at is None else at) + end < len(_plain(text))
    return at is not None if beyond else None


def may_begin(text: str, answer: str) -> bool:
    """Whether a text that goes on from this one can still begin with the answer."""
    begun = _plain(text.rstrip("\ufffd"))
    return "the".startswith(begun) or _bare(answer).startswith(_bare(begun)) or _plain(answer).startswith(begun)


def _mentioned(text: str, answer: str) -> int | None:
    """Where in the plain text the answer begins within the first sentence."""
    return next((start for start in places(_plain(text), _plain(answer)) if start <= _first(text)), None)


def _first(text: str) -> int:
    """Where the first sentence ends, in characters of the plain text."""
    return len(_plain(re.split(f"[{re.escape(SENTENCE_ENDS)}\n]", text.strip())[0]))


def _bare(text: str) -> str:
    return _plain(text).removeprefix("the ")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
