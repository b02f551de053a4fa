"""Results on disk: one folder a run, found by a key over everything that changes its numbers."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import KeditError
from .history import EditHistory
from .params import REPOSITORY

ALGORITHMS = 1  # raised by hand when a change of the library changes numbers


def key_of(**parts) -> str:
    """A short hash over named parts (plain data)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def commit() -> str | None:
    """The commit of this checkout, for manifests; None outside a repository."""
    asked = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


class RunFolder:
    """`<root>/<name>-<key>/`: checkpoints while it runs, then edits.parquet, checkpoints.parquet, manifest.json.

    A checkpoint is a folder written beside and renamed, so a killed run leaves whole ones only; the
    newest two are kept.
    """

    def __init__(self, root, name: str, key: str):
        self.path, self.key = Path(root) / f"{name}-{key}", key

    @classmethod
    def at(cls, path) -> RunFolder:
        """The folder of a run that is there."""
        name, _, key = Path(path).name.rpartition("-")
        return cls(Path(path).parent, name, key)

    def finished(self) -> bool:
        return (self.path / "manifest.json").exists()

    def save_checkpoint(
        self, done: int, weights: dict, edits: list[dict], checkpoints: list[dict], extra: dict, history=None
    ) -> None:
        partial, final = self.path / f".writing-{os.getpid()}", self.path / f"at-{done:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({n: w.contiguous().cpu() for n, w in weights.items()}, str(partial / "weights.safetensors"))
        pd.DataFrame(edits).to_parquet(partial / "edits.parquet")
        pd.DataFrame(checkpoints).to_parquet(partial / "checkpoints.parquet")
        if history is not None:
            history.save(partial / "history.safetensors")
        (partial / "state.json").write_text(json.dumps({"done": done, "key": self.key, **extra}))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in sorted(self.path.glob("at-*"))[:-2]:
            shutil.rmtree(old)

    def newest_checkpoint(self, with_history: bool = False):
        """(done, weights, edit rows, checkpoint rows, extra, history) of the newest that can be read, or None.

        with_history: whether it must hold an EditHistory (else: None).
        """
        for folder in sorted(self.path.glob("at-*"), reverse=True):
            try:
                state = json.loads((folder / "state.json").read_text())
                tables = [pd.read_parquet(folder / f"{part}.parquet") for part in ("edits", "checkpoints")]
                weights = load_file(str(folder / "weights.safetensors"))
                history = EditHistory.load(folder / "history.safetensors") if with_history else None
            except (OSError, ValueError, SafetensorError):  # damaged on disk: the one before it will do
                continue
            return state["done"], weights, *(table.to_dict("records") for table in tables), state, history
        return None

    def finish(self, edits: pd.DataFrame, checkpoints: pd.DataFrame, manifest: dict) -> None:
        """The final tables; the manifest last, because its presence says that the run is whole."""
        write_tables(self.path, "", edits, checkpoints, manifest)
        for old in [*sorted(self.path.glob("at-*"))[:-1], *self.path.glob(".writing-*")]:
            shutil.rmtree(old)

    def load(self):
        return read_tables(self.path, "")

    def final_weights(self) -> dict:
        """The edited weights at the end of the run."""
        newest = self.newest_checkpoint()
        if newest is None:
            raise KeditError(f"{self.path}: holds no weights; remove the folder and run the stream again")
        return newest[1]


def write_tables(folder, prefix: str, edits: pd.DataFrame, checkpoints: pd.DataFrame, manifest: dict) -> None:
    """`<prefix>edits.parquet`, `<prefix>checkpoints.parquet`, `<prefix>manifest.json` in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("edits", edits), ("checkpoints", checkpoints)):
        partial = folder / f".{prefix}{name}.{os.getpid()}"
        table.to_parquet(partial, compression="zstd", index=False)
        os.replace(partial, folder / f"{prefix}{name}.parquet")
    partial = folder / f".{prefix}manifest.{os.getpid()}"
    partial.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    os.replace(partial, folder / f"{prefix}manifest.json")


def read_tables(folder, prefix: str):
    """(edits, checkpoints, manifest) that `write_tables` wrote; KeditError when a part is missing."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / f"{prefix}manifest.json").read_text())
        tables = [pd.read_parquet(folder / f"{prefix}{name}.parquet") for name in ("edits", "checkpoints")]
    except (OSError, ValueError) as error:
        where = f"{folder}/{prefix or '*'}"
        raise KeditError(f"{where}: stored run cannot be read ({error}); remove it and run again") from None
    return *tables, manifest


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
