"""Loading edit sets by name or from a file."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from .edits import Edit
from .errors import KeditError

FIELDS = tuple(f.name for f in dataclasses.fields(Edit))


def load_edits(source: str | Path, model=None, limit: int | None = None, seed: int = 0) -> list[Edit]:
    """Edits from "lab" or from a JSONL file with a record an edit, its fields those of `Edit`.

    lab     `model` must be a lab model; the seed decides the sample, the order and the edits;
            limit None: 100
    file    the seed decides the order when `limit` is given: a sample of that size, else all as they stand

    Raises KeditError that names the record and the field.
    """
    if str(source) == "lab":
        from .lab import world_of  # here: files of edits need no lab
        from .lab.edits import lab_edits

        if model is None:
            raise KeditError("load_edits('lab'): pass model=, the lab model whose world the edits are about")
        return lab_edits(world_of(model), 100 if limit is None else limit, seed)
    path = Path(source)
    if not path.is_file():
        raise KeditError(f"edits {str(source)!r}: no such file; give 'lab' or a .jsonl file")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise KeditError(
            f"{path.name}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    edits = [_record(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not edits:
        raise KeditError(f"{path.name}: holds no edits; write one JSON object a line")
    if limit is None:
        return edits
    if not 1 <= limit <= len(edits):
        raise KeditError(f"{path.name}: limit = {limit}, the file has {len(edits)} edits; choose 1 to {len(edits)}")
    return random.Random(seed).sample(edits, limit)


def _record(path: Path, number: int, line: str) -> Edit:
    where = f"{path.name} line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise KeditError(f"{where}: is not JSON ({error.msg}); write one object a line") from None
    if not isinstance(record, dict):
        raise KeditError(f'{where}: is not an object; write {{"prompt": …, "subject": …, "target_new": …}}')
    if unknown := [name for name in record if name not in FIELDS]:
        raise KeditError(f"{where}: field {unknown[0]!r} is unknown; the fields are {', '.join(FIELDS)}")
    if missing := [name for name in FIELDS[:3] if name not in record]:
        raise KeditError(f"{where}: field {missing[0]!r} is missing")
    try:
        return Edit(**record)
    except (KeditError, TypeError) as error:
        raise KeditError(f"{where}: {error}") from None
