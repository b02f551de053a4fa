"""A stream of edits through a method, the weights never put back: what every later edit has to live with."""

from __future__ import annotations

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

from .edits import check_edits
from .errors import KeditError
from .history import EditHistory
from .metrics import cosine
from .probes import EditProbe
from .probing import DEAD
from .store import ALGORITHMS, RunFolder, commit, key_of, now, versions
from .targets import AlreadyKnown
from .trace import no_bar

WINDOW = 25  # edits in the medians that define N_optimisation


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
) -> Run:
    """Apply `edits` in batches of `batch_size`, one batch on top of the other, from the unedited weights.

    probes            measured before the first edit and at every checkpoint (None: the edits themselves)
    history           an EditHistory that a method which keeps one starts from; it is not changed. None: an empty one
    store             a folder; the same call again returns the finished run or resumes a killed one.
                      None: nothing is written
    checkpoint_every  edits between checkpoints (a batch is never cut)
    dense_every       spacing until the model is dead (untouched accuracy below 0.5); None: 10 or less

    The model comes back with the weights it had before the call. Raises KeditError before anything
    runs for whatever `method.apply` would refuse in any of the edits, and at the edit that gives NaN.
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
    if isinstance(history, EditHistory) and history.edits:
        decides["history"] = history.identity
    key = key_of(**decides)
    folder = RunFolder(store, f"{method.name.lower()}-b{batch_size}", key) if store is not None else None
    if folder is not None and folder.finished():
        return Run(*folder.load(), folder.path)

    method.prepare(model, edits, moments, contexts, history)
    if method.keeps_history:
        history = EditHistory() if history is None else history.copy()
    given = {"moments": moments, "contexts": contexts, "history": history}
    before = model.snapshot()
    model.restore()
    try:
        rows, checks, started = _stream(
            model, edits, method, batch_size, given, probes, folder, checkpoint_every, dense_every, progress
        )
    finally:
        model.load_snapshot(before)
    manifest = {**decides, "key": key, "started": started, "finished": now()}
    manifest |= {"versions": versions(), "commit": commit()}
    manifest = json.loads(json.dumps(manifest))
    run = Run(pd.DataFrame(rows), pd.DataFrame(checks), manifest, folder.path if folder else None)
    if folder is not None:
        folder.finish(run.edits, run.checkpoints, run.manifest)
    return run


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


def _stream(model, edits, method, batch_size, given, probes, folder, checkpoint_every, dense_every, progress):
    """given: what every `apply` is handed beside model and edits."""
    done, rows, checks, dead, started = 0, [], [], False, now()
    saved = folder.newest_checkpoint(with_history=given["history"] is not None) if folder is not None else None
    if saved is not None:
        done, weights, rows, checks, state, history = saved
        given = {**given, "history": history}
        model.load_snapshot({name: w.to(model.device) for name, w in weights.items()})
        dead, started = state["dead"], state["started"]
    else:
        checks += _measure(model, probes, [], rows, checks, last=False)

    next_check = done + (checkpoint_every if dead else dense_every)
    name, off = f"{method.name} b{batch_size}", no_bar(progress)
    with tqdm(total=len(edits), initial=done, desc=name, unit="edit", disable=off, mininterval=2) as bar:
        while done < len(edits):
            batch = edits[done : done + batch_size]
            drift = {layer: model.drift(layer) for layer in method.layers}
            begin = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AlreadyKnown)  # noted in the edit's row instead
                outcome = method.apply(model, batch, **given)
            rows += _rows(model, outcome, drift, done, time.perf_counter() - begin)
            done += len(batch)
            bar.update(len(batch))
            bar.set_postfix(p=f"{rows[-1]['probability_last']:.3g}")
            if done >= next_check or done == len(edits):
                checks += _measure(model, probes, edits[:done], rows, checks, last=done == len(edits))
                dead = dead or _is_dead(checks)
                next_check = done + (checkpoint_every if dead else dense_every)
                if folder is not None:
                    state = {"dead": dead, "started": started}
                    folder.save_checkpoint(done, model.snapshot(), rows, checks, state, given["history"])
    return rows, checks, started


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
