"""The bench that runs the streams of the catalogue, or finds them finished."""

from __future__ import annotations

import json
import re
from math import isclose
from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.cached import cached
from ..data.config import REPOSITORY, Profile, load_profile, results_folder
from ..data.provenance import ALGORITHMS, key_of
from ..editing import Method, method_for
from ..editing.contexts import generate_contexts
from ..editing.interventions import changed
from ..editing.norm_anchor import anchor_norm
from ..editing.prune import prune
from ..editing.second_moments import SecondMoments
from ..editing.transfer import with_rho
from ..errors import KeditError
from ..models.loading import load_model
from .facts import facts_of
from .named_streams import ANCHOR_SAMPLE, Stream, every_stream, streams_of
from .runner import Run, edits_hash, measured_after, run_stream
from .store import read_tables, write_tables

RUN = re.compile(r"([^.]+)\.(.+)\.order(\d+)\.manifest\.json")  # <label>.<stream>.order<n>.…
ROUNDING = 1e-5  # relative; single precision on two machines differs by less, two settings that someone chose by more


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
        self.results = Path(results or results_folder())
        self.progress = progress
        p = self.profile
        self.model = load_model(p.model, dtype=p.dtype, device=p.device, originals=p.originals)
        cache = self.results / "known"
        for asked in (data_folder() / "known").glob("*.json"):  # whatever machine asked, the same facts are edited
            if not (cache / asked.name).exists():
                with replacing(cache / asked.name) as partial:
                    partial.write_bytes(asked.read_bytes())
        self.facts = facts_of(self.model, self.profile.edits, self.profile.texts, cache, self.profile.chat)
        self.streams = every_stream(self.profile)
        self._moments, self._runs, self._methods = None, {}, {}

    @property
    def moments(self):
        """C at every layer that some method edits with it; measured once and kept in results/moments."""
        if self._moments is None:
            layers = sorted(
                {layer for s in self.streams.values() if self._uses_moments(s) for layer in self._layers(s)}
            )
            self._moments = SecondMoments.estimate(
                self.model, self.facts.texts(), layers, cache=self.results / "moments", progress=self.progress
            )
        return self._moments

    def edits(self, order: int = 0, n: int | None = None):
        return self.facts.edits(n or self.profile.n_edits, self._seed(order))

    def edits_of(self, name: str, order: int = 0):
        """The edits of a stream: of the profile's length, or of as many times it as the stream says."""
        stream = self._stream(name)
        n = self.profile.n_edits * stream.length if stream.per_d_ff is None else self.model.d_ff * stream.per_d_ff
        return self.edits(order, round(n))

    def probes(self, edits, order: int = 0, layers=(), families: bool = True) -> list:
        """What is measured at the checkpoints of a stream of these edits in `layers`, as `lab_probes` says."""
        p = self.profile
        return self.facts.probes(edits, p.untouched, order, layers, p.checkpoint_every, families)

    def contexts(self, method: Method, order: int = 0) -> list[str]:
        return generate_contexts(self.model, seed=self._seed(order), style=method.context_style)

    def method(self, name: str) -> Method:
        """The stream's method: λ, layers and whatever else its name says."""
        if name not in self._methods:
            self._methods[name] = self._method(self._stream(name))
        return self._methods[name]

    def _method(self, stream: Stream) -> Method:
        overrides = dict(stream.overrides)
        if stream.at is not None or stream.last is not None:
            overrides["layers"] = self._layers(stream)
        method = method_for(self.model, stream.method, **overrides)
        if stream.rho is not None:
            overrides["v_lr"] = with_rho(method, self.model, stream.rho, self.facts.reference())[0].v_lr
            method = method_for(self.model, stream.method, **overrides)
        if stream.scale != 1:
            overrides["mom2_update_weight"] = method.mom2_update_weight * stream.scale
        if stream.null_share is not None:
            overrides["nullspace_rank"] = round(stream.null_share * self.model.d_ff)
        if stream.anchored:
            sample = self.edits(0)[:ANCHOR_SAMPLE]
            overrides["norm_anchor"] = anchor_norm(self.model, method, sample, self.contexts(method), group=1)
            overrides["anchor_skip"] = False
        if stream.nas:
            overrides["norm_anchor"] = anchor_norm(self.model, method, self.edits(0)[:ANCHOR_SAMPLE])
        method = method_for(self.model, stream.method, **overrides)
        return method if stream.change is None else changed(method, stream.change)

    def _uses_moments(self, stream: Stream) -> bool:
        return method_for(self.model, stream.method, **stream.overrides).needs_moments

    def _layers(self, stream: Stream) -> list[int]:
        layers = method_for(self.model, stream.at or stream.method).layers
        return list(layers[-(stream.last or len(layers)) :])

    def run(self, name: str, order: int = 0, n_edits: int | None = None) -> Run:
        """Run the stream, resume it, or find it finished in results/ (looked up once)."""
        asked = name, order, n_edits
        if asked not in self._runs:
            self._runs[asked] = self._run(*asked)
        return self._runs[asked]

    def _run(self, name: str, order: int, n_edits: int | None) -> Run:
        stream, method, p = self._stream(name), self.method(name), self.profile
        edits = self.edits_of(name, order)
        probes = self.probes(edits, order, method.layers, families=not stream.brief and n_edits is None)
        edits = edits[:n_edits]
        if stream.pruned:
            return measured_after(self.model, self.run(stream.method, order, n_edits), edits, probes, prune)
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
            known=self.results / "known",
            stop_below=p.stop_below,
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
        return self.facts.guess

    def floors(self) -> pd.DataFrame:
        """Every metric of order 0's probes on a destroyed model (kept in results/floors)."""
        from ..evaluation.floor import floors

        edits = self.edits(0)
        probes = self.probes(edits, 0, self.method("memit").layers)
        key = key_of(parts=[self.model.checksum, self.model.setting, *(p.identity for p in probes)])
        return cached(self.results / "floors" / f"{key}.parquet", lambda: floors(self.model, probes, edits))

    def samples(self, names: dict[str, str], n: int = 3, tokens: int = 30) -> pd.DataFrame:
        """What the model writes about the first subjects of order 0: unedited, and at the end of live streams."""
        from ..evaluation import sampled_texts

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
        model = [self.model.checksum, self.model.setting]
        parts = [*model, method.name, method.hyperparameters, list(map(repr, edits)), ALGORITHMS]
        path = self.results / "singles" / f"{name}-{key_of(parts=parts)}.parquet"
        return cached(path, lambda: self.single_edits(method, edits))

    def single_edits(self, method: Method, edits, order: int = 0) -> pd.DataFrame:
        """Each edit alone: a row an edit (columns as of `lab.single.single_edits`)."""
        from ..evaluation.single_edits import single_edits

        contexts = self.contexts(method, order)
        return single_edits(self.model, method, edits, self.moments, contexts, around=self.facts.around)

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
            "method": self.method(name).name,
            "n_edits": len(self.edits_of(name, order)),
            "edits": edits_hash(self.edits_of(name, order)),
        }
        same = all(run.manifest[field] == value for field, value in ours.items())
        asked = json.loads(json.dumps(self.method(name).hyperparameters))
        return run if same and same_settings(run.manifest["hyperparameters"], asked) else None

    def commit(self, name: str, order: int, folder: Path | None = None) -> None:
        """Put a finished run into figures/data (or `folder`), the numbers of its edits in single precision: half the
        bytes, and far within the margin that a committed stream is compared by."""
        run = self.run(name, order)
        edits = run.edits.astype(dict.fromkeys(run.edits.select_dtypes("float64"), "float32"))
        write_tables(folder or data_folder(), self._prefix(name, order), edits, run.checkpoints, run.manifest)

    def _prefix(self, name: str, order: int) -> str:
        return f"{self.label}.{name}.order{order}."

    @property
    def label(self) -> str:
        """What tables and committed files call the model: the profile's label, else the model's name."""
        return self.profile.label or self.profile.model.split("/")[-1]

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


def same_settings(stored: dict, asked: dict) -> bool:
    """Whether two sets of hyperparameters are one, measured numbers (a norm anchor) up to rounding."""
    return stored.keys() == asked.keys() and all(
        isclose(stored[name], value, rel_tol=ROUNDING)
        if isinstance(value, float) and isinstance(stored[name], float)
        else stored[name] == value
        for name, value in asked.items()
    )


def committed_runs() -> list[tuple[str, str, int]]:
    """(label of the model, stream, order) of everything in figures/data."""
    found = (RUN.fullmatch(p.name) for p in sorted(data_folder().glob("*.json")))
    return [(m[1], m[2], int(m[3])) for m in found if m]


def _name(profile) -> str:
    return profile.name if isinstance(profile, Profile) else profile
