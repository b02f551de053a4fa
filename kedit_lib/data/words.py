"""Where a name occurs in a text: by position, and as words of its own."""

import re
import unicodedata


def places(text: str, name: str) -> list[int]:
    """The start, in characters, of every occurrence of `name` in `text` as words of its own.

    "Ana" stands in "Ana's boat" and neither in "Banana" nor in "Anab". Next to letters of scripts without capitals
    (Chinese, Arabic, Thai …) no word goes on. Case and accents count. An empty name stands nowhere.
    """
    found = [match.start() for match in re.finditer(f"(?={re.escape(name)})", text)] if name else []
    return [i for i in found if not _goes_on(text, i) and not _goes_on(text, i + len(name))]


def why_elsewhere(text: str, name: str) -> str:
    """Why a name that seems to stand in the text has no place there, in brackets; "" if it does not."""
    if not name or places(text, name):
        return ""
    if name in text:
        return " (only inside a longer word)"
    return " (only in other case, accents or Unicode form)" if _bare(name) in _bare(text) else ""


def _goes_on(text: str, i: int) -> bool:
    """Whether one word reaches over position i: a letter or digit on both sides, or an accent on the one before."""
    inside = 0 < i < len(text)
    return inside and (bool(unicodedata.combining(text[i])) or (_in_word(text[i - 1]) and _in_word(text[i])))


def _in_word(c: str) -> bool:
    return c.isdigit() or c.lower() != c.upper() or bool(unicodedata.combining(c))


def _bare(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
