"""The bench runs named streams, or finds them finished. What one big batch costs is measured in its own process."""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import cached_property, partial
from math import isclose
from multiprocessing import get_context, parent_process
from pathlib import Path

import pandas as pd
import torch

from ..data.atomic import cached
from ..data.config import REPOSITORY, Profile, Stream, groups_of, load_profile, results_folder, streams_of
from ..data.edit import Edit
from ..data.provenance import ALGORITHMS, key_of, versions
from ..editing import Method, method_for
from ..editing.compute_k import generate_contexts
from ..editing.interventions import changed
from ..editing.locate_then_edit import anchor_norm
from ..editing.second_moments import SecondMoments
from ..editing.transfer import with_rho
from ..errors import KeditError, meant
from ..evaluation.single_edits import single_edits
from ..models.loading import load_model
from .facts import facts_of, kept_facts
from .runner import edits_hash, run_stream
from .store import Run, read_tables, write_parquet, write_tables

NAMED = r"([^.]+)\.(.+)\.order(\d+)\.(?:[0-9a-f]{16}\.)?"  # <label>.<stream>.order<n>.[<key>.]<what>
ANCHOR_SAMPLE = 20  # edits that the reference norm of an anchored stream is measured on, unedited
ROUNDING = 1e-5  # relative; single precision on two machines differs by less, two settings that someone chose by more


class Bench:
    """One model with its moments, contexts, edits and probes, as a profile says: kedit.Bench("lab", n_edits=100); a
    field that is None is the profile's. An *order* changes the sample of facts, their order, and the contexts' seed.
    label: the model's name in tables."""

    def __init__(self, profile: str | Profile = "lab", results=None, progress: bool = True, **overrides):
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if overrides or not isinstance(profile, Profile):
            profile = load_profile(getattr(profile, "name", profile), **overrides)
        self.profile = p = profile
        self.label = p.label or p.model.split("/")[-1]
        self.results, self.progress = Path(results or results_folder()), progress
        self.model = load_model(p.model, dtype=p.dtype, device=p.device, originals=p.originals)
        known = self.results / "known"
        for asked in (data_folder() / "known").glob("*.json"):  # whatever machine asked, the same facts are edited
            cached(known / asked.name, partial(json.loads, asked.read_text("utf-8")))
        self.facts = facts_of(self.model, p.edits, p.texts, known, p.chat)
        self.streams = {name: stream for group in groups_of(p).values() for name, stream in group.items()}
        self._runs, self._methods = {}, {}

    @cached_property
    def moments(self) -> SecondMoments:
        """C at every layer that some method edits with it; measured once and kept in results/moments."""
        uses = (s for s in self.streams.values() if method_for(self.model, s.method, **s.overrides).needs_moments)
        layers = sorted({layer for s in uses for layer in method_for(self.model, s.at or s.method).layers})
        cache = self.results / "moments"
        return SecondMoments.estimate(self.model, self.facts.texts(), layers, cache=cache, progress=self.progress)

    def edits(self, order: int = 0, n: int | None = None) -> list[Edit]:
        return self.facts.edits(n or self.profile.n_edits, self._seed(order))

    def edits_of(self, name: str, order: int = 0) -> list[Edit]:
        """The edits of a stream: as many as the profile says, times the stream's `length`, or as `per_d_ff` says."""
        stream = self._stream(name)
        n = self.profile.n_edits * stream.length if stream.per_d_ff is None else self.model.d_ff * stream.per_d_ff
        return self.edits(order, round(n))

    def probes(self, edits, order: int = 0, layers=(), families: bool = True) -> list:
        """What is measured at the checkpoints of a stream of these edits in `layers`, as in `Facts.probes`."""
        p = self.profile
        return self.facts.probes(edits, p.untouched, order, layers, p.checkpoint_every, families)

    def contexts(self, method: Method, order: int = 0) -> list[str]:
        return generate_contexts(self.model, seed=self._seed(order), style=method.context_style)

    def inputs(self, method: Method, order: int = 0) -> dict:
        """{"moments": …, "contexts": …} as `method.apply` takes them; no moments for a method without C."""
        moments = self.moments if method.needs_moments else None
        return {"moments": moments, "contexts": self.contexts(method, order)}

    def method(self, name: str) -> Method:
        """The method of a named stream, with the λ, layers and other settings that its name stands for."""
        if name in self._methods:
            return self._methods[name]
        stream = self._stream(name)
        make, overrides = partial(method_for, self.model, stream.method), dict(stream.overrides)
        if stream.at is not None or stream.last is not None:
            layers = method_for(self.model, stream.at or stream.method).layers
            overrides["layers"] = list(layers[-(stream.last or 0) :])
        method = make(**overrides)
        if stream.rho is not None:
            method, _ = with_rho(method, self.model, stream.rho, self.facts.reference())
            overrides |= {name: getattr(method, name) for name in ("v_lr", "lr", "base") if hasattr(method, name)}
        if stream.scale != 1:
            overrides["mom2_update_weight"] = method.mom2_update_weight * stream.scale
        if stream.null_share is not None:
            overrides["nullspace_rank"] = round(stream.null_share * self.model.d_ff)
        if stream.anchored or stream.nas:
            pilots = self.edits(0)[:ANCHOR_SAMPLE]
            if stream.nas:  # of MEMIT's targets, whatever the method, as its authors have it
                memit = self.method(f"memit-rho{stream.rho:g}" if stream.rho else "memit")
                own = anchor_norm(self.model, memit, pilots)
            else:
                own = anchor_norm(self.model, method, pilots, self.contexts(method), group=1)
            overrides |= {"norm_anchor": own} | ({} if stream.nas else {"anchor_skip": False})
        method = make(**overrides)
        self._methods[name] = method if stream.change is None else changed(method, stream.change)
        return self._methods[name]

    def run(self, name: str, order: int = 0, n_edits: int | None = None) -> Run:
        """Run the stream, resume it, or find it finished in results/ (looked up once)."""
        if (asked := (name, order, n_edits)) in self._runs:
            return self._runs[asked]
        stream, method, p = self._stream(name), self.method(name), self.profile
        edits, inputs = self.edits_of(name, order), self.inputs(method, order)
        probes = self.probes(edits, order, method.layers, families=not stream.brief and n_edits is None)
        if stream.keep:
            n = round(stream.keep if stream.keep >= 1 else stream.keep * self.model.d_ff)
            kept = kept_facts(self.facts, edits, n, p.untouched, order)
            inputs["history"] = method.new_history(self.model, inputs["moments"], kept)
        edits = edits[:n_edits]
        options = {"checkpoint_every": p.checkpoint_every, "dense_every": p.dense_every, "stop_below": p.stop_below}
        options |= {"store": self.results / "streams", "known": self.results / "known", "progress": self.progress}
        given = self.model, edits, method, stream.batch_size or len(edits)
        self._runs[asked] = run_stream(*given, **inputs, probes=probes, **options)
        return self._runs[asked]

    def runs(self, name: str) -> dict[int, Run]:
        """{order: Run} of the profile's orders: the live ones run, the others from committed data, if there is some."""
        live = self.profile.live_orders if name in streams_of(self.profile) else []
        found = {o: self.run(name, o) if o in live else self.committed(name, o) for o in self.profile.orders}
        return {order: run for order, run in found.items() if run is not None}

    def singles_of(self, name: str) -> pd.DataFrame:
        """`n_single` single edits by a stream's method, kept in results/singles: columns as of `single_edits`."""
        edits, method, match = self.edits(0, self.profile.n_single), self.method(name), self.facts.match
        parts = [self.model.checksum, self.model.setting, method.name, method.hyperparameters]
        parts += [list(map(repr, edits)), ALGORITHMS, *([match] if match != "exact" else [])]
        path = self.results / "singles" / f"{name}-{key_of(parts=parts)}.parquet"

        def measure() -> pd.DataFrame:
            given = self.moments, self.contexts(method), self.facts.around
            return single_edits(self.model, method, edits, *given, match=match)

        return cached(path, measure)

    def mass_table(self) -> pd.DataFrame:
        """One MEMIT batch of each of the profile's `mass_sizes`, a process each (kept in results/mass)."""
        return pd.DataFrame([batch_cost(self.profile, size, self.results) for size in sorted(self.profile.mass_sizes)])

    def measured(self, name: str, order: int, what: str, measure: Callable | None = None, commit: bool = False):
        """A measurement on the edits of a stream ("….parquet": a table, "….json": a dict) from figures/data or results.
        Where there is none, `measure()` for a live order, kept in results/ (commit: in figures/data); else None."""
        method = self.method(name)
        decides = [self.model.checksum, method.name, method.hyperparameters, edits_hash(self.edits(order))]
        start = f"{self.profile.model.split('/')[-1]}.{name}.order{order}"
        # In results/ the library's own version counts, too; committed data stay what they are.
        shared = data_folder() / f"{start}.{key_of(parts=decides)}.{what}"
        own = self.results / "measured" / f"{start}.{key_of(parts=[*decides, ALGORITHMS])}.{what}"
        path = shared if commit or shared.exists() else own
        if path.exists() or (measure is not None and order in self.profile.live_orders):
            return cached(path, measure, write_parquet if path.suffix == ".parquet" else None)

    def committed(self, name: str, order: int) -> Run | None:
        """The stored run in figures/data, or None when there is none of this model, length and hyperparameters."""
        folder, prefix = data_folder(), f"{self.label}.{name}.order{order}."
        if not (folder / f"{prefix}manifest.json").exists():
            return None
        run, edits, method = Run(*read_tables(folder, prefix)), self.edits_of(name, order), self.method(name)
        ours = {"model": self.model.checksum, "method": method.name, "n_edits": len(edits), "edits": edits_hash(edits)}
        asked = json.loads(json.dumps(method.hyperparameters))
        same = ours.items() <= run.manifest.items() and same_settings(run.manifest["hyperparameters"], asked)
        return run if same else None

    def commit(self, name: str, order: int, folder: Path | None = None, run: Run | None = None) -> None:
        """Put a finished run into figures/data (or `folder`), its edits in single precision: enough to compare."""
        run = run or self.run(name, order)
        edits = run.edits.astype(dict.fromkeys(run.edits.select_dtypes("float64"), "float32"))
        prefix = f"{self.label}.{name}.order{order}."
        write_tables(folder or data_folder(), prefix, edits, run.checkpoints, run.manifest)

    def _seed(self, order: int) -> int:
        return 1000 * self.profile.seed + order

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            where = f"is not in profile {self.profile.name}{meant(name, self.streams)}"
            raise KeditError(f"stream {name!r}: {where}; there are {', '.join(self.streams)}")
        return self.streams[name]


def data_folder() -> Path:
    """figures/data of this checkout: tables of runs that `make reproduce` does not execute again."""
    return REPOSITORY / "figures" / "data"


def committed_table(label: str, what: str) -> pd.DataFrame | None:
    """A table of a model that is not measured again ("singles", "mass"); None when there is none."""
    path = data_folder() / f"{label}.{what}.csv"
    return pd.read_csv(path) if path.exists() else None


def same_settings(stored: dict, asked: dict) -> bool:
    """Whether two sets of hyperparameters are one, measured numbers (a norm anchor) up to rounding."""

    def same(one, other) -> bool:
        measured = isinstance(one, float) and isinstance(other, float)
        return isclose(one, other, rel_tol=ROUNDING) if measured else one == other

    return stored.keys() == asked.keys() and all(same(stored[name], value) for name, value in asked.items())


def committed_files(what: str) -> list[tuple[str, str, int, Path]]:
    """(label of the model, stream, order, path) of everything in figures/data that is called `what`."""
    found = ((re.fullmatch(NAMED + re.escape(what), path.name), path) for path in sorted(data_folder().glob("*")))
    return [(m[1], m[2], int(m[3]), path) for m, path in found if m]


def committed_runs() -> list[tuple[str, str, int]]:
    """(label of the model, stream, order) of every run in figures/data."""
    return [about[:3] for about in committed_files("manifest.json")]


def batch_cost(profile: Profile, size: int, results: Path) -> dict:
    """One MEMIT batch of `size` edits on the original weights, kept in results/mass: batch, N/d_ff, seconds_per_edit,
    peak_mb (of a process that does only this), perplexity, and by cohort the accuracy by free generation."""
    asked = profile.model_dump(exclude={"live_orders", "workers", "also"})
    key = key_of(profile=asked, name="memit", size=size, algorithms=ALGORITHMS, versions=versions())

    def measured() -> dict:
        with ProcessPoolExecutor(1, get_context("spawn"), _begin, (profile.threads,)) as process:
            try:
                return process.submit(_batch, profile, size, results).result()
            except (BrokenExecutor, KeditError) as error:
                raise KeditError(f"mass of memit, {size} edits: {error}") from error

    return cached(Path(results) / "mass" / f"memit{size}-{key}.json", measured)


def _begin(threads: int) -> None:
    """The process ends with the one that began it, however that one ends."""
    torch.set_num_threads(threads)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def peak_memory() -> float:
    """Largest resident memory so far, in MB. On Linux by /proc: getrusage also counts the parent process."""
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _batch(profile: Profile, size: int, results: Path) -> dict:
    bench = Bench(profile, results=results, progress=False)
    method, edits = bench.method("memit"), bench.edits(0, size)
    given = bench.inputs(method)
    method.apply(bench.model, edits[:1], **given)  # factorises C, which a stream does once
    bench.model.restore()
    begin = time.perf_counter()
    method.apply(bench.model, edits, **given)
    row = {"batch": size, "N/d_ff": size / bench.model.d_ff}
    row |= {"seconds_per_edit": (time.perf_counter() - begin) / size, "peak_mb": peak_memory()}
    for found in (found for probe in bench.probes(edits, families=False) for found in probe(bench.model, edits)):
        if found["metric"] == "perplexity":
            row["perplexity"] = found["value"]
        elif found["metric"] == "accuracy" and found["cohort"] != "latest edits":
            row[found["cohort"]] = found["value"]
    return row
