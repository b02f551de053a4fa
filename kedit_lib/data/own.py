"""The user's own records, with the fields of `Edit`: strict, because their author can mend them."""

from __future__ import annotations

import dataclasses

from .edit import Edit
from .records import Record

FIELDS = tuple(f.name for f in dataclasses.fields(Edit))


def fits(values: dict) -> bool:
    return True


def fields(record: Record) -> dict:
    if unknown := [name for name in record.values if name not in FIELDS]:
        record.refuse(unknown[0], f"is unknown; the fields are {', '.join(FIELDS)}")
    if missing := [name for name in FIELDS[:3] if name not in record.values]:
        record.refuse(missing[0], "is missing")
    return record.values
