"""A stream of edits through a method, the weights never put back: what every later edit has to live with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..data.edit import Edit, check_edits
from ..data.provenance import ALGORITHMS, arithmetic, commit, key_of, now, versions
from ..editing.call import Call
from ..editing.compute_z import Doubtful
from ..editing.history import EditHistory
from ..editing.method import Method
from ..errors import KeditError
from ..evaluation import cosine
from ..evaluation.edit_probes import EditProbe
from ..evaluation.protocol import DEAD, AtStart, Probe
from ..models.hooks import no_bar
from ..models.memory import memory_for
from ..models.model import EditableModel
from .guard import CollapseGuard
from .interrupts import postponed
from .store import Checkpoint, RunFolder

WINDOW = 25  # edits in the medians that define N_optimisation
AFTERMATH = 50  # edits that are still made once the optimised probability has sunk below `stop_below`


@dataclass
class Run:
    """A finished stream.

    edits        a row an edit: probability_first/_last, steps, delta_ratio = ‖δ‖/‖v₀‖ (FT: NaN), s_<layer> and
                 written_<layer> where the method has them (see Outcome), dW_<layer> = ‖ΔW‖_F of its batch,
                 W_<layer> = ‖W‖_F after it, along_<layer> = cosine of ΔW with all that the batches before it
                 wrote there (NaN: nothing yet), seconds, …
    checkpoints  long form: edits_done, metric, cohort, value, n
    manifest     everything that decided the numbers, and where and when they came about
    path         its folder (None: not stored)
    """

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
            raise KeditError("run: its weights were not stored; hand run_stream a store")
        return RunFolder.at(self.path).final_weights()

    def curve(self, metric: str, cohort: str) -> pd.Series:
        """value by edits_done of one metric on one cohort."""
        c = self.checkpoints
        picked = c[(c.metric == metric) & (c.cohort == cohort)]
        return picked.set_index("edits_done")["value"].sort_index()

    @property
    def evaluation_share(self) -> float:
        """Seconds in probes over seconds in probes and edits, 0..1; saving and progress are in neither."""
        probes = self.curve("seconds", "probes").sum()
        return float(probes / (probes + self.edits["seconds"].sum()))


def run_stream(
    model,
    edits,
    method,
    batch_size: int = 1,
    moments=None,
    contexts=None,
    probes=None,
    history=None,
    store=None,
    checkpoint_every: int = 25,
    dense_every: int | None = None,
    progress: bool = True,
    known=None,
    stop_below: float | None = None,
    guard: CollapseGuard | None = None,
) -> Run:
    """Apply `edits` in batches of `batch_size`, one batch on top of the other, from the unedited weights.

    probes            measured before the first edit and at every checkpoint (None: the edits themselves)
    history           what a method that keeps one starts from (method.new_history), not changed. None: an empty one
    store             a folder; the same call again returns the finished run or resumes a killed one.
                      None: nothing is written
    checkpoint_every  edits between checkpoints (a batch is never cut)
    dense_every       spacing until the model is dead (untouched accuracy below 0.5); None: 10 or less
    known             a folder for what the probes say of the unedited model: streams that share it ask once.
                      None: each stream asks
    stop_below        ends the stream AFTERMATH edits after the median optimised probability of the last WINDOW edits
                      has sunk below this. None: every edit is made
    guard             looks at known facts between edits and acts when too many are lost (guard.py). None: nobody looks

    The model comes back with the weights it had before the call. Ctrl-C finishes the edit at hand and writes a
    checkpoint before it is raised. A second process with the same call waits for the first, and says so.

    Raises KeditError before anything runs for whatever `method.apply` would refuse in any of the edits or for a store
    that cannot be written; later for an edit that gives NaN or runs out of memory, and for a full disk. It names the
    edit, the layer and the last checkpoint, from which the same call goes on.
    """
    edits = check_edits(edits, "stream")
    dense_every = min(10, checkpoint_every) if dense_every is None else dense_every
    numbers = {"batch_size": batch_size, "checkpoint_every": checkpoint_every, "dense_every": dense_every}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise KeditError(f"stream: {name} = {value!r}; must be a whole number of at least 1")
    contexts = method.contexts(model, contexts)
    probes = [EditProbe()] if probes is None else list(probes)

    decides = {
        "model": model.checksum,
        "setting": model.setting,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "method": method.name,
        "hyperparameters": method.hyperparameters,
        "edits": edits_hash(edits),
        "n_edits": len(edits),
        "batch_size": batch_size,
        "contexts": contexts,
        "moments": moments.identity if moments is not None and method.needs_moments else None,
        "probes": [p.identity for p in probes],
        "checkpoint_every": checkpoint_every,
        "dense_every": dense_every,
        "algorithms": ALGORITHMS,
    }
    if stop_below is not None:
        decides["stop_below"] = stop_below
    if guard is not None:
        decides["guard"] = guard.identity
    if isinstance(history, EditHistory) and history.edits:
        decides["history"] = history.identity
    key = key_of(**decides)
    folder = RunFolder(store, f"{method.name.lower()}-b{batch_size}", key) if store is not None else None
    if folder is not None and folder.finished():
        return Run(*folder.load(), folder.path)

    if method.keeps_history and history is None:
        history = method.new_history(model, moments)
    call = method.prepare(
        model, edits, moments, contexts, history.copy() if isinstance(history, EditHistory) else history
    )
    stream = _Stream(
        model, edits, method, batch_size, probes, folder, checkpoint_every, dense_every, known, stop_below, guard
    )
    with folder.held() if folder is not None else contextlib.nullcontext():
        if folder is not None and folder.finished():  # by the process that was waited for
            return Run(*folder.load(), folder.path)
        before = model.snapshot()
        model.restore()
        try:
            rows, checks, started = stream.run(call, progress)
        finally:
            model.load_snapshot(before)
        manifest = {**decides, "key": key, "started": started, "finished": now()}
        manifest |= {"versions": versions(), "arithmetic": arithmetic(model.device), "commit": commit()}
        edits, checks = pd.DataFrame(rows), pd.DataFrame(checks)
        manifest = folder.finish(edits, checks, manifest) if folder is not None else json.loads(json.dumps(manifest))
        return Run(edits, checks, manifest, folder.path if folder is not None else None)


def measured_after(model, run: Run, edits, probes, change) -> Run:
    """The same edits with `change(model)` made once after the last: a Run whose checkpoints are the start and the end.

    run: a finished stream that stored its weights; edits: its edits. The weights are the ones at entry afterwards.
    """
    with model.temporarily():
        checks = _measure(model, probes, [], [], [], last=False)
        model.load_snapshot(run.final_weights())
        change(model)
        checks += _measure(model, probes, list(edits), [], checks, last=True)
    return Run(run.edits, pd.DataFrame(checks), {**run.manifest, "after": change.__name__})


def edits_hash(edits) -> str:
    """What manifests name a list of edits by."""
    return hashlib.sha256("\n".join(map(repr, edits)).encode()).hexdigest()


@dataclass(frozen=True)
class _Stream:
    """What does not change while a stream runs."""

    model: EditableModel
    edits: list[Edit]
    method: Method
    batch_size: int
    probes: list[Probe]
    folder: RunFolder | None
    checkpoint_every: int
    dense_every: int
    known: Path | None
    stop_below: float | None
    guard: CollapseGuard | None

    def run(self, call: Call, progress: bool):
        """(edit rows, checkpoint rows, when it was begun), from the last checkpoint on if there is one.

        call: all edits, made ready; its history takes on the checkpoint's state.
        """
        model, n = self.model, len(self.edits)  # n: edits until the end
        done, due, dead, rows, checks, started = 0, 0, False, [], [], now()  # due: edits at the next checkpoint
        saved = self.folder.resume() if self.folder is not None else None
        if saved is not None:
            done, rows, checks, state = saved.done, saved.edits, saved.checks, saved.state
            due, dead, started = state["due"], state["dead"], state["started"]
            if saved.history is not None:
                vars(call.history).update(vars(saved.history))
            model.load_snapshot({name: w.to(model.device) for name, w in saved.weights.items()})
            self._say_if_elsewhere(state["arithmetic"])
            if self.guard is not None:
                self.guard.resume(state["guard"])
        elif self.guard is not None:
            self.guard.check(model, 0)
        healthy, size = self._now(done, call), self.batch_size  # healthy: at the last look without an alarm

        bar = tqdm(
            total=n,
            initial=done,
            desc=f"{self.method.name} b{self.batch_size}",
            unit="edit",
            disable=no_bar(progress),
            mininterval=2,
        )
        with bar, postponed() as interrupt:
            while True:
                n = self._length(rows)
                measured = bool(checks) and checks[-1]["edits_done"] == done
                at_checkpoint = (done >= due or done == n) and not measured and not interrupt.asked
                if at_checkpoint:
                    with memory_for(f"probes after {done} edits", "measure less at once or take a larger device"):
                        asked = self.probes if done else self._at_start()
                        checks += _measure(model, asked, self.edits[:done], rows, checks, last=done == n)
                    dead = dead or (done > 0 and _is_dead(checks))
                    due = done + (self.checkpoint_every if dead else self.dense_every)
                if self.folder is not None and done and (at_checkpoint or interrupt.asked):
                    state = {"due": due, "dead": dead, "started": started, "arithmetic": arithmetic(model.device)}
                    if self.guard is not None:
                        state["guard"] = self.guard.state()
                    weights = model.snapshot()
                    self.folder.save_checkpoint(Checkpoint(done, weights, rows, checks, state, call.history))
                if interrupt.asked:
                    raise KeyboardInterrupt(f"stopped after {done} of {n} edits")
                if done == n:
                    return rows, checks, started
                rows += self._apply(done, call.part(done, done + size))
                done = len(rows)
                if self.guard is not None and not self.guard.alarm and done - healthy[0] >= self.guard.every:
                    if not self.guard.check(model, done).alarm:
                        healthy = self._now(done, call)
                    elif self.guard.action in ("roll back", "batch"):
                        done, rows, checks = self._back_to(healthy, call, rows, checks)
                        size = len(self.edits) if self.guard.action == "batch" else size
                bar.update(done - bar.n)
                if rows:
                    bar.set_postfix(p=f"{rows[-1]['probability_last']:.3g}")

    def _length(self, rows: list[dict]) -> int:
        """How many edits the stream will make: all, or those so far when it ends early (`stop_below`)."""
        if self.guard is not None and self.guard.alarm and self.guard.action in ("stop", "roll back"):
            return len(rows)
        if self.stop_below is not None:
            p = [row["probability_last"] for row in rows]
            ends = range(WINDOW, len(p) - AFTERMATH + 1)
            if any(statistics.median(p[n - WINDOW : n]) < self.stop_below for n in ends):
                return len(rows)
        return len(self.edits)

    def _now(self, done: int, call: Call):
        """(edits, weights, history) to come back to; the edits alone where no guard would."""
        if self.guard is None:
            return done, None, None
        return done, self.model.snapshot(), call.history.copy() if isinstance(call.history, EditHistory) else None

    def _back_to(self, healthy, call: Call, rows: list[dict], checks: list[dict]):
        """The stream as it was then."""
        done, weights, history = healthy
        self.model.load_snapshot(weights)
        if history is not None:
            vars(call.history).update(vars(history))
        return done, rows[:done], [row for row in checks if row["edits_done"] <= done]

    def _at_start(self) -> list[Probe]:
        """The probes; where there is a folder for it, they answer from what this model was asked before."""
        if self.known is None:
            return self.probes
        model = self.model
        asked_of = [model.checksum, model.setting, str(model.dtype), model.device.type, ALGORITHMS]
        return [AtStart(probe, Path(self.known), asked_of) for probe in self.probes]

    def _apply(self, done: int, call: Call) -> list[dict]:
        """The next batch; its rows. KeditError that says where the stream stands when it cannot be made."""
        batch = call.edits
        drift = {layer: self.model.drift(layer) for layer in self.method.layers}
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Doubtful)  # noted in the edit's row instead
                outcome = self.method.apply_prepared(call)
        except KeditError as error:
            which = f"edit {done + 1}" if len(batch) == 1 else f"edits {done + 1} to {done + len(batch)}"
            which += f" of {len(self.edits)} ({batch[0].subject!r}, layers {', '.join(map(str, self.method.layers))})"
            kept = self.folder.last_checkpoint() if self.folder is not None else "no store was given to go on from"
            raise KeditError(f"stream stopped at {which}: {error}; {kept}") from error
        return _rows(self.model, outcome, drift, done, time.perf_counter() - begin)

    def _say_if_elsewhere(self, begun: dict) -> None:
        here = arithmetic(self.model.device)
        if changed := [f"{name} {begun.get(name)}, now {here[name]}" for name in here if begun.get(name) != here[name]]:
            begun_with = f"{self.folder.path}: was begun with {'; '.join(changed)}"
            warnings.warn(f"{begun_with}; the last digits may differ from there on", stacklevel=4)


def _measure(model, probes, done_edits, rows, checks, last: bool) -> list[dict]:
    """What the probes that are due say (see probing.Probe); rows, checks: all of the stream so far."""
    begin, done = time.perf_counter(), len(done_edits)
    before = checks[-1]["edits_done"] if checks else -1
    often = [(probe, getattr(probe, "every", 1)) for probe in probes]
    found = []
    for probe, every in often:
        if every is not None:
            due = last or done // every > before // every
            ask = probe if due else getattr(probe, "brief", None)
            found += ask(model, done_edits) if ask else []
    seldom = [probe for probe, every in often if every is None]
    if seldom and (not done or last or _collapses(rows, checks, found, done, before)):
        found += [row for probe in seldom for row in probe(model, done_edits)]
    found.append({"metric": "seconds", "cohort": "probes", "value": time.perf_counter() - begin, "n": 1})
    return [{"edits_done": done, **row} for row in found]


def _collapses(rows, checks, found, done: int, before: int) -> bool:
    """Whether either collapse point lies behind the checkpoint `before`."""
    checks = checks + [{"edits_done": done, **row} for row in found]
    so_far = Run(pd.DataFrame(rows), pd.DataFrame(checks), {})
    points = (collapse_point(so_far, kind) for kind in ("optimisation", "model"))
    return any(point is not None and point > before for point in points)


def _is_dead(checks: list[dict]) -> bool:
    latest = [c for c in checks if c["edits_done"] == checks[-1]["edits_done"]]
    return any(c["value"] < DEAD for c in latest if (c["metric"], c["cohort"]) == ("accuracy", "untouched"))


def _rows(model, outcome, drift: dict, done: int, seconds: float) -> list[dict]:
    """A row for each edit of the batch just applied; drift: {layer: W − W₀ before it}."""
    shared = {"seconds": seconds / len(outcome.edits), "batch": len(outcome.edits)}
    for layer in outcome.layers(model):
        delta = outcome.deltas[model.weight_name(layer)]
        shared[f"dW_{layer}"] = delta.double().norm().item()
        shared[f"along_{layer}"] = cosine(delta, drift[layer])
        shared[f"W_{layer}"] = model.weight(layer).detach().double().norm().item()
    rows = []
    for i, (edit, target) in enumerate(zip(outcome.edits, outcome.targets, strict=True)):
        row = {
            "edit": done + i + 1,
            "id": edit.id,
            "subject": edit.subject,
            "relation": edit.relation,
            "target_new": edit.target_new,
            "probability_first": target.probabilities[0],
            "probability_last": target.probabilities[-1],
            "loss_last": target.losses[-1],
            "steps": target.steps,
            "delta_ratio": math.nan if target.delta is None else target.delta.norm().item() / target.v0_norm,
            "v0_norm": target.v0_norm,
            "clamped": target.clamped,
            "already": target.already,
            **shared,
        }
        for layer in {**outcome.s, **outcome.written}:
            for name, found in (("s", outcome.s), ("written", outcome.written)):
                if layer in found:
                    row[f"{name}_{layer}"] = found[layer][i].item()
        rows.append(row)
    return rows


def collapse_point(run, kind: str = "optimisation") -> int | None:
    """The edit at which a stream has collapsed; None: it has not.

    optimisation  the first edit at which the median of the final optimised probability over the last
                  25 edits is below half its value over the first 25
    model         the first checkpoint at which accuracy on untouched facts is below 0.5
    """
    if kind == "optimisation":
        p = run.edits["probability_last"].tolist()
        bar = statistics.median(p[:WINDOW]) / 2
        for n in range(WINDOW + 1, len(p) + 1):
            if statistics.median(p[n - WINDOW : n]) < bar:
                return n
        return None
    if kind == "model":
        c = run.checkpoints
        below = c[(c.metric == "accuracy") & (c.cohort == "untouched") & (c.value < DEAD)]
        return None if below.empty else int(below.edits_done.min())
    raise KeditError(f"collapse_point: kind = {kind!r}; use 'optimisation' or 'model'")
