"""Stamps: what an output was made from, so that only what is stale is made again.

A stamp is a small file in an ignored folder. It holds a hash of the *content* of everything that the output depends
on, and the hash of the output itself. Time stamps of files are not used: in a fresh clone they say nothing, and there
are no stamps there either, so a fresh clone always executes.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kedit_lib.data.config import params_folder

PACKAGE = Path(__file__).resolve().parents[1]


def library_files(root: Path) -> list[Path]:
    """Every file that all notebooks depend on: code, parameters, lab weights, pins, committed data of other orders.

    The weights themselves are megabytes; what lies beside them (their checksum, configuration, tokenizer) stands for
    them.
    """
    files = {p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".yaml"}}
    files |= {p for p in (PACKAGE / "lab" / "weights").rglob("*") if p.is_file() and p.suffix != ".safetensors"}
    files |= set(params_folder().rglob("*.yaml"))
    files |= {p for p in (root / "figures" / "data").rglob("*") if p.suffix in {".parquet", ".json", ".csv"}}
    files |= {p for p in [root / "constraints.txt", *(root / "examples").glob("*")] if p.is_file()}
    return sorted(files)


def hash_files(files: Iterable[Path]) -> str:
    """One hash of many files' names and content."""
    digest = hashlib.sha256()
    for path in files:
        name = "/".join(path.parts[-3:])  # enough to tell files apart, nothing of where the clone lies
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def hash_values(*values: Any) -> str:
    """One hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_current(stamp: Path, key: str, output: Path) -> bool:
    """Whether `output` is what was made from `key`, untouched since."""
    try:
        found = json.loads(stamp.read_text())
        return (found["key"], found["output"]) == (key, hash_files([output]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(stamp: Path, key: str, output: Path, seconds: float = 0) -> None:
    """Remember that `output` was made from `key`, and how long that took."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"key": key, "output": hash_files([output]), "seconds": round(seconds, 1)}))
