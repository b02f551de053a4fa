"""What notebooks measure on a stream's edits and keep as files: <model>.<stream>.order<n>.<key>.<what>."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..data.atomic import FORMATS, cached
from ..data.provenance import ALGORITHMS, key_of
from ..streams.bench import Bench, data_folder
from ..streams.runner import edits_hash
from ..streams.store import write_parquet


def found(bench: Bench, name: str, order: int, what: str, measure: Callable[[], object] | None = None, commit=False):
    """The measurement `what` ("decomposition.parquet": a table, "….json": a dict) of this model, method and edits, from
    figures/data or results/. Where there is none, a live order is measured, by `measure` if given, and kept in results/
    (commit: in figures/data); else None."""
    folders = data_folder(), bench.results / "measured"
    paths = [_path(folder, bench, name, order, what) for folder in folders]
    path = next((path for path in paths if path.exists()), paths[not commit])
    live = measure is not None and order in bench.profile.live_orders
    if live or path.exists():
        return cached(path, measure, write_parquet if path.suffix == ".parquet" else None)


def committed(what: str, models) -> list[tuple[str, str, int, object]]:
    """(model, stream, order, measurement) of every committed `what` of the models with these labels."""
    pattern = re.compile(rf"([^.]+)\.(.+)\.order(\d+)\.[0-9a-f]{{16}}\.{re.escape(what)}")
    named = [(path, pattern.fullmatch(path.name)) for path in sorted(data_folder().iterdir())]
    return [(m[1], m[2], int(m[3]), FORMATS[path.suffix][0](path)) for path, m in named if m and m[1] in models]


def _path(folder: Path, bench: Bench, name: str, order: int, what: str) -> Path:
    """The key holds what decides the numbers; the library's own version counts in results/ only, for committed data
    stay what they are."""
    method = bench.method(name)
    decides = [bench.model.checksum, method.name, method.hyperparameters, edits_hash(bench.edits(order))]
    decides += [] if folder == data_folder() else [ALGORITHMS]
    return folder / f"{bench.profile.model.split('/')[-1]}.{name}.order{order}.{key_of(parts=decides)}.{what}"
