"""YAML 1.2 text: `5e-1` is a number, `yes` is a word, and a duplicate key is an error."""

from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from ..errors import KeditError, explained, first_line


def parse(text: str, source: str, duplicates: bool = False) -> Any:
    """The value of a YAML text. `source` names it in the KeditError; `duplicates`: the last of equal keys is taken, as
    PyYAML does, and thus the programs that published files were written for."""
    reader = YAML(typ="safe", pure=True)
    if duplicates:
        reader.constructor.check_mapping_key = lambda *_: True
    try:
        return reader.load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # an invalid date; a list as key
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where, what = f" line {mark.line + 1}" if mark else "", getattr(error, "problem", None) or first_line(error)
        remedy = "; keep one of them" if isinstance(error, DuplicateKeyError) else ""
        raise KeditError(f"{source}{where}: is not valid YAML here: {what}{remedy}") from None


def read_yaml(path: Path, duplicates: bool = False) -> dict[str, Any]:
    """The 'name: value' lines of a file; one line of KeditError for whatever is wrong with it."""
    with explained(f"{path.name}: is not a text file of YAML", "save it as UTF-8"):
        text = path.read_text(encoding="utf-8")
    values = parse(text, path.name, duplicates)
    if not isinstance(values, dict):
        raise KeditError(f"{path.name}: holds no 'name: value' lines; write them as in {path.parent}")
    return values


def dump(values: dict[str, Any]) -> str:
    """YAML text in the order of the dictionary, an innermost list or mapping on one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.sort_base_mapping_type_on_output = None, False
    writer.representer.ignore_aliases = lambda data: True
    writer.dump(values, text := StringIO())
    return text.getvalue()
