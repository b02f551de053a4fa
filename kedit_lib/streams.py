"""The streams that the report is about, by name, and the bench that runs or finds them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from .contexts import generate_contexts
from .errors import KeditError
from .experiments import Run, edits_hash, run_stream
from .material import material_of
from .methods import Method, method_for
from .model import load_model
from .moments import SecondMoments
from .params import REPOSITORY, Profile, load_profile
from .store import ALGORITHMS, key_of, read_tables, write_tables


@dataclass(frozen=True)
class Stream:
    """A method at a batch size. batch_size None: all edits in one batch; scale multiplies λ; at: edit at the last layer
    of this other method instead (BOTH: at all from the first to the last of ROME's and MEMIT's layers)."""

    name: str
    method: str
    batch_size: int | None = 1
    overrides: dict = field(default_factory=dict, hash=False)
    scale: float = 1.0
    at: str | None = None


BOTH = "both"
ROME_VARIANTS = {
    "rome": ("rome", True),
    "rome-noC": ("rome", False),
    "rrome": ("rrome", True),
    "rrome-noC": ("rrome", False),
}


def streams_of(profile: Profile) -> dict[str, Stream]:
    """Every stream of a profile by name, λ as published (per d_ff): the ones that are executed live."""
    found = [Stream("memit", "memit"), Stream("pmet", "pmet")]
    found += [Stream(name, m, overrides={"mom2_adjustment": c}) for name, (m, c) in ROME_VARIANTS.items()]
    found.append(Stream("ft", "ft-m"))
    for size in sorted(set(profile.batch_sizes) - {1}):
        whole = size >= profile.n_edits
        found.append(Stream("memit-mass" if whole else f"memit-b{size}", "memit", None if whole else size))
    return {s.name: s for s in found}


def scaled_streams(profile: Profile) -> dict[str, Stream]:
    """The streams whose λ/d_ff is a tenth or ten times the published one, such as "memit@0.1"."""
    base = streams_of(profile)
    return {
        f"{name}@{scale:g}": Stream(f"{name}@{scale:g}", s.method, s.batch_size, s.overrides, scale)
        for name, s in base.items()
        if s.method in ("memit", "pmet") and (s.batch_size == 1 or name == "memit-mass")
        for scale in profile.lambda_scales
        if scale != 1
    }


def moved_streams() -> dict[str, Stream]:
    """The two methods of the contrast with their layers exchanged, and MEMIT over both: method or layer?

    And MEMIT there with a tenth of λ, so that it writes nearly all of its target, as ROME does: or the brake?
    """
    found = [Stream("rome@memit", "rome", at="memit")]
    for where in ("rome", BOTH):
        found += [
            Stream(f"memit@{where}", "memit", at=where),
            Stream(f"memit@{where}@0.1", "memit", at=where, scale=0.1),
        ]
    return {s.name: s for s in found}


def every_stream(profile: Profile) -> dict[str, Stream]:
    """Live ones, those with another λ, those with other layers."""
    return {**streams_of(profile), **scaled_streams(profile), **moved_streams()}


class Bench:
    """One model with its moments, contexts, edits and probes, as a profile says.

        bench = kedit.Bench("lab", n_edits=100)
        run = bench.run("memit", order=0)          # live, or found in results/
        runs = bench.runs("memit")                 # {order: Run}: live orders run, the others from committed data

    An *order* changes the sample of facts, their order, and the seed of the contexts.
    """

    def __init__(self, profile: str | Profile = "lab", results=None, progress: bool = True, **overrides):
        self.profile = (
            profile if isinstance(profile, Profile) and not overrides else load_profile(_name(profile), **overrides)
        )
        self.results = Path(results or os.environ.get("KEDIT_RESULTS") or REPOSITORY / "results")
        self.progress = progress
        self.model = load_model(self.profile.model, dtype=self.profile.dtype)
        self.material = material_of(self.model, self.profile.edits, self.profile.texts)
        self.streams = every_stream(self.profile)
        self._moments, self._runs = None, {}

    @property
    def moments(self):
        """C at every layer that some method edits; measured once and kept in results/moments."""
        if self._moments is None:
            layers = sorted({layer for s in self.streams.values() for layer in self.method(s.name).layers})
            self._moments = SecondMoments.estimate(
                self.model, self.material.texts(), layers, cache=self.results / "moments", progress=self.progress
            )
        return self._moments

    def edits(self, order: int = 0, n: int | None = None):
        return self.material.edits(n or self.profile.n_edits, self._seed(order))

    def probes(self, edits, order: int = 0, layers=(), families: bool = True) -> list:
        """What is measured at the checkpoints of a stream of these edits in `layers`, as `lab_probes` says."""
        p = self.profile
        return self.material.probes(edits, p.untouched, order, layers, p.checkpoint_every, families)

    def contexts(self, method: Method, order: int = 0) -> list[str]:
        return generate_contexts(self.model, seed=self._seed(order), style=method.context_style)

    def method(self, name: str) -> Method:
        """The stream's method, λ and layers as its name says."""
        stream = self._stream(name)
        overrides = dict(stream.overrides)
        if stream.at is not None:
            overrides["layers"] = self._layers_at(stream.at)
        method = method_for(self.model, stream.method, **overrides)
        if stream.scale != 1:
            overrides["mom2_update_weight"] = method.mom2_update_weight * stream.scale
            method = method_for(self.model, stream.method, **overrides)
        return method

    def _layers_at(self, where: str) -> list[int]:
        if where != BOTH:
            return list(method_for(self.model, where).layers[-1:])
        every = [layer for name in ("rome", "memit") for layer in method_for(self.model, name).layers]
        return list(range(min(every), max(every) + 1))

    def run(self, name: str, order: int = 0, n_edits: int | None = None) -> Run:
        """Run the stream, resume it, or find it finished in results/ (looked up once)."""
        asked = name, order, n_edits
        if asked not in self._runs:
            self._runs[asked] = self._run(*asked)
        return self._runs[asked]

    def _run(self, name: str, order: int, n_edits: int | None) -> Run:
        stream, method, p = self._stream(name), self.method(name), self.profile
        edits = self.edits(order)
        probes = self.probes(edits, order, method.layers)
        edits = edits[:n_edits]
        return run_stream(
            self.model,
            edits,
            method,
            batch_size=stream.batch_size or len(edits),
            moments=self.moments if method.needs_moments else None,
            contexts=self.contexts(method, order),
            probes=probes,
            store=self.results / "streams",
            checkpoint_every=p.checkpoint_every,
            dense_every=p.dense_every,
            progress=self.progress,
        )

    def runs(self, name: str) -> dict[int, Run]:
        """{order: Run} of the profile's orders: the live ones run, the others from committed data.

        An order that is neither live nor committed is left out.
        """
        found = {}
        for order in self.profile.orders:
            if order in self.profile.live_orders and name in streams_of(self.profile):
                found[order] = self.run(name, order)
            elif (run := self.committed(name, order)) is not None:
                found[order] = run
        return found

    def scaled(self, name: str) -> dict[float, dict[int, Run]]:
        """{factor on λ/d_ff: {order: Run}} of a stream, from committed data but for the published λ itself."""
        found = {}
        for scale in sorted(self.profile.lambda_scales):
            orders = self.profile.orders[:1]
            stored = (
                {o: self.committed(f"{name}@{scale:g}", o) for o in orders}
                if scale != 1
                else {0: self.runs(name).get(0)}
            )
            if kept := {o: run for o, run in stored.items() if run is not None}:
                found[scale] = kept
        return found

    @property
    def guess(self) -> float:
        """Right answers of a model that knows the relations and nothing of the subject."""
        return self.material.guess

    def floors(self) -> pd.DataFrame:
        """Every metric of order 0's probes on a destroyed model (kept in results/floors)."""
        from .metrics.floor import floors

        edits = self.edits(0)
        probes = self.probes(edits, 0, self.method("memit").layers)
        path = self.results / "floors" / f"{key_of(parts=[self.model.checksum, *(p.identity for p in probes)])}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            floors(self.model, probes, edits).to_parquet(path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
        return pd.read_parquet(path)

    def samples(self, names: dict[str, str], n: int = 3, tokens: int = 30) -> pd.DataFrame:
        """What the model writes about the first subjects of order 0: unedited, and at the end of live streams."""
        from .metrics import sampled_texts

        edits = self.edits(0)[:n]
        prompts = [e.generation_prompts[0] if e.generation_prompts else e.subject for e in edits]
        rows = {
            "edit": [f"{e.text} {e.target_new}" for e in edits],
            "before": sampled_texts(self.model, prompts, tokens),
        }
        live = {title: name for title, name in names.items() if 0 in self.profile.live_orders}
        for title, name in live.items():
            with self.model.temporarily():
                self.model.load_snapshot(self.run(name, 0).final_weights())
                rows[title] = sampled_texts(self.model, prompts, tokens)
        return pd.DataFrame(rows, index=range(1, len(edits) + 1)).T  # headers of styled tables are HTML as they stand

    def singles(self) -> pd.DataFrame:
        """`n_single` independent edits by MEMIT and by ROME (kept in results/singles)."""
        return pd.concat([self.singles_of(name) for name in ("memit", "rome")], ignore_index=True)

    def singles_of(self, name: str) -> pd.DataFrame:
        """Independent edits by the method of one stream."""
        edits, method = self.edits(0, self.profile.n_single), self.method(name)
        parts = [self.model.checksum, method.name, method.hyperparameters, list(map(repr, edits)), ALGORITHMS]
        path = self.results / "singles" / f"{name}-{key_of(parts=parts)}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            table = self.single_edits(method, edits)
            table.to_parquet(path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
        return pd.read_parquet(path)

    def single_edits(self, method: Method, edits, order: int = 0) -> pd.DataFrame:
        """Each edit alone: a row an edit (columns as of `lab.single.single_edits`)."""
        from .lab.single import single_edits

        contexts = self.contexts(method, order)
        return single_edits(self.model, method, edits, self.moments, contexts, around=self.material.around)

    def mass_table(self) -> pd.DataFrame:
        """One MEMIT batch of each of the profile's `mass_sizes`, a process each (kept in results/mass)."""
        from .cost import batch_cost

        return pd.DataFrame([batch_cost(self.profile, size, self.results) for size in sorted(self.profile.mass_sizes)])

    def committed(self, name: str, order: int) -> Run | None:
        """The stored run in figures/data, or None when there is none of this model, length and hyperparameters."""
        folder, prefix = data_folder(), self._prefix(name, order)
        if not (folder / f"{prefix}manifest.json").exists():
            return None
        run = Run(*read_tables(folder, prefix))
        ours = {
            "model": self.model.checksum,
            "n_edits": self.profile.n_edits,
            "hyperparameters": json.loads(json.dumps(self.method(name).hyperparameters)),
            "edits": edits_hash(self.edits(order)),
        }
        return run if all(run.manifest[field] == value for field, value in ours.items()) else None

    def commit(self, name: str, order: int) -> None:
        """Put a finished run into figures/data."""
        run = self.run(name, order)
        write_tables(data_folder(), self._prefix(name, order), run.edits, run.checkpoints, run.manifest)

    def _prefix(self, name: str, order: int) -> str:
        return f"{self.profile.model.split('/')[-1]}.{name}.order{order}."

    def _seed(self, order: int) -> int:
        return 1000 * self.profile.seed + order

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise KeditError(
                f"stream {name!r}: is not in profile {self.profile.name}; there are {', '.join(self.streams)}"
            )
        return self.streams[name]


def data_folder() -> Path:
    """figures/data of this checkout: tables of runs that `make reproduce` does not execute again."""
    return REPOSITORY / "figures" / "data"


def committed_runs() -> list[tuple[str, int]]:
    """(stream, order) of everything in figures/data."""
    names = (
        re.fullmatch(r"[^.]+\.(.+)\.order(\d+)\.manifest\.json", p.name) for p in sorted(data_folder().glob("*.json"))
    )
    return [(m[1], int(m[2])) for m in names if m]


def _name(profile) -> str:
    return profile.name if isinstance(profile, Profile) else profile
