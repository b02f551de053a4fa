"""The user's own records, with the fields of `Edit`; the prompt may hold the subject as text in place of {}."""

from __future__ import annotations

import dataclasses

from .edit import LISTS, PAIRS, Edit, around_places
from .records import Record

FIELDS = tuple(f.name for f in dataclasses.fields(Edit))


def fits(values: dict) -> bool:
    return True


def fields(record: Record) -> dict:
    given = {name: value for name, value in record.values.items() if name in FIELDS and value is not None}
    if missing := [name for name in FIELDS[:3] if name not in given]:
        others = "".join(f"; {name!r} is unknown" for name in unknown(record))
        record.refuse(missing[0], f"is missing{others}; the fields are {', '.join(FIELDS)}")
    for name in given:
        if name in LISTS and isinstance(given[name], list):
            given[name] = record.texts(name)
        elif name in PAIRS and isinstance(given[name], list):
            given[name] = [pair for pair in given[name] if pair is not None]
        elif name not in (*LISTS, *PAIRS, "separator"):
            given[name] = record.text(name)
    if len(around_places(given["prompt"])) == 1 and given["subject"].strip() in given["prompt"]:
        given["text"] = given.pop("prompt")
    return given


def unknown(record: Record) -> list[str]:
    """The names of fields that no edit has."""
    return [name for name in record.values if name not in FIELDS]
