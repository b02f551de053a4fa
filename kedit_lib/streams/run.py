"""A stream's tables: a row for each edit, the rows of each checkpoint, and where it collapsed."""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import KeditError
from ..evaluation import cosine
from ..evaluation.protocol import DEAD
from .store import RunFolder

WINDOW = 25  # edits in the medians that define N_optimisation
VITAL = ("accuracy", "untouched")  # metric and cohort by which a model is alive


@dataclass
class Run:
    """A finished stream.

    edits        one row per edit: probability_first/_last, steps, delta_ratio = ‖δ‖/‖v₀‖ (FT: NaN), s_<layer> and
                 written_<layer> where the method has them (see Outcome), dW_<layer> = ‖ΔW‖_F of its batch,
                 W_<layer> = ‖W‖_F after it, along_<layer> = cosine of ΔW with the sum of the layer's earlier
                 updates (NaN: there is none), seconds, …
    checkpoints  long form: edits_done, metric, cohort, value, n
    manifest     everything that decided the numbers, and where and when they were made
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
            raise KeditError("run: its weights were not stored; pass a store to run_stream")
        newest = RunFolder(self.path).newest_checkpoint()
        if newest is None or newest.done != len(self.edits):
            raise KeditError(f"{self.path}: final weights missing or damaged; remove the folder and run it again")
        return newest.weights

    def curve(self, metric: str, cohort: str) -> pd.Series:
        """value by edits_done of one metric on one cohort."""
        c = self.checkpoints
        picked = c[(c.metric == metric) & (c.cohort == cohort)]
        return picked.set_index("edits_done")["value"].sort_index()


def collapse_point(run, kind: str = "optimisation") -> int | None:
    """The edit at which a stream has collapsed; None: it has not.

    optimisation  the first edit at which the median of the final optimised probability over the last
                  25 edits is below half its value over the first 25
    model         the first checkpoint at which accuracy on untouched facts is below 0.5
    """
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
            **{name: getattr(edit, name) for name in ("id", "subject", "relation", "target_new")},
            "probability_first": target.probabilities[0],
            "probability_last": target.probabilities[-1],
            "loss_last": target.losses[-1],
            "steps": target.steps,
            "delta_ratio": math.nan if target.delta is None else target.delta.norm().item() / target.v0_norm,
            **{name: getattr(target, name) for name in ("v0_norm", "clamped", "already")},
            **shared,
        }
        for name, values in (("s", outcome.s), ("written", outcome.written)):
            row |= {f"{name}_{layer}": each[i].item() for layer, each in values.items()}
        rows.append(row)
    return rows
