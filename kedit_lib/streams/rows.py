"""The rows of a stream: one for each edit, and those of each checkpoint."""

from __future__ import annotations

import math
import time

import pandas as pd

from ..evaluation import cosine
from ..evaluation.protocol import DEAD
from .run import Run, collapse_point


def measured_after(model, run: Run, edits, probes, change) -> Run:
    """The same edits with `change(model)` made once after the last: a Run whose checkpoints are the start and the end.

    run: a finished stream that stored its weights; edits: its edits. The weights are the ones at entry afterwards.
    """
    with model.temporarily():
        checks = measured_rows(model, probes, [], [], [], last=False)
        model.load_snapshot(run.final_weights())
        change(model)
        checks += measured_rows(model, probes, list(edits), [], checks, last=True)
    return Run(run.edits, pd.DataFrame(checks), {**run.manifest, "after": change.__name__})


def measured_rows(model, probes, done_edits, rows, checks, last: bool) -> list[dict]:
    """Rows of the probes that are due (see evaluation.protocol.Probe); rows, checks: all of the stream so far."""
    begin, done = time.perf_counter(), len(done_edits)
    before = checks[-1]["edits_done"] if checks else -1
    found, seldom = [], []
    for probe in probes:
        every = getattr(probe, "every", 1)
        if every is None:
            seldom.append(probe)
        elif last or done // every > before // every:
            found += probe(model, done_edits)
        elif brief := getattr(probe, "brief", None):
            found += brief(model, done_edits)
    if seldom and (not done or last or _collapses(rows, checks, found, done, before)):
        found += [row for probe in seldom for row in probe(model, done_edits)]
    found.append({"metric": "seconds", "cohort": "probes", "value": time.perf_counter() - begin, "n": 1})
    return [{"edits_done": done, **row} for row in found]


def _collapses(rows, checks, found, done: int, before: int) -> bool:
    """Whether either collapse point lies after the checkpoint `before`."""
    checks = checks + [{"edits_done": done, **row} for row in found]
    so_far = Run(pd.DataFrame(rows), pd.DataFrame(checks), {})
    points = (collapse_point(so_far, kind) for kind in ("optimisation", "model"))
    return any(point is not None and point > before for point in points)


def is_dead(checks: list[dict]) -> bool:
    """Whether accuracy on untouched facts is below DEAD at the last checkpoint."""
    latest = [c for c in checks if c["edits_done"] == checks[-1]["edits_done"]]
    return any(c["value"] < DEAD for c in latest if (c["metric"], c["cohort"]) == ("accuracy", "untouched"))


def edit_rows(model, outcome, drift: dict, done: int, seconds: float) -> list[dict]:
    """A row for each edit of the batch just applied; drift: {layer: W − W₀ before it}."""
    shared = {"seconds": seconds / len(outcome.edits), "batch": len(outcome.edits)}
    for layer in outcome.layers(model):
        delta = outcome.deltas[model.weight_name(layer)]
        shared[f"dW_{layer}"] = delta.double().norm().item()
        shared[f"along_{layer}"] = cosine(delta, drift[layer])
        shared[f"W_{layer}"] = model.weight(layer).detach().double().norm().item()
    columns = [
        (f"{name}_{layer}", found[layer])
        for layer in {**outcome.s, **outcome.written}
        for name, found in (("s", outcome.s), ("written", outcome.written))
        if layer in found
    ]
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
        rows.append(row | {name: values[i].item() for name, values in columns})
    return rows
