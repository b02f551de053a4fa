"""Measurements on a stream's edits that are kept as files: <model>.<stream>.order<n>.<key>.<what>, committed in
figures/data or, before that, in results/."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ..data.atomic import replacing
from ..data.cached import FORMATS, cached
from ..data.provenance import ALGORITHMS, key_of
from ..streams.bench import Bench, data_folder
from ..streams.runner import edits_hash
from ..streams.store import write_parquet


def found(bench: Bench, name: str, order: int, what: str, measure: Callable[[], object] | None = None):
    """The measurement `what` ("decomposition.parquet": a table, "….json": a dict) of this model, method and edits,
    committed or from results/. Where there is none, a live order is measured, by `measure` if given; else None."""
    for folder in (data_folder(), bench.results / "measured"):
        if (path := _path(folder, bench, name, order, what)).exists():
            return _read(path)
    live = measure is not None and order in bench.profile.live_orders
    return keep(bench, name, order, what, measure) if live else None


def keep(bench: Bench, name: str, order: int, what: str, measure: Callable[[], object], folder: Path | None = None):
    """The measurement, from results/ or made now and kept there; copied into `folder`, if given."""
    ours = _path(bench.results / "measured", bench, name, order, what)
    value = cached(ours, measure, write_parquet if ours.suffix == ".parquet" else None)
    if folder is not None:
        with replacing(_path(folder, bench, name, order, what)) as partial:
            shutil.copyfile(ours, partial)
    return value


def committed(what: str, models) -> list[tuple[str, str, int, object]]:
    """(model, stream, order, measurement) of every committed `what` of the models with these labels."""
    pattern = re.compile(rf"([^.]+)\.(.+)\.order(\d+)\.[0-9a-f]{{16}}\.{re.escape(what)}")
    named = [(path, pattern.fullmatch(path.name)) for path in sorted(data_folder().iterdir())]
    return [(m[1], m[2], int(m[3]), _read(path)) for path, m in named if m and m[1] in models]


def _read(path: Path):
    return FORMATS[path.suffix][0](path)


def _path(folder: Path, bench: Bench, name: str, order: int, what: str) -> Path:
    """The key holds what decides the numbers; the library's own version counts in results/ only, for committed data
    stay what they are."""
    method = bench.method(name)
    decides = [bench.model.checksum, method.name, method.hyperparameters, edits_hash(bench.edits(order))]
    decides += [] if folder == data_folder() else [ALGORITHMS]
    return folder / f"{bench.profile.model.split('/')[-1]}.{name}.order{order}.{key_of(parts=decides)}.{what}"
