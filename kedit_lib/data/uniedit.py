"""UniEdit: an edit, with questions that follow from it (`generality`) and others that do not (`locality`).

Source: Chen et al., UniEdit: A Unified Knowledge Editing Benchmark for Large Language Models, arXiv 2505.12345; a
file is an object of records.
"""

from __future__ import annotations

from .records import Record, pairs


def fits(values: dict) -> bool:
    return isinstance(values.get("edit"), dict)


def fields(record: Record) -> dict:
    return {
        "text": record.text("edit.prompt"),
        "subject": record.text("edit.subject"),
        "target_new": record.text("edit.target"),
        "portability": _asked(record, "generality"),
        "locality": _asked(record, "locality"),
        "id": record.label("index"),
    }


def _asked(record: Record, name: str) -> list[tuple[str, str]]:
    paths = [f"{name}.{key}" for key in record.inside(name)]
    return pairs(*((record.text(f"{path}.prompt", ""), record.text(f"{path}.target", "")) for path in paths))
