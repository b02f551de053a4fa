"""A finished stream: its tables, and where it collapsed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import KeditError
from ..evaluation.protocol import DEAD
from .store import RunFolder

WINDOW = 25  # edits in the medians that define N_optimisation


@dataclass
class Run:
    """A finished stream.

    edits        one row per edit: probability_first/_last, steps, delta_ratio = ‖δ‖/‖v₀‖ (FT: NaN), s_<layer> and
                 written_<layer> where the method has them (see Outcome), dW_<layer> = ‖ΔW‖_F of its batch,
                 W_<layer> = ‖W‖_F after it, along_<layer> = cosine of ΔW with the sum of all earlier updates of
                 that layer (NaN: there is none), seconds, …
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


def collapse_point(run, kind: str = "optimisation") -> int | None:
    """The edit at which a stream has collapsed; None: it has not.

    optimisation  the first edit at which the median of the final optimised probability over the last
                  25 edits is below half its value over the first 25
    model         the first checkpoint at which accuracy on untouched facts is below 0.5
    """
    if kind == "optimisation":
        p = run.edits["probability_last"].tolist()
        bar = statistics.median(p[:WINDOW]) / 2
        ends = range(WINDOW + 1, len(p) + 1)
        return next((n for n in ends if statistics.median(p[n - WINDOW : n]) < bar), None)
    if kind == "model":
        c = run.checkpoints
        below = c[(c.metric == "accuracy") & (c.cohort == "untouched") & (c.value < DEAD)]
        return None if below.empty else int(below.edits_done.min())
    raise KeditError(f"collapse_point: kind = {kind!r}; use 'optimisation' or 'model'")
