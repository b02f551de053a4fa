"""One record of a data set: its fields by path, and errors that name the record and the field."""

from typing import NoReturn

from ..errors import KeditError

REQUIRED = object()
KINDS = {str: "text", list: "a list", dict: "an object"}


class Record:
    """The values of a record and `where` it is, e.g. "facts.json record 3"; `broken`: why it could not be read.

    A path such as "requested_rewrite.target_new.str" goes through objects. Null counts as absent, a whole number as
    text ("1945"). KeditError for a field that is missing without a default, or of the wrong type.
    """

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
