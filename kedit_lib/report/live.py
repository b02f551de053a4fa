"""What the live cells of `report.widgets` do: try a typed edit, and look at a stream at any of its checkpoints.

No weights are left changed.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from ..data.config import load_model_params
from ..data.edit import Edit, around_places
from ..editing import method_for
from ..editing.compute_z import Doubtful
from ..evaluation import retention_matrix, retention_table
from ..evaluation.single_edits import ask, ask_table
from ..streams.run import Run

OTHERS = 3  # subjects that a typed prompt is also asked about


class Desk:
    """Where single edits are tried on a bench's model; the contexts are sampled once."""

    def __init__(self, bench):
        self.bench = bench
        self._contexts: dict[str, list[str]] = {}  # by style

    @property
    def methods(self) -> list[str]:
        """The methods that the model's parameter file has hyperparameters for."""
        return [name for name in load_model_params(self.bench.model.name) if name != "model"]

    def edit(self, prompt: str, subject: str, target_new: str) -> Edit:
        """An edit from typed text; the prompt holds `{}` where the subject goes, or the subject itself. Paraphrases,
        neighbors and the true object are those of the bench's own fact; without one, neighbors are the same question
        about others."""
        make = Edit if "{}" in prompt else Edit.from_text
        edit = self.bench.facts.surround(make(prompt, subject, target_new))
        if edit.neighborhood:
            return edit
        others = [e.subject for e in self.bench.edits(0, OTHERS + 1) if e.subject != edit.subject]
        return replace(edit, neighborhood=[s.join(around_places(edit.prompt)) for s in others[:OTHERS]])

    def try_edit(self, edit: Edit, name: str) -> tuple[pd.DataFrame, str]:
        """Make the edit by the method of that name on the unedited model, and take it back: what was asked before and
        after (`kedit.ask_table`), and a sentence on how the edit went."""
        model, method = self.bench.model, method_for(self.bench.model, name)
        with model.temporarily(), warnings.catch_warnings():
            warnings.simplefilter("ignore", Doubtful)  # the table shows it
            if (style := method.context_style) not in self._contexts:
                self._contexts[style] = self.bench.contexts(method)
            moments = self.bench.moments if method.needs_moments else None
            before, begin = ask(model, edit), time.perf_counter()
            outcome = method.apply(model, [edit], moments=moments, contexts=self._contexts[style])
            seconds, after = time.perf_counter() - begin, ask(model, edit)
        p, steps = outcome.targets[0].probabilities[-1], outcome.targets[0].steps
        said = f"{method.name}: optimised probability {p:.3f} after {steps} steps, {seconds:.2f} s. It is taken back."
        return ask_table(before, after), said


def stops_of(run: Run) -> list[int]:
    """The checkpoints of a stream at which all edits so far were asked one by one, or any were."""
    asked = run.checkpoints
    one_by_one = asked[asked.cohort.str.startswith("edit ")].edits_done
    return sorted(set(one_by_one if len(one_by_one) else asked.edits_done[asked.edits_done > 0]))


def stop_sentence(run: Run, at: int) -> str:
    """Accuracies after `at` edits of a stream, and how far ‖W‖ has grown."""
    parts = []
    for cohort, name in {"edits": "all edits", "latest edits": "latest edits", "untouched": "unrelated facts"}.items():
        curve = run.curve("accuracy", cohort).loc[:at]
        parts += [f"{name} {curve.iloc[-1]:.0%}"] if len(curve) else []
    row = run.edits.iloc[at - 1]
    norms = [c for c in run.edits if c.startswith("W_")]
    grown = ", ".join(f"‖W‖ of layer {c[2:]} × {row[c] / run.edits[c].iloc[0]:.2f}" for c in norms)
    return f"After {at} of {len(run.edits)} edits: right answers to {', '.join(parts)}; since the first edit {grown}."


def plot_along(run: Run, at: int):
    """(figure, data): a stream up to `at` edits. The age × checkpoint map, how far ‖W‖ has grown since edit 1, and how
    large the step of each edit is; what comes later is left white, so that one picture can be laid on the next."""
    width = max(1, len(run.edits) // 12)
    matrix = retention_matrix(retention_table(run.checkpoints), width)
    seen = matrix.where([[done <= at for done in matrix.columns]] * len(matrix))
    done = run.edits[run.edits.edit <= at].set_index("edit")
    norms, first = [c for c in done if c.startswith("W_")], run.edits.iloc[0]
    grown = pd.DataFrame({f"layer {c[2:]}": done[c] / first[c] for c in norms})
    steps = pd.DataFrame({f"layer {c[2:]}": done[f"d{c}"] / done[c] for c in norms})
    fig, axes = plt.subplot_mosaic([["map", "W"], ["map", "dW"]], figsize=(9, 4.2), layout="constrained")
    sns.heatmap(
        seen.iloc[::-1], ax=axes["map"], cmap="cividis", vmin=0, vmax=1, cbar_kws={"label": "edits still right"}
    )
    axes["map"].set(xlabel="edits made", ylabel="age of the edit, edits")
    for name, table, label in (("W", grown, "‖W‖ / ‖W₁‖"), ("dW", steps, "‖ΔW‖ / ‖W‖")):
        for layer in table:
            axes[name].plot(table.index, table[layer], label=layer)
        axes[name].set(xlim=(0, len(run.edits)), xlabel="edits made", ylabel=label)
    axes["W"].legend(fontsize=8)
    tables = {"edits still right": seen.T, "norm": grown, "step": steps}
    long = [t.stack().rename("value").rename_axis(["edits_done", "of"]).reset_index() for t in tables.values()]
    return fig, pd.concat([part.assign(what=what) for what, part in zip(tables, long, strict=True)]).dropna()
