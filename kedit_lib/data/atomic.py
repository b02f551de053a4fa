"""Atomic writes: a file or folder is complete or absent, whatever happens while it is written: under a temporary name
beside its own, synced to the disk and renamed; then its folder is synced. And results that are computed only once."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError

from ..errors import explained

LEFT_OVER = ".*.tmp"  # what a killed process leaves behind
# By suffix: how a file is read, and how a value is written.
FORMATS = {
    ".json": (lambda p: json.loads(p.read_text("utf-8")), lambda value, p: p.write_text(json.dumps(value), "utf-8")),
    ".parquet": (pd.read_parquet, lambda table, path: table.to_parquet(path)),
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for a file or a folder, which takes the place of `path` (a file never that of a folder) when the
    block ends without an error. KeditError for a disk that is full or cannot be written."""
    path = Path(path)
    partial, before = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in (".tmp", ".before.tmp"))
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            yield partial
            for file in [*(partial.iterdir() if partial.is_dir() else ()), partial]:
                _sync(file)
            if path.is_dir():  # only an empty folder could be renamed over
                if not partial.is_dir():
                    raise IsADirectoryError("a folder has this name")
                os.replace(path, before)
            os.replace(partial, path)
            _sync(path.parent)
            remove(before)
        except BaseException:
            with contextlib.suppress(OSError):
                if before.exists() and not path.exists():
                    os.replace(before, path)
                remove(partial)
            raise


def writing(path: Path) -> contextlib.AbstractContextManager:
    """Inside, errors of the system and of safetensors are a KeditError: `path` cannot be written."""
    remedy = "free space or choose another folder, then rerun; what was stored before is intact"
    return explained(f"{path}: cannot be written", remedy, lambda e: isinstance(e, (OSError, SafetensorError)))


def remove(path: Path) -> None:
    """A file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(path: Path | None, compute: Callable[[], Any], write: Callable[[Any, Path], None] | None = None) -> Any:
    """The value stored in `path`, .json or .parquet, whose name must hold a hash of all that the value depends on; if
    there is none, or it cannot be read, `compute()`, stored and read back (path None: not kept). write: another way to
    write it, called with value and path. KeditError for a disk that cannot be written."""
    if path is None:
        return compute()
    path = Path(path)
    read, usual = FORMATS[path.suffix]
    with contextlib.suppress(OSError, ValueError):
        return read(path)
    value = compute()
    with replacing(path) as partial:
        (write or usual)(value, partial)
    return read(path)


def _sync(path: Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
