"""Plain text for second moments and perplexity, in any form that users give it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from ..errors import KeditError, first_line
from .files import READERS, records_of
from .scripts import spaceless


def texts_of(given, what: str) -> list[str]:
    """Documents from a text, a file, a table, or any iterable of texts or of rows with a field `text`.

    A str that names a file stands for it: a .txt, each paragraph a document, or records with a field `text`.
    KeditError, which begins with `what`, for anything else and for no document.
    """
    if isinstance(given, os.PathLike) or (isinstance(given, str) and _names_a_file(given, what)):
        if not (path := Path(given)).is_file():
            raise KeditError(f"{what}: {str(path)!r} is not a file; give a .txt file or records with a field 'text'")
        if path.suffix.lower() == ".txt":
            return texts_of(paragraphs(path, what), what)
        return texts_of((record.values for record in records_of(str(path))), f"{what} {path.name}")
    if isinstance(given, str):
        given = [given]
    if isinstance(given, pd.DataFrame):
        given = given.to_dict("records")
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise KeditError(f"{what}: texts are {type(given).__name__}; pass a list of plain text, or a file")
    found = []
    for i, row in enumerate(given):
        text = row.get("text") if isinstance(row, Mapping) else row
        if not isinstance(text, str):
            held = f"has the fields {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
            raise KeditError(f"{what}: text {i} is not text ({held}); pass texts, or rows with a field 'text'")
        found.append(text)
    if not any(text.strip() for text in found):
        raise KeditError(f"{what}: no texts were given; pass a list of plain text")
    return found


def paragraphs(path: Path, what: str) -> list[str]:
    """The paragraphs of a .txt file; its lines, where no line is empty."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeditError(f"{what} {str(path)!r}: cannot be read ({first_line(error)}); save it as UTF-8") from error
    return [p.strip() for p in text.split("\n\n" if "\n\n" in text else "\n") if p.strip()]


def _names_a_file(text: str, what: str) -> bool:
    if len(text) > 1000 or "\n" in text:
        return False
    if os.path.exists(text):
        return True
    named = Path(text).suffix.lower() in (".txt", *READERS) and os.sep in text
    if named or not (" " in text.strip() or spaceless(text)):  # one word is no text
        raise KeditError(f"{what}: there is no file {text!r}; give an existing one, or [text] for the text itself")
    return False
