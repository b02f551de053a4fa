"""A stream's tables and where it collapsed; on disk a folder each, named by a hash of all that decides its numbers."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Self

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.atomic import LEFT_OVER, checksum, remove, replacing, writing
from ..editing.history import EditHistory
from ..errors import KeditError
from ..evaluation import cosine
from ..evaluation.protocol import DEAD

TABLES = ("edits", "checkpoints")
WINDOW = 25  # edits in the medians that define N_optimisation
VITAL = ("accuracy", "untouched")  # metric and cohort by which a model is alive


@dataclass
class Run:
    """A finished stream. edits: one row per edit with probability_first/_last, steps, delta_ratio = ‖δ‖/‖v₀‖ (FT: NaN),
    s_<layer> and written_<layer> where the method has them (see Outcome), dW_<layer> = ‖ΔW‖_F of its batch, W_<layer> =
    ‖W‖_F after it, along_<layer> = cosine of ΔW with the sum of the layer's earlier updates (NaN: there is none),
    seconds, … checkpoints: long form, with edits_done, metric, cohort, value, n. manifest: everything that decided the
    numbers, and where and when they were made. path: its folder (None: not stored)."""

    edits: pd.DataFrame
    checkpoints: pd.DataFrame
    manifest: dict
    path: Path | None = None

    def __repr__(self) -> str:
        batches = f"{len(self.edits)} edits in batches of {self.manifest['batch_size']}"
        looks = f"{self.checkpoints['edits_done'].nunique()} checkpoints"
        return f"Run({self.manifest['method']}: {batches}, {looks}, {self.path or 'not stored'})"

    def final_weights(self) -> dict:
        """{parameter name: tensor} of everything edited, at the end. KeditError for a run that stored no weights."""
        if self.path is None:
            raise KeditError("run: its weights were not stored; pass a store to run_stream")
        newest = RunFolder(self.path).newest_checkpoint()
        if newest is None or newest.done != len(self.edits):
            raise KeditError(f"{self.path}: final weights missing or damaged; remove the folder and run it again")
        return newest.weights

    def curve(self, metric: str, cohort: str) -> pd.Series:
        """value by edits_done of one metric on one cohort."""
        c = self.checkpoints
        return c[(c.metric == metric) & (c.cohort == cohort)].set_index("edits_done")["value"].sort_index()


def collapse_point(run, kind: str = "optimisation") -> int | None:
    """The edit at which a stream has collapsed; None: it has not. "optimisation": the first at which the median of the
    final optimised probability over the last 25 edits is below half its value over the first 25. "model": the first
    checkpoint at which accuracy on untouched facts is below 0.5."""
    if kind == "optimisation":
        p = run.edits["probability_last"]
        low = (p.rolling(WINDOW).median() < p.head(WINDOW).median() / 2).to_numpy().nonzero()[0] + 1
    elif kind == "model":
        untouched = run.curve(*VITAL)
        low = untouched.index[untouched < DEAD]
    else:
        raise KeditError(f"collapse_point: kind = {kind!r}; use 'optimisation' or 'model'")
    return int(low[0]) if len(low) else None


def edit_rows(model, outcome, drift: dict, done: int, seconds: float) -> list[dict]:
    """A row for each edit of the batch just applied; drift: {layer: W − W₀ before it}."""
    rows, shared = [], {"seconds": seconds / len(outcome.edits), "batch": len(outcome.edits)}
    for layer in outcome.layers(model):
        delta = outcome.deltas[model.weight_name(layer)]
        shared[f"dW_{layer}"] = delta.double().norm().item()
        shared[f"along_{layer}"] = cosine(delta, drift[layer])
        shared[f"W_{layer}"] = model.weight(layer).detach().double().norm().item()
    for i, (edit, target) in enumerate(zip(outcome.edits, outcome.targets, strict=True)):
        row = {
            "edit": done + i + 1,
            **{name: getattr(edit, name) for name in ("id", "subject", "relation", "target_new")},
            "probability_first": target.probabilities[0],
            "probability_last": target.probabilities[-1],
            "loss_last": target.losses[-1],
            "steps": target.steps,
            "delta_ratio": float("nan") if target.delta is None else target.delta.norm().item() / target.v0_norm,
            **{name: getattr(target, name) for name in ("v0_norm", "clamped", "already")},
            **shared,
        }
        for name, values in (("s", outcome.s), ("written", outcome.written)):
            row |= {f"{name}_{layer}": each[i].item() for layer, each in values.items()}
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Checkpoint:
    """A stream after some edits: {parameter name: tensor} of everything edited, rows of the edits and of the probes so
    far, plain data of the stream's own, and what its method carries from edit to edit (None: nothing). healthy: an
    earlier one, to which its guard would roll back (None: to none)."""

    weights: dict
    edits: list[dict]
    checks: list[dict]
    state: dict
    history: EditHistory | None = None
    healthy: Self | None = None

    @property
    def done(self) -> int:
        return len(self.edits)


@dataclass(frozen=True)
class RunFolder:
    """`<name>-<key>/`: checkpoints while it runs, then edits.parquet, checkpoints.parquet, manifest.json. A checkpoint
    is a folder `at-<edits done>`, written atomically, with a checksum of each of its files; the newest two are kept."""

    path: Path | None  # None: the run is not stored

    @property
    def key(self) -> str:
        return self.path.name.rpartition("-")[2]

    def finished(self) -> bool:
        return self.path is not None and (self.path / "manifest.json").exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder; another process warns and waits. KeditError for one that cannot be written."""
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
            state = {**checkpoint.state, "key": self.key}
            for name, rows in zip(TABLES, (checkpoint.edits, checkpoint.checks), strict=True):
                pd.DataFrame(rows).to_parquet(partial / f"{name}.parquet")
            for which, one in {"": checkpoint, "healthy-": checkpoint.healthy}.items():
                if one is not None:  # of the healthy one the rows are the first of these
                    state[f"{which}done"] = one.done
                    weights = {n: w.contiguous().cpu() for n, w in one.weights.items()}
                    save_file(weights, str(partial / f"{which}weights.safetensors"))
                    if one.history is not None:
                        one.history.save(partial / f"{which}history.safetensors")
            (partial / "state.json").write_text(json.dumps(state))
            sums = {file.name: checksum(file) for file in sorted(partial.iterdir())}
            (partial / "checksums.json").write_text(json.dumps(sums))
        there = self.checkpoints()
        newer = [one for one in there if one.name > f"at-{checkpoint.done:06d}"]  # it was rolled back behind them
        for old in newer + there[len(newer) + 2 :]:
            remove(old)

    def newest_checkpoint(self, clean: bool = False) -> Checkpoint | None:
        """The newest undamaged checkpoint, with a warning for each damaged one. clean: remove these (if it is held)."""
        there = self.checkpoints()
        for folder, before in zip_longest(there, there[1:]):
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                instead = f"{before.name} is used instead" if before else "there is no other"
                warnings.warn(f"checkpoint {folder}: is damaged ({error}); {instead}", stacklevel=3)
            if clean:
                remove(folder)
        return None

    def checkpoints(self) -> list[Path]:
        """The newest first."""
        return [] if self.path is None else sorted(self.path.glob("at-*"), reverse=True)

    def _read(self, folder: Path) -> Checkpoint:
        sums = json.loads((folder / "checksums.json").read_text())
        there = {file.name: checksum(file) for file in folder.iterdir() if file.name != "checksums.json"}
        if sums != there:
            raise ValueError("a file is missing, one too many, or not what was written (checksum mismatch)")
        state = json.loads((folder / "state.json").read_text())
        if (state["key"], f"at-{state['done']:06d}") != (self.key, folder.name):
            raise ValueError("it was moved here from elsewhere")
        edits, checks = (pd.read_parquet(folder / f"{name}.parquet").to_dict("records") for name in TABLES)
        found = None
        for which in ("healthy-", "") if "healthy-done" in state else ("",):
            kept, done = folder / f"{which}history.safetensors", state[f"{which}done"]
            history = EditHistory.load(kept) if kept.exists() else None
            weights = load_file(folder / f"{which}weights.safetensors")
            found = Checkpoint(weights, edits[:done], checks, state, history, found)
        return found

    def finish(self, edits: pd.DataFrame, checkpoints: pd.DataFrame, manifest: dict) -> dict:
        """Write the final tables, the manifest last: a folder with a manifest is complete. The manifest as stored."""
        for old in self.checkpoints()[1:]:
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
    """Write <prefix>edits.parquet, <prefix>checkpoints.parquet, <prefix>manifest.json; the manifest, with checksums."""
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
            if checksum(path := paths[TABLES.index(name)]) != expected:
                raise ValueError(f"{path.name} is not what was written (checksum mismatch)")
        tables = [pd.read_parquet(path) for path in paths]
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{folder}/{prefix or '*'}: stored run cannot be read ({error})"
        raise KeditError(f"{problem}; remove it and run again") from None
    return *tables, manifest
