"""What users give: records from a file, a folder, or the hub, whatever their schema; and plain text in any form."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import pandas as pd

from ..errors import KeditError, first_line
from .edit import LISTS, PAIRS
from .words import spaceless

UNNAMED = re.compile(r"\s*|Unnamed: \d+")  # the header of a column that a table program added: its row numbers
REQUIRED = object()
KINDS = {str: "text", list: "a list", dict: "an object"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
Rows = list[tuple[str, dict | KeditError]]  # where each record stands, and its values or why it cannot be read


class Record:
    """The values of a record and `where` it is, e.g. "facts.json record 3"; `broken`: why it could not be read. A path
    such as "requested_rewrite.target_new.str" goes through objects. Null counts as absent, a whole number as text
    ("1945"). KeditError for a field that is missing without a default, or of the wrong type."""

    def __init__(self, where: str, number: int, values: dict | KeditError):
        self.where, self.number = where, number
        self.values, self.broken = ({}, values) if isinstance(values, KeditError) else (values, None)

    def text(self, path: str, default=REQUIRED) -> str:
        return self.get(path, str, default)

    def texts(self, path: str) -> list[str]:
        """Without blank ones and nulls."""
        items = [item for item in self.get(path, list, []) if item is not None]
        for i, item in enumerate(items):
            if not isinstance(item, str):
                self.refuse(f"{path}.{i}", f"must be text, got {_short(item)}")
        return [item for item in items if item.strip()]

    def label(self, path: str) -> str:
        """A number or text that names the record; its position when absent."""
        value = self.values.get(path)
        return str(self.number if value is None else value)

    def refuse(self, path: str, what: str) -> NoReturn:
        raise KeditError(f"{self.where}: field {path!r} {what}")

    def get(self, path: str, kind: type, default):
        value, names = self.values, path.split(".")
        for depth, name in enumerate(names):
            if not isinstance(value, dict):
                self.refuse(".".join(names[:depth]), f"must be an object, got {_short(value)}")
            value = value.get(name)
            if value is None:
                if default is REQUIRED:
                    self.refuse(".".join(names[: depth + 1]), "is missing")
                return default
        if kind is str and type(value) is int:
            return str(value)
        if not isinstance(value, kind):
            self.refuse(path, f"must be {KINDS[kind]}, got {_short(value)}")
        return value


def pairs(*given: tuple[str, str]) -> list[tuple[str, str]]:
    """Those of (prompt, answer) in which neither is empty."""
    return [(prompt, answer) for prompt, answer in given if prompt.strip() and answer.strip()]


def _short(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def records_of(source: str | Path, **hub) -> list[Record]:
    """Every record of `source`: a .json, .jsonl, .csv, .tsv or .parquet file, a folder of such files, or a hub name.

    hub   for folders and hub names: keywords of `datasets.load_dataset`, such as split, name, data_files, revision

    In CSV (commas, semicolons or tabs) lists and a separator are JSON; an empty cell is an absent field. A line that
    cannot be read is a broken record. KeditError for a source that is not there, cannot be read, or holds no records.
    """
    path, name = Path(source), str(source)
    suffix = path.suffix.lower()
    if os.path.isfile(path):  # Path.is_file() raises for a name that is too long
        if hub:
            raise KeditError(f"edits {name!r}: is a file; {', '.join(hub)} go with a folder or a hub name only")
        if suffix not in READERS:
            raise KeditError(f"edits {name!r}: format {suffix!r} is unknown; give {', '.join(READERS)}")
        found = READERS[suffix](path)
    elif os.path.isdir(path) or (HUB_NAME.fullmatch(name) and suffix not in READERS):
        found = _from_datasets(name, **hub)
    else:
        give = f"give 'lab', a file ({', '.join(READERS)}), a folder, or a hub name such as owner/name"
        raise KeditError(f"edits {name!r}: no such file; {give}")
    if not found:
        raise KeditError(f"{path.name}: holds no edits; write one record an edit")
    return [Record(where, number, values) for number, (where, values) in enumerate(found, 1)]


def _json(path: Path) -> Rows:
    try:
        values = _parsed(_text(path))
    except json.JSONDecodeError as error:
        what = f"is not JSON ({error.msg} in line {error.lineno}); a file with one object per line is .jsonl"
        raise KeditError(f"{path.name}: {what}") from None
    if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        values = [{"index": name, **value} for name, value in values.items()]  # records by name
    if not isinstance(values, list):
        raise KeditError(f"{path.name}: must hold a list of records, got {type(values).__name__}")
    return [_object(f"{path.name} record {n}", value) for n, value in enumerate(values, 1)]


def _jsonl(path: Path) -> Rows:
    found = []
    for n, line in enumerate(_text(path).split("\n"), 1):  # splitlines() would cut inside texts, at U+2028 for one
        if line.strip():
            where = f"{path.name} line {n}"
            try:
                found.append(_object(where, _parsed(line)))
            except json.JSONDecodeError as error:
                found.append((where, KeditError(f"{where}: is not JSON ({error.msg}); write one object a line")))
    return found


def _csv(path: Path) -> Rows:
    text, found, names = _text(path), [], None
    ahead = re.match(r"(\s*\n|sep=.\r?\n)*", text, re.IGNORECASE)[0]  # Excel may name its separator first
    text, skipped = text[len(ahead) :], ahead.count("\n")
    between = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
    while True:
        where = f"{path.name} line {skipped + rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem = KeditError(f"{where}: is not CSV ({error}); in a cell in quotes double each quote")
            if names is None or "end of data" in str(error):  # a quote that is not closed: no record follows
                raise problem from None
            found.append((where, problem))
            continue
        if row is None:
            return found
        if names is None:
            names = [name.strip() for name in row]
        elif any(cell.strip() for cell in row[len(names) :]):
            more = f"{where}: has more cells than the header; put cells with {between!r} in quotes"
            found.append((where, KeditError(more)))
        elif cells := {n: cell for n, cell in zip(names, row, strict=False) if cell.strip()}:
            found.append((where, _cells(where, {n: cell for n, cell in cells.items() if not UNNAMED.fullmatch(n)})))


def _cells(where: str, row: dict[str, str]) -> dict | KeditError:
    for name in [n for n in (*LISTS, *PAIRS, "separator") if n in row]:
        try:
            row[name] = _parsed(row[name])
        except json.JSONDecodeError:
            such = '"" or " ", quotes and all' if name == "separator" else 'a JSON list such as ["…"]'
            return KeditError(f"{where}: field {name!r} must be {such}, got {row[name]!r}")
    return row


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _rows(path.name, pq.read_table(path).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise KeditError(f"{path.name}: cannot be read as parquet ({first_line(error)}); write it again") from None


def _from_datasets(source: str, /, split: str | None = None, **options) -> Rows:
    from datasets import load_dataset  # here: slow to import, and only folders and hub names need it

    try:
        found = load_dataset(source, split=split, **options)
    except Exception as error:  # whatever it makes of a name, a login, a network or a file
        remedy = "check the name, the network, and that you are logged in; or give a local file"
        problem = f"cannot be loaded with the datasets library ({first_line(error)})"
        raise KeditError(f"edits {source!r}: {problem}; {remedy}") from error
    if isinstance(found, dict):
        if len(found) > 1:
            raise KeditError(f"edits {source!r}: has the splits {', '.join(found)}; choose one with split=")
        found = next(iter(found.values()))
    return _rows(Path(source).name, found)


def _rows(name: str, rows) -> Rows:
    """In columns a field that one record has and another has not is null."""
    return [(f"{name} record {n}", {k: v for k, v in row.items() if v is not None}) for n, row in enumerate(rows, 1)]


def _object(where: str, value) -> tuple[str, dict | KeditError]:
    if not isinstance(value, dict):
        value = KeditError(f'{where}: is not an object; write {{"prompt": …, "subject": …, "target_new": …}}')
    return where, value


def _parsed(text: str):
    """The value of a JSON text, NaN as null; JSONDecodeError also for numbers and nesting beyond Python's limits."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(first_line(error), text, 0) from None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise KeditError(f"{path.name}: is not UTF-8 text ({where}); save it as UTF-8") from None


READERS = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def texts_of(given, what: str) -> list[str]:
    """Documents from a text, a file, a table, or any iterable of texts or of rows with a field `text`. A str that names
    a file stands for it: a .txt, each paragraph a document, or records with a field `text`. KeditError, which begins
    with `what`, for anything else and for no document."""
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
