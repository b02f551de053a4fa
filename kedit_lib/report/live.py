"""What the live cells of `report.widgets` do: try a typed edit, and look at a stream at any of its checkpoints.

No weights are left changed.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..data.atomic import replacing
from ..data.config import load_model_params
from ..data.edit import Edit, around_places
from ..data.provenance import key_of
from ..editing import method_for
from ..editing.compute_z import Doubtful
from ..evaluation import retention_matrix, retention_table, sampled_texts
from ..evaluation.before_after import ask, ask_table
from ..models.hooks import no_bar
from ..streams.run import Run

OTHERS = 3  # subjects that a typed prompt is also asked about
FRAMES = 9  # moments of a stream whose weights a film keeps
TOKENS = 30  # of a sample


@dataclass(frozen=True)
class Tried:
    """One edit, made and taken back. table: as of `kedit.ask_table`; said: how the edit went, a sentence."""

    table: pd.DataFrame
    said: str


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
        """An edit from typed text, with all that the bench knows around it.

        prompt: with `{}` where the subject goes, or with the subject itself. Paraphrases, neighbors and the true
        object are those of the bench's own fact; where it has none, neighbors are the same question about others.
        """
        make = Edit if "{}" in prompt else Edit.from_text
        edit = self.bench.facts.surround(make(prompt, subject, target_new))
        if edit.neighborhood:
            return edit
        others = [e.subject for e in self.bench.edits(0, OTHERS + 1) if e.subject != edit.subject]
        return replace(edit, neighborhood=[s.join(around_places(edit.prompt)) for s in others[:OTHERS]])

    def try_edit(self, edit: Edit, name: str) -> Tried:
        """Make the edit by the method of that name on the unedited model, ask before and after, take it back."""
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
        return Tried(ask_table(before, after), said)


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


# ---- films: the weights of a stream at some of its moments ----------------------------------------------------------


def frames_of(bench, name: str, run: Run) -> list[int]:
    """The numbers of edits after which a film of this stream keeps the weights: at most FRAMES, the end among them."""
    size = bench.streams[name].batch_size or len(run.edits)
    ends = [min(n + size, len(run.edits)) for n in range(0, len(run.edits), size)]
    step = -(-len(ends) // FRAMES)
    return ends[::-1][::step][::-1]


def film_folder(bench, run: Run) -> Path:
    """Where the film of a stream is kept."""
    return bench.results / "films" / key_of(stream=run.manifest["key"], frames=FRAMES)


def make_film(bench, name: str, order: int, run: Run) -> Path:
    """The edits of a finished stream made again, without its probes; the weights kept at `frames_of`.

    It takes the stream's seconds of editing, once: the folder is kept.
    """
    folder = film_folder(bench, run)
    if folder.exists():
        return folder
    model, method, edits = bench.model, bench.method(name), bench.edits(order)[: len(run.edits)]
    size, frames = bench.streams[name].batch_size or len(edits), set(frames_of(bench, name, run))
    inputs = bench.inputs(method, order)
    inputs["history"] = method.new_history(model, inputs["moments"])
    bar = tqdm(total=len(edits), desc=f"{method.name} again", unit="edit", disable=no_bar(bench.progress))
    with model.temporarily(), bar, replacing(folder) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore", Doubtful)
        partial.mkdir()
        for begin in range(0, len(edits), size):
            batch = edits[begin : begin + size]
            method.apply(model, batch, **inputs)
            bar.update(len(batch))
            if (done := begin + len(batch)) in frames:
                weights = {n: w.contiguous().cpu() for n, w in model.snapshot().items()}
                save_file(weights, str(partial / f"{done:06d}.safetensors"))
    return folder


def samples_at(bench, film: Path, at: int, prompts: list[str]) -> pd.DataFrame:
    """What the model writes after each prompt: unedited, and with the weights of the film's last frame up to `at`."""
    model = bench.model
    frames = [path for path in sorted(film.glob("*.safetensors")) if int(path.stem) <= at]
    with model.temporarily():
        texts = {"before": sampled_texts(model, prompts, TOKENS)}
        if frames:
            model.load_snapshot({n: w.to(model.device) for n, w in load_file(str(frames[-1])).items()})
            texts[f"after {int(frames[-1].stem)} edits"] = sampled_texts(model, prompts, TOKENS)
    return pd.DataFrame(texts, index=pd.Index(prompts, name="prompt"))


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
