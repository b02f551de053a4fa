"""Stamps: small files in an ignored folder with a hash of the *content* of everything that an output was made from, and
of the output itself, so that only what is stale is made again. A fresh clone has none, and always executes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..data.atomic import checksum
from ..data.config import params_folder

PACKAGE = Path(__file__).resolve().parents[1]


def library_files(root: Path) -> list[Path]:
    """Every file that all notebooks depend on: code, parameters, lab weights, pins, committed data of other orders.

    The weights' checksum, configuration and tokenizer stand for the megabytes of the weights themselves.
    """
    files = {p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".yaml"}}
    files |= {p for p in (PACKAGE / "lab" / "weights").rglob("*") if p.is_file() and p.suffix != ".safetensors"}
    files |= set(params_folder().rglob("*.yaml"))
    files |= {p for p in (root / "figures" / "data").rglob("*") if p.suffix in {".parquet", ".json", ".csv"}}
    files |= {p for p in [root / "constraints.txt", *(root / "examples").glob("*")] if p.is_file()}
    return sorted(files)


def hash_files(files: Iterable[Path]) -> str:
    """One hash of many files' names and content; of where they lie only the last two folders count."""
    lines = (f"{'/'.join(path.parts[-3:])}\0{checksum(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_current(stamp: Path, key: str, output: Path) -> bool:
    """Whether `output` is what was made from `key`, untouched since."""
    return stamp.exists() and output.exists() and stamp.read_text() == _text(key, output)


def write(stamp: Path, key: str, output: Path) -> None:
    """Remember that `output` was made from `key`."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(_text(key, output))


def _text(key: str, output: Path) -> str:
    return f"{key} {checksum(output)}\n"
