"""Edit sequences: batches of edits made one after another without restoring weights, measured at checkpoints."""

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..data.edit import check_edits
from ..data.provenance import ALGORITHMS, arithmetic, commit, key_of, now, sha256, versions
from ..editing.compute_z import Doubtful
from ..editing.history import EditHistory
from ..editing.method import Call, Method
from ..editing.transfer import Transfer
from ..errors import KeditError, check_kind, explained
from ..evaluation.protocol import DEAD, EditProbe, Probe, once_at_start
from ..models.hooks import no_bar
from ..models.memory import ran_out
from ..models.model import EditableModel
from .guard import BACK, CollapseGuard
from .interrupts import postponed
from .store import VITAL, WINDOW, Checkpoint, Run, RunFolder, collapse_point, edit_rows, read_tables

KEPT = ("due", "dead", "started")  # of a stream, beside its rows, in a checkpoint
AFTERMATH = 50  # edits that are still made once the optimised probability has sunk below `stop_below`


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
    """Apply `edits` in batches of `batch_size`, one batch on top of the other, from the unedited weights. The model
    comes back with the weights it had before the call.

    moments, contexts: as in `method.apply`. probes: measured before the first edit and at every checkpoint (None: the
    edits themselves). history: what a method that keeps one starts from (method.new_history), not changed (None: an
    empty one). store: a folder; the same call again returns the finished run or resumes a killed one (None: no files).
    checkpoint_every: edits between checkpoints (a batch is never cut); dense_every: until the model is dead (untouched
    accuracy below 0.5; None: 10 or less). known: a folder for the probes' answers on the unedited model; streams that
    share it ask once. stop_below: the stream ends AFTERMATH edits after the median optimised probability of the last
    WINDOW edits has sunk below this (None: never). guard: asks known facts between edits and acts when many are lost.

    Ctrl-C finishes the edit at hand and writes a checkpoint before it is raised. A second process with the same call
    waits for the first, and says so. KeditError before anything runs for what `method.apply` would refuse in any edit,
    or a store that cannot be written; later for an edit that gives NaN, memory or a disk that is full, with the
    checkpoint from which the same call resumes.
    """
    edits = check_edits(edits, "stream")
    check_kind("stream: method", method, (Method, Transfer), "give one, such as kedit.method_for(model, 'memit')")
    check_kind("stream: guard", guard, CollapseGuard | None, "give a kedit.CollapseGuard")
    if dense_every is None and isinstance(checkpoint_every, int):
        dense_every = min(10, checkpoint_every)
    numbers = {"batch_size": batch_size, "checkpoint_every": checkpoint_every, "dense_every": dense_every}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise KeditError(f"stream: {name} = {value!r}; must be a whole number of at least 1")
    if guard is not None and guard.action == "batch" and method.one_by_one:
        use = "use a method that writes a batch at once, such as MEMIT, or the action 'roll back'"
        raise KeditError(f"stream: guard: action = 'batch', but {method.name} makes its edits one after another; {use}")
    if stop_below is not None and not (isinstance(stop_below, (int, float)) and stop_below > 0):
        raise KeditError(f"stream: stop_below = {stop_below!r}; must be a probability above 0, or None")
    contexts = method.contexts(model, contexts)
    probes = [EditProbe()] if probes is None else list(probes)
    decides = {  # the store's key is their hash
        "model": model.checksum,
        "setting": model.setting,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "method": method.name,
        "hyperparameters": method.hyperparameters,
        "edits": edits_hash(edits),
        "n_edits": len(edits),
        "contexts": contexts,
        "moments": getattr(moments, "identity", None) if method.needs_moments else None,
        "probes": [p.identity for p in probes],
        "algorithms": ALGORITHMS,
        **numbers,
    }
    if isinstance(history, EditHistory):
        history = history.copy()
    begun = history.identity if isinstance(history, EditHistory) and history.edits else None
    optional = {"stop_below": stop_below, "guard": guard and guard.identity, "history": begun}
    decides |= {name: value for name, value in optional.items() if value is not None}
    key = key_of(**decides)
    folder = RunFolder(None if store is None else Path(store) / f"{method.name.lower()}-b{batch_size}-{key}")

    if not folder.finished():
        if method.keeps_history and history is None:
            history = method.new_history(model, moments)
        call = method.prepare(model, edits, moments, contexts, history)
        asked_of = [decides[name] for name in ("model", "setting", "dtype", "device", "algorithms")]
        at_start = probes if known is None else [once_at_start(probe, Path(known), asked_of) for probe in probes]
        stream = _Stream(model, method, call, probes, at_start, folder, **numbers, stop_below=stop_below, guard=guard)
        with folder.held():
            if not folder.finished():  # by the process that was waited for
                with model.temporarily():
                    stream.run(progress)
                manifest = {**decides, "key": key, "started": stream.started, "finished": now()}
                manifest |= {"versions": versions(), "arithmetic": arithmetic(model.device), "commit": commit()}
                if guard is not None:
                    manifest |= guard.state()
                rows, checks = pd.DataFrame(stream.rows), pd.DataFrame(stream.checks)
                return Run(rows, checks, folder.finish(rows, checks, manifest), folder.path)
    run = Run(*read_tables(folder.path, ""), folder.path)
    if guard is not None:
        guard.resume(**{name: run.manifest[name] for name in guard.state() if name in run.manifest})
    return run


def edits_hash(edits) -> str:
    return sha256("\n".join(map(repr, edits)))


@dataclass
class _Stream:
    """A stream while it runs: what it is made of, and where it stands."""

    model: EditableModel
    method: Method
    call: Call  # all edits, prepared; its history takes on the state of the edits made
    probes: list[Probe]
    at_start: list[Probe]  # as they are asked of the unedited model
    folder: RunFolder
    batch_size: int
    checkpoint_every: int
    dense_every: int
    stop_below: float | None
    guard: CollapseGuard | None
    rows: list[dict] = field(default_factory=list)
    checks: list[dict] = field(default_factory=list)
    started: str = field(default_factory=now)
    due: int = 0  # edits at the next checkpoint
    dead: bool = False
    healthy: Checkpoint | None = None  # where it stood at the guard's last look without doubts

    @property
    def done(self) -> int:
        return len(self.rows)

    def run(self, progress: bool) -> None:
        """Make the edits, from the last checkpoint on if there is one."""
        if saved := self.folder.newest_checkpoint(clean=True):
            self._resume(saved)
        if self.guard is not None:
            if not saved:
                self.guard.resume([])  # it may come from another stream
                self.guard.check(self.model, 0)
            if self.guard.action in BACK:
                self.healthy = saved and saved.healthy or self._checkpoint()
        options = {"total": len(self.call.edits), "initial": self.done, "disable": no_bar(progress), "mininterval": 2}
        with tqdm(desc=f"{self.method.name} b{self.batch_size}", unit="edit", **options) as bar, postponed() as stop:
            while True:
                n = self._length()
                looked = not stop() and self._look(n)
                stopped = stop()
                if self.done and (looked or stopped):
                    self.folder.save_checkpoint(self._checkpoint(self.healthy))
                if stopped:
                    raise KeyboardInterrupt(f"stopped after {self.done} of {n} edits")
                if self.done == n:
                    return
                self.rows += self._apply()
                self._watch()
                bar.update(self.done - bar.n)
                if self.rows:  # not rolled back to the start
                    bar.set_postfix(p=f"{self.rows[-1]['probability_last']:.3g}")

    def _length(self) -> int:
        """How many edits the stream will make: all, or those so far when it ends early (`stop_below`, the guard)."""
        ended = self.guard is not None and self.guard.alarm and self.guard.action in ("stop", "roll back")
        if self.stop_below is not None and self.done >= AFTERMATH:
            p = pd.Series([row["probability_last"] for row in self.rows[: self.done - AFTERMATH]], dtype=float)
            ended |= (p.rolling(WINDOW).median() < self.stop_below).any()
        return self.done if ended else len(self.call.edits)

    def _look(self, n: int) -> bool:
        """Ask the probes that are due (see evaluation.protocol.Probe) if a checkpoint is; returns whether it was."""
        done, edits, begin = self.done, self.call.edits[: self.done], time.perf_counter()
        before = self.checks[-1]["edits_done"] if self.checks else -1
        if done == before or done < min(self.due, n):
            return False
        found, seldom = [], []
        remedy = "measure less at once or take a larger device"
        with explained(f"probes after {done} edits: out of memory", remedy, ran_out):
            for probe in self.probes if done else self.at_start:
                every = getattr(probe, "every", 1)
                if every is None:
                    seldom.append(probe)
                elif done == n or done // every > before // every:
                    found += probe(self.model, edits)
                elif brief := getattr(probe, "brief", None):
                    found += brief(self.model, edits)
            if seldom and (done in (0, n) or self._turned(before, found)):
                found += [row for probe in seldom for row in probe(self.model, edits)]
        self.dead |= done > 0 and any(r["value"] < DEAD for r in found if (r["metric"], r["cohort"]) == VITAL)
        found.append({"metric": "seconds", "cohort": "probes", "value": time.perf_counter() - begin, "n": 1})
        self.checks += [{"edits_done": done, **row} for row in found]
        self.due = done + (self.checkpoint_every if self.dead else self.dense_every)
        return True

    def _turned(self, before: int, found: list[dict]) -> bool:
        """Whether it has collapsed since the checkpoint `before`, by the rows found now."""
        checks = self.checks + [{"edits_done": self.done, **row} for row in found]
        run = Run(pd.DataFrame(self.rows), pd.DataFrame(checks), {})
        return any((at := collapse_point(run, kind)) and at > before for kind in ("optimisation", "model"))

    def _apply(self) -> list[dict]:
        """Make the next batch; its rows. KeditError that says where the stream stands when it cannot be made."""
        done, total, guard = self.done, len(self.call.edits), self.guard
        rest = guard is not None and guard.alarm and guard.action == "batch"
        call = self.call.part(done, total if rest else done + self.batch_size)
        drift = {layer: self.model.drift(layer) for layer in self.method.layers}
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Doubtful)  # noted in the edit's row instead
                outcome = self.method.apply_prepared(call)
        except KeditError as error:
            n = len(call.edits)
            which = f"edit {done + 1}" if n == 1 else f"edits {done + 1} to {done + n}"
            where = f"{call.edits[0].subject!r}, layers {', '.join(map(str, self.method.layers))}"
            there = self.folder.checkpoints()
            kept = f"last healthy checkpoint: {there[0]}" if there else "no checkpoint is stored"
            raise KeditError(f"stream stopped at {which} of {total} ({where}): {error}; {kept}") from error
        return edit_rows(self.model, outcome, drift, done, time.perf_counter() - begin)

    def _watch(self) -> None:
        """Let the guard look if it is time, and roll back where its action says so."""
        guard = self.guard
        if guard is None or guard.alarm or not guard.due(self.done, [row["v0_norm"] for row in self.rows]):
            return
        alarm = guard.check(self.model, self.done, made=self.call.edits[: self.done]).alarm
        if guard.action in BACK and not guard.doubts:
            self.healthy = self._checkpoint()
        elif guard.action in BACK and alarm:
            asked = [row for row in self.checks if row["edits_done"] <= self.healthy.done]
            self._go_to(self.healthy)
            self.checks, self.healthy = asked, None
            self.folder.save_checkpoint(self._checkpoint())

    def _checkpoint(self, healthy: Checkpoint | None = None) -> Checkpoint:
        state = {name: getattr(self, name) for name in KEPT} | {"arithmetic": arithmetic(self.model.device)}
        if self.guard is not None:
            state["guard"] = self.guard.state()
        history = None if self.call.history is None else self.call.history.copy()
        healthy = healthy if healthy and healthy.done < self.done else None
        return Checkpoint(self.model.snapshot(), list(self.rows), list(self.checks), state, history, healthy)

    def _go_to(self, there: Checkpoint) -> None:
        self.rows, self.checks = list(there.edits), list(there.checks)
        vars(self).update({name: there.state[name] for name in KEPT})
        if there.history is not None:
            vars(self.call.history).update(vars(there.history))
        self.model.load_snapshot(there.weights)
        self.method.recall(self.model, self.call.history)

    def _resume(self, saved: Checkpoint) -> None:
        self._go_to(saved)
        if self.guard is not None:
            self.guard.resume(**saved.state["guard"])
        begun, here = saved.state["arithmetic"], arithmetic(self.model.device)
        if changed := "; ".join(f"{n} {begun.get(n)}, now {here[n]}" for n in here if begun.get(n) != here[n]):
            also = "the last digits may differ from there on"
            warnings.warn(f"{self.folder.path}: was begun with {changed}; {also}", stacklevel=4)
