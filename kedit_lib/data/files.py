"""What users give: records from a file, a folder, or the hub, whatever their schema; and plain text in any form."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import KeditError, explained, first_line
from .edit import LISTS, PAIRS
from .words import spaceless

_parsed = partial(json.loads, parse_constant=lambda name: None)  # a JSON text, NaN as null
UNNAMED = re.compile(r"\s*|Unnamed: \d+")  # the header of a column that a table program added: its row numbers
REQUIRED = object()
NO_JSON = (ValueError, RecursionError)  # numbers and nesting may be beyond Python's limits
DEEPEST = 9  # objects in objects
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::(.+))?")  # a set, and perhaps one of its configurations
PROMPTS, ANSWERS = ("prompt", "New Question"), ("ground_truth", "answer", "target", "New Answer")  # of a question
Rows = Iterator[tuple[str, Any]]  # where each record stands, and its JSON value or the KeditError that it gives


class Record:
    """The values of a record without nulls, and `where` it is, e.g. "facts.json record 3". broken: why it could not be
    read; leaves: {path: value} of all that is in it, such as "requested_rewrite.target_new.str"."""

    def __init__(self, where: str, number: int, values):
        if not isinstance(values, (dict, KeditError)):
            values = KeditError('is not an object; write {"prompt": …, "subject": …, "target_new": …}')
        self.where, self.number = where, number
        self.broken = None if isinstance(values, dict) else values
        self.values = {} if self.broken else {name: value for name, value in values.items() if value is not None}
        self.leaves = dict(_leaves(self.values))

    def text(self, path: str, default=REQUIRED) -> str:
        """One text or whole number ("1945"); of a list of right answers, each perhaps a list of spellings, the first.
        KeditError for anything else, and where it is missing without a default."""
        found = self._text(path, self.leaves.get(path))
        if found is None and default is REQUIRED:
            given = self.values.get(path)
            got = "is missing" if given in (None, []) else f"must be text, got {given!r:.60}"
            raise KeditError(f"{self.where}: field {path!r} {got}")
        return default if found is None else found

    def texts(self, *paths: str) -> list[str]:
        """All texts at these paths, each one text or a list of them, without blank ones."""
        return [text for path in paths for text in self._listed(path) if text.strip()]

    def pairs(self, *places: str | tuple[str, str]) -> list[tuple[str, str]]:
        """(prompt, answer) of all questions, without blank ones. A place is a path below which questions stand, however
        deep, or a path of prompts and one of answers."""
        two = [pair for place in places for pair in ([place] if isinstance(place, tuple) else self._questions(place))]
        found = [pair for paths in two for pair in zip(*map(self._listed, paths), strict=False)]
        return [(prompt, answer) for prompt, answer in found if prompt.strip() and answer.strip()]

    def label(self, *paths: str, default=None) -> str:
        """A name of the record, text or number: what stands at the first of these paths; without, its position."""
        found = (self.leaves[path] for path in paths if self.leaves.get(path) is not None)
        return str(next(found, self.number if default is None else default))

    def _text(self, path: str, value) -> str | None:
        while isinstance(value, list):
            value = value[0] if value else None
        if value is None or isinstance(value, str):
            return value
        if type(value) is not int:
            raise KeditError(f"{self.where}: field {path!r} must be text, got {value!r:.60}")
        return str(value)

    def _listed(self, path: str) -> list[str]:
        value = self.leaves.get(path)
        return [self._text(path, item) or "" for item in (value if isinstance(value, list) else [value])]

    def _questions(self, path: str) -> Iterator[tuple[str, str]]:
        """(path of the prompt, path of the answer)."""
        for leaf in self.leaves:
            above, _, name = leaf.rpartition(".")
            if name in PROMPTS and f"{above}.".startswith(f"{path}."):
                yield leaf, next((said for n in ANSWERS if (said := f"{above}.{n}") in self.leaves), "")


def _leaves(value, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is no object and no list of objects, or lies deeper than any schema has it."""
    inner = dict(enumerate(value)) if isinstance(value, list) and any(isinstance(v, dict) for v in value) else value
    if not isinstance(inner, dict) or path.count(".") >= DEEPEST:
        yield path, value
        return
    for name, below in inner.items():
        yield from _leaves(below, f"{path}.{name}" if path else name)


def records_of(source: str | Path, **hub) -> list[Record]:
    """Every record of `source`: a .json, .jsonl, .csv, .tsv or .parquet file, a folder of such files, or a hub name,
    "owner/name" or "owner/name:configuration". hub: for folders and hub names, keywords of `datasets.load_dataset` such
    as split (of the hub: train) or data_files. In CSV (commas, semicolons or tabs) lists and a separator are JSON,
    empty cells absent. A line that cannot be read is a broken record, a source a KeditError, as is an empty one."""
    path, name = Path(source), str(source)
    suffix = path.suffix.lower()
    if os.path.isfile(path):  # Path.is_file() raises for a name that is too long
        if hub:
            raise KeditError(f"edits {name!r}: is a file; {', '.join(hub)} go with a folder or a hub name only")
        if suffix not in READERS:
            raise KeditError(f"edits {name!r}: format {suffix!r} is unknown; give {', '.join(READERS)}")
        found = READERS[suffix](path)
    elif os.path.isdir(path):
        found = _from_datasets(name, **hub)
    elif suffix not in READERS and (there := HUB_NAME.fullmatch(name)):
        found = _from_datasets(there[1], **{"split": "train", "name": there[2], **hub})
    else:
        give = f"give 'lab', a file ({', '.join(READERS)}), a folder, or a hub name such as owner/name"
        raise KeditError(f"edits {name!r}: no such file; {give}")
    if records := [Record(where, number, values) for number, (where, values) in enumerate(found, 1)]:
        return records
    raise KeditError(f"{path.name}: holds no edits; write one record per edit")


def _json(path: Path) -> Rows:
    text = _text(path)
    with explained(f"{path.name}: is not JSON", "a file with one object per line is .jsonl"):
        values = _parsed(text)
    if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        values = [{"index": name, **value} for name, value in values.items()]  # records by name
    if not isinstance(values, list):
        raise KeditError(f"{path.name}: must hold a list of records, got {type(values).__name__}")
    return _numbered(path.name, values)


def _numbered(name: str, values: Iterable) -> Rows:
    return ((f"{name} record {n}", value) for n, value in enumerate(values, 1))


def _jsonl(path: Path) -> Rows:
    for n, line in enumerate(_text(path).split("\n"), 1):  # splitlines() would cut inside texts, at U+2028 for one
        if line.strip():
            try:
                value = _parsed(line)
            except NO_JSON as error:
                value = KeditError(f"is not JSON ({first_line(error)}); write one object per line")
            yield f"{path.name} line {n}", value


def _csv(path: Path) -> Rows:
    text, names = _text(path), None
    ahead = re.match(r"(\s*\n|sep=.\r?\n)*", text, re.IGNORECASE)[0]  # Excel may name its separator first
    text, skipped = text[len(ahead) :], ahead.count("\n")
    between = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
    while True:
        where = f"{path.name} line {skipped + rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem = KeditError(f"is not CSV ({error}); in a cell in quotes double each quote")
            if names is None or "end of data" in str(error):  # a quote that is not closed: no record follows
                raise KeditError(f"{where}: {problem}") from None
            yield where, problem
            continue
        if row is None:
            return
        if names is None:
            names = [name.strip() for name in row]
        elif any(cell.strip() for cell in row[len(names) :]):
            yield where, KeditError(f"has more cells than the header; put cells with {between!r} in quotes")
        elif cells := {name: cell for name, cell in zip(names, row, strict=False) if cell.strip()}:
            yield where, _cells({name: cell for name, cell in cells.items() if not UNNAMED.fullmatch(name)})


def _cells(row: dict[str, str]) -> dict | KeditError:
    for name in [n for n in (*LISTS, *PAIRS, "separator") if n in row]:
        try:
            row[name] = _parsed(row[name])
        except NO_JSON:
            such = '"" or " ", quotes and all' if name == "separator" else 'a JSON list such as ["…"]'
            return KeditError(f"field {name!r} must be {such}, got {row[name]!r}")
    return row


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    with explained(f"{path.name}: cannot be read as parquet", "write it again"):
        return _numbered(path.name, pq.read_table(path).to_pylist())


def _from_datasets(source: str, /, split: str | None = None, **options) -> Rows:
    from datasets import load_dataset  # here: slow to import, and only folders and hub names need it

    remedy = "check the name, the network, and that you are logged in; or give a local file"
    with explained(f"edits {source!r}: cannot be loaded with the datasets library", remedy):
        found = load_dataset(source, split=split, **options)
    if isinstance(found, dict):
        if len(found) > 1:
            raise KeditError(f"edits {source!r}: has the splits {', '.join(found)}; choose one with split=")
        found = next(iter(found.values()))
    return _numbered(Path(source).name, found)


def _text(path: Path) -> str:
    with explained(f"{path.name}: cannot be read", "save it as UTF-8"):
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte order mark in front


READERS = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def read_texts(source: str | Path) -> list[str]:
    """Texts without outer white space: the paragraphs of a .txt file (its lines, where no line is empty), or the field
    `text` of records. Sources and errors as of `records_of`; KeditError also where no record has that field."""
    path = Path(source)
    if path.suffix.lower() == ".txt" and path.is_file():
        text = _text(path).replace("\r\n", "\n").strip()
        texts = text.split("\n\n" if "\n\n" in text else "\n")
    else:
        texts = [text for r in records_of(source) if isinstance(text := r.values.get("text"), str)]
        if not texts:
            raise KeditError(f"texts {str(source)!r}: no record has a field 'text'; name it so, or give a .txt file")
    return [text.strip() for text in texts if text.strip()]


def texts_of(given, what: str) -> list[str]:
    """Documents from a text, a file as `read_texts` reads it, a table, or any iterable of texts or of rows with a field
    `text`. A str stands for a file where it names one. KeditError for anything else, for no file and for no text."""
    if isinstance(given, os.PathLike) or (isinstance(given, str) and _names_a_file(given)):
        if not os.path.isfile(given):
            raise KeditError(f"{what}: there is no file {str(given)!r}; give an existing one, or [text] for a text")
        given = read_texts(given)
    elif isinstance(given, str):
        given = [given]
    elif isinstance(given, pd.DataFrame):
        given = given.to_dict("records")
    elif isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise KeditError(f"{what}: texts are {type(given).__name__}; pass a list of plain text, or a file")
    found = []
    for i, row in enumerate(given):
        found.append(row.get("text") if isinstance(row, Mapping) else row)
        if not isinstance(found[-1], str):
            raise KeditError(f"{what}: text {i} is not text ({row!r:.60}); pass texts, or rows with a field 'text'")
    if not any(text.strip() for text in found):
        raise KeditError(f"{what}: no texts were given; pass a list of plain text")
    return found


def _names_a_file(text: str) -> bool:
    """Whether a text is a path: of something that exists, with the name of a file of texts, or a single word."""
    named = os.sep in text and Path(text).suffix.lower() in (".txt", *READERS)
    path = named or os.path.exists(text) or not (" " in text.strip() or spaceless(text))
    return path and len(text) <= 1000 and "\n" not in text
