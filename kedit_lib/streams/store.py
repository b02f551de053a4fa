"""Runs on disk: a folder each, named by a hash of everything that decides its numbers."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.atomic import LEFT_OVER, checksum, remove, replacing, writing
from ..editing.history import EditHistory
from ..errors import KeditError

TABLES = ("edits", "checkpoints")


@dataclass(frozen=True)
class Checkpoint:
    """A stream after `done` edits: {parameter name: tensor} of everything edited, rows of the edits and of the probes
    so far, plain data of the stream's own, and what its method carries from edit to edit (None: nothing)."""

    done: int
    weights: dict
    edits: list[dict]
    checks: list[dict]
    state: dict
    history: EditHistory | None = None


@dataclass(frozen=True)
class RunFolder:
    """`<name>-<key>/`: checkpoints while it runs, then edits.parquet, checkpoints.parquet, manifest.json.

    A checkpoint is a folder `at-<edits done>`, written atomically, with a checksum of each of its files; the newest
    two are kept. path None: the run is not stored.
    """

    path: Path | None

    @property
    def key(self) -> str:
        return self.path.name.rpartition("-")[2]

    def finished(self) -> bool:
        return self.path is not None and (self.path / "manifest.json").exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for this process; another one warns and waits. The lock ends with the process. KeditError for
        a folder that cannot be written."""
        if self.path is None:
            yield
            return
        lock = FileLock(self.path / ".lock")
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                held = lock.acquire(blocking=False)
            except Timeout:
                warnings.warn(f"{self.path}: another process is running this stream; waiting for it", stacklevel=4)
                held = lock.acquire()
        with held:
            for partial in self.path.glob(LEFT_OVER):
                remove(partial)
            yield

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        if self.path is None:
            return
        with replacing(self.path / f"at-{checkpoint.done:06d}") as partial:
            partial.mkdir()
            weights = {n: w.contiguous().cpu() for n, w in checkpoint.weights.items()}
            save_file(weights, str(partial / "weights.safetensors"))
            for name, rows in zip(TABLES, (checkpoint.edits, checkpoint.checks), strict=True):
                pd.DataFrame(rows).to_parquet(partial / f"{name}.parquet")
            if checkpoint.history is not None:
                checkpoint.history.save(partial / "history.safetensors")
            state = {**checkpoint.state, "done": checkpoint.done, "key": self.key}
            (partial / "state.json").write_text(json.dumps(state))
            sums = {file.name: checksum(file) for file in sorted(partial.iterdir())}
            (partial / "checksums.json").write_text(json.dumps(sums))
        for old in self._checkpoints()[2:]:
            remove(old)

    def newest_checkpoint(self, clean: bool = False) -> Checkpoint | None:
        """The newest undamaged checkpoint, with a warning for each damaged one. clean: remove these (in a folder that
        is held)."""
        there = self._checkpoints()
        for folder, before in zip_longest(there, there[1:]):
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                instead = f"{before.name} is used instead" if before else "there is no other"
                warnings.warn(f"checkpoint {folder}: is damaged ({error}); {instead}", stacklevel=3)
            if clean:
                remove(folder)
        return None

    def last_checkpoint(self) -> str:
        """For messages: where the newest checkpoint lies."""
        return f"last healthy checkpoint: {there[0]}" if (there := self._checkpoints()) else "no checkpoint is stored"

    def _checkpoints(self) -> list[Path]:
        """The newest first."""
        return [] if self.path is None else sorted(self.path.glob("at-*"), reverse=True)

    def _read(self, folder: Path) -> Checkpoint:
        sums = json.loads((folder / "checksums.json").read_text())
        if {*sums, "checksums.json"} != {file.name for file in folder.iterdir()}:
            raise ValueError("a file is missing, or one too many")
        for name, expected in sums.items():
            _check(folder / name, expected)
        state = json.loads((folder / "state.json").read_text())
        if (state["key"], f"at-{state['done']:06d}") != (self.key, folder.name):
            raise ValueError("it was moved here from elsewhere")
        tables = [pd.read_parquet(folder / f"{name}.parquet").to_dict("records") for name in TABLES]
        kept = folder / "history.safetensors"
        history = EditHistory.load(kept) if kept.exists() else None
        return Checkpoint(state["done"], load_file(folder / "weights.safetensors"), *tables, state, history)

    def finish(self, edits: pd.DataFrame, checkpoints: pd.DataFrame, manifest: dict) -> dict:
        """Write the final tables, the manifest last: a folder with a manifest is complete. The manifest as stored."""
        for old in self._checkpoints()[1:]:
            remove(old)
        if self.path is None:
            return json.loads(json.dumps(manifest))
        return write_tables(self.path, "", edits, checkpoints, manifest)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """A table as a small Parquet file: bytes of numbers split, strongly compressed, without statistics."""
    numbers = list(table.select_dtypes("floating"))
    columns = {"use_dictionary": [name for name in table if name not in numbers], "use_byte_stream_split": numbers}
    packed = {"compression": "zstd", "compression_level": 19, "write_statistics": False}
    with replacing(path) as partial:
        table.to_parquet(partial, index=False, **columns, **packed)


def write_tables(folder, prefix: str, edits: pd.DataFrame, checkpoints: pd.DataFrame, manifest: dict) -> dict:
    """Write `<prefix>edits.parquet`, `<prefix>checkpoints.parquet` and, with their checksums, `<prefix>manifest.json`.
    The manifest as stored."""
    folder, sums = Path(folder), {}
    for name, table in zip(TABLES, (edits, checkpoints), strict=True):
        path = folder / f"{prefix}{name}.parquet"
        write_parquet(table, path)
        sums[name] = checksum(path)
    manifest = json.loads(json.dumps({**manifest, "checksums": sums}))
    with replacing(folder / f"{prefix}manifest.json") as partial:
        partial.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def read_tables(folder, prefix: str):
    """(edits, checkpoints, manifest) that `write_tables` wrote; KeditError when a part is missing or damaged."""
    paths = [Path(folder) / f"{prefix}{name}.parquet" for name in TABLES]
    try:
        manifest = json.loads((Path(folder) / f"{prefix}manifest.json").read_text())
        for name, expected in manifest.get("checksums", {}).items():  # none in manifests from before they were stored
            _check(paths[TABLES.index(name)], expected)
        tables = [pd.read_parquet(path) for path in paths]
    except (OSError, ValueError, AttributeError) as error:
        where = f"{folder}/{prefix or '*'}"
        raise KeditError(f"{where}: stored run cannot be read ({error}); remove it and run again") from None
    return *tables, manifest


def _check(path: Path, expected: str) -> None:
    if checksum(path) != expected:
        raise ValueError(f"{path.name} is not what was written (checksum mismatch)")
