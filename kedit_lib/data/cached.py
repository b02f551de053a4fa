"""Results that are computed once and then read from their file."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from .atomic import replacing

# By suffix: how a file is read, and how a value is written.
FORMATS = {
    ".json": (lambda p: json.loads(p.read_text("utf-8")), lambda value, p: p.write_text(json.dumps(value), "utf-8")),
    ".parquet": (pd.read_parquet, lambda table, path: table.to_parquet(path)),
}


def cached(path: Path | None, compute: Callable[[], Any], write: Callable[[Any, Path], None] | None = None) -> Any:
    """The value stored in `path`; on the first call `compute()`, whose value is stored there and read back.

    path     .json or .parquet; its name must hold a hash of all that the value depends on. None: nothing is kept
    write    (value, path), where the suffix's own way of writing is not wanted

    An unreadable file is computed again. KeditError for a disk that cannot be written.
    """
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
