"""How much faster the library edits than the plain path (`tests/reference.py`), and that it does the same.

    make bench                      # the lab model on the CPU → figures/benchmarks.csv
    make bench PROFILE=smollm2      # the pretrained model → figures/benchmarks_smollm2.csv

Both paths are timed in one process, edit by edit in turn, on the same edits and contexts; each edit is taken back
before the next. On the CPU seconds are those that the process computes, in one thread, so that other processes do not
count; what is not timed: sampling contexts, measuring and factorising C, which a stream does once.

In float32 Adam makes a whole step of a gradient that is 0 but for rounding, on a weight (FT) more often than on a
target: the float64 rows tell rounding from a mistake.
"""

import argparse
import copy
import sys
import warnings
from contextlib import ExitStack
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import reference
import torch
from roofline import edit_cost, peaks, timed
from tqdm.auto import tqdm

import kedit_lib as kedit
import kedit_lib.editing as methods
from kedit_lib.editing.compute_z import Doubtful
from kedit_lib.models.llama import multiplies_in_bfloat16
from kedit_lib.models.suffix import Tails
from kedit_lib.streams.bench import peak_memory

FIGURES = Path(__file__).resolve().parents[1] / "figures"
# What the phases are made of; whatever else an edit takes is "rest": tokens, checks, copies of weights.
PHASES = {
    "steps": [(methods.locate_then_edit, "optimise"), (methods.ft, "evaluated")]
    + [(torch.Tensor, "backward"), (torch.optim.Adam, "step")],
    "first pass": [(Tails, "of")],
    "keys": [(methods.compute_k.Reading, "_read")],
    "solve": [(kedit.SecondMoments, "solve"), (kedit.NullSpace, "project"), (methods.spread, "with_memory")]
    + [(methods.spread, "update")]
    + [(methods.rect, "largest_changes")],
    "write": [(module, "write") for module in (methods.spread, methods.rome, methods.ft)]
    + [(kedit.EditableModel, name) for name in ("snapshot", "load_snapshot", "add")],
}
# One edit at a time: the section of params/models that has the hyperparameters, what is set beside them, and the bar.
# ROME and its kin have no batch: they make the edits of one call one after another.
ALONE = {
    "MEMIT": ("memit", {}, 5),
    "PMET": ("pmet", {}, 5),
    "ROME": ("rome", {}, 5),
    "MEMIT with history": ("memit", {"use_history": True}, None),
    "AlphaEdit": ("alphaedit", {}, None),
    "EMMET": ("emmet", {}, None),
    "RECT": ("rect", {}, None),
    "r-ROME": ("rrome", {}, None),
    "p-ROME": ("prome", {}, None),
    "FT-L": ("ft", {}, None),
    "FT-M": ("ft-m", {}, None),
}


class Phases(ExitStack):
    """Inside, the seconds of each phase add up in `.seconds`, without those of a phase within it."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seconds, self._within = device, dict.fromkeys(PHASES, 0.0), 0.0

    def __enter__(self):
        for phase, places in PHASES.items():
            for owner, name in places:
                self.enter_context(patch.object(owner, name, self._clocked(phase, getattr(owner, name))))
        return super().__enter__()

    def _clocked(self, phase, function):
        def clocked(*arguments, **named):
            before, self._within = self._within, 0.0
            seconds, result = timed(lambda: function(*arguments, **named), self.device)
            self.seconds[phase] += seconds - self._within
            self._within = before + seconds
            return result

        return clocked

    def shares(self, total):
        return {**self.seconds, "rest": total - sum(self.seconds.values())}


class Peak:
    """Largest memory inside: on the device, or (Linux) of this process."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *error):
        on_device = self.device.type == "cuda"
        self.mb = torch.cuda.max_memory_allocated(self.device) / 2**20 if on_device else peak_memory()


class Paths:
    """One method by the library and by the reference on the same model, each leaving it as it was."""

    def __init__(self, model, method, moments, contexts, engine=None):
        self.model, self.method, self.moments, self.contexts, self.engine = model, method, moments, contexts, engine
        self.C = {layer: moments.tensors[layer] for layer in method.layers} if method.needs_moments else {}
        self.projection = {}
        if isinstance(method, kedit.AlphaEdit):
            self.projection = {i: reference.null_projection(c, method.nullspace_threshold) for i, c in self.C.items()}

    def ours(self, edits):
        """(seconds, outcome)"""
        history = kedit.EditHistory() if self.method.keeps_history else None
        given = {"moments": self.moments, "contexts": self.contexts, "history": history, "engine": self.engine}
        found = timed(lambda: self.method.apply(self.model, edits, **given), self.model.device)
        self.model.restore()
        return found

    def plain(self, edits):
        """(seconds, result)"""
        model, (edit, *given) = self.model, self._plainly(edits)
        before = {name: p.clone() for name, p in self._edited()}
        with model.device:  # where the reference makes its tensors
            found = timed(lambda: edit(model.hf, model.tokenizer, *given), model.device)
        for name, value in before.items():
            model.hf.get_parameter(name).copy_(value)
        return found

    def _plainly(self, edits):
        """The method's function in `reference.py`, and what it is given behind the model and the tokenizer."""
        method, contexts, hp = self.method, self.contexts, SimpleNamespace(**self.method.model_dump())
        C = {layer: c.to(self.model.device) for layer, c in self.C.items()}
        match method:
            case kedit.FT():
                return reference.fine_tune, edits, hp
            case kedit.AlphaEdit():
                return reference.alphaedit, edits, contexts, hp, self.projection, {}
            case kedit.ROME():  # r-ROME and p-ROME too
                (one,) = edits
                return getattr(reference, method.name.lower()), one, contexts, hp, C
        history = ({},) if method.keeps_history else ()
        return getattr(reference, method.name.lower()), edits, contexts, hp, C, *history

    def call(self, edits):
        """What the library edits with."""
        return self.method.prepare(self.model, edits, self.moments, self.contexts)

    def _edited(self):
        return [(self.model.weight_name(i), self.model.weight(i)) for i in self.method.layers]


def difference(outcome, result):
    """Largest |difference| of the updates, over the largest entry."""
    pairs = [(outcome.deltas[name], result.deltas[name].to(outcome.deltas[name].dtype)) for name in outcome.deltas]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def compared(paths, batches, plain_batches, peak, title, bar=None, plain_edits=None):
    """A row: the library on every batch of edits, in turn with the reference on the first `plain_batches` (of these on
    the first `plain_edits`, where that is given). How many times faster is by seconds an evaluation of the loss."""
    device, ours, plain, same_steps, far, plain_memory = paths.model.device, [], [], [], nan, None
    rates = []  # of both
    paths.ours(batches[0][:1])  # what only the first call does
    phases = dict.fromkeys([*PHASES, "rest"], 0.0)
    total, floor, all_steps, each = 0.0, 0.0, 0, len(batches[0])
    for i, edits in enumerate(tqdm(batches, desc=title, leave=False)):
        with Phases(device) as clock, Peak(device) as memory:
            seconds, outcome = paths.ours(edits)
        for phase, share in clock.shares(seconds).items():
            phases[phase] += share
        ours.append(seconds / each)
        total += seconds
        steps = [t.steps for t in outcome.targets]
        all_steps += sum(steps)
        floor += edit_cost(paths.method, paths.call(edits), steps).seconds(peak)
        if i < plain_batches:
            with Peak(device) as plain_memory:
                plain_seconds, result = paths.plain(edits[:plain_edits])
            plain.append(plain_seconds / len(result.targets))
            same_steps += [a == b.steps for a, b in zip(steps, result.targets, strict=plain_edits is None)]
            rates.append((seconds / sum(steps), plain_seconds / sum(b.steps for b in result.targets)))
            if plain_edits is None:
                far = difference(outcome, result) if isnan(far) else max(far, difference(outcome, result))
    return {
        "path": title,
        "edits": len(batches) * each,
        "plain edits": plain_batches * (plain_edits or each),
        "s/edit": sum(ours) / len(ours),
        "plain s/edit": sum(plain) / len(plain) if plain else nan,
        "times faster": sum(b for _, b in rates) / sum(a for a, _ in rates) if plain else nan,
        "bar": bar,
        "steps": all_steps / len(batches) / each,
        **{f"share: {phase}": share / total for phase, share in phases.items()},
        "peak MB": memory.mb,
        "plain peak MB": plain_memory.mb if plain else nan,
        "same number of steps": sum(same_steps) / len(same_steps) if plain else nan,
        "largest difference": far,
        "least s/edit (roofline)": floor / len(batches) / each,
        "share of roofline reached": floor / total,
        "dtype": str(paths.model.dtype).removeprefix("torch."),
        "device": device_name(device),
    }


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread"


def alone(bench, moments):
    """{title: Paths} of what is timed one edit at a time on a bench of the lab."""
    found, contexts = {}, {}
    for title, (section, options, _) in ALONE.items():
        method = kedit.method_for(bench.model, section, **options)
        if method.context_style not in contexts:
            contexts[method.context_style] = bench.contexts(method)
        found[title] = Paths(bench.model, method, moments, contexts[method.context_style])
    return found


def double(paths, folder):
    """The same with the model and C in float64."""
    model = kedit.load_model(folder, dtype=torch.float64)
    moments = kedit.SecondMoments.from_tensors({layer: c.double() for layer, c in paths.C.items()})
    return Paths(model, paths.method, moments, paths.contexts)


def wider(bench, times=4):
    """(title, Paths) of MEMIT and PMET on a model of the bench's shape but `times` as wide, weights and C random: the
    same number of operations an edit on larger matrices. A ratio that rises with the width was held down by what an
    operation costs whatever its size."""
    torch.manual_seed(0)
    config = copy.deepcopy(bench.model.hf.config)
    config.hidden_size, config.intermediate_size = times * config.hidden_size, times * config.intermediate_size
    config.head_dim = times * config.head_dim
    hf = type(bench.model.hf)(config).eval()
    model = kedit.EditableModel(hf, bench.model.tokenizer, f"{times} times as wide")
    for name in ("memit", "pmet"):
        method, x = bench.method(name), torch.randn(2 * model.d_ff, model.d_ff)
        moments = kedit.SecondMoments.from_tensors(dict.fromkeys(method.layers, x.T @ x / len(x)))
        yield f"{method.name}, {times} × as wide", Paths(model, method, moments, bench.contexts(method))


def lab(edits_each=8, batch=100, model="lab", progress=True):
    """The table for the lab model."""
    bench = kedit.Bench(model, progress=progress)
    edits = bench.edits(0, max(batch + 1, edits_each + 2))
    peak, rows, found = peaks(bench.model.device, torch.float32), [], alone(bench, bench.moments)

    def add(title, paths, batches, plain_batches, bar=None):
        rows.append(compared(paths, batches, plain_batches, peak, title, bar))
        print(line(rows[-1]), flush=True)

    for title, paths in found.items():
        add(title, paths, [[e] for e in edits[1 : edits_each + 1]], edits_each, ALONE[title][-1])
    for title in ("MEMIT", "PMET"):
        add(f"{title}, batch of {batch}", found[title], [edits[:batch]], 1, 8)
    for title, paths in found.items():
        exact = double(paths, bench.model.folder)
        add(f"{title}, float64", exact, [[e] for e in edits[1:3]], 2)
        if title in ("MEMIT", "PMET", "EMMET"):
            add(f"{title}, batch of 5, float64", exact, [edits[:5]], 1)
    for title, paths in wider(bench):
        add(title, paths, [[e] for e in edits[1:3]], 2)
    return pd.DataFrame(rows)


def pretrained(profile="smollm2", singles=3, batch=32, plain=4):
    """The table for a pretrained model on the first edits of its sequence; of a batch the reference makes `plain`. C is
    made up: what an edit costs does not depend on it."""
    from llama_shape import made_up_moments

    bench = kedit.Bench(profile, progress=False)
    edits, peak, rows = bench.edits(0, batch + 1), peaks(bench.model.device, torch.float32), []
    half = [("memit", "bfloat16", None)] if multiplies_in_bfloat16() else []
    plan = [("memit", None, 8), *half, ("pmet", None, 8), ("rome", None, 10)]
    for name, engine, bar in [*plan, ("memit", None, 12), *half]:
        method, together = bench.method(name), len(rows) >= len(plan)
        moments = made_up_moments(bench.model, method.layers)
        paths = Paths(bench.model, method, moments, bench.contexts(method), engine)
        title = ", ".join(x for x in (method.name, f"batch of {batch}" if together else "", engine) if x)
        batches, some = ([edits[1:]], plain) if together else ([[e] for e in edits[1 : singles + 1]], None)
        times = 0 if engine and together else len(batches)
        rows.append(compared(paths, batches, times, peak, title, bar, some))
        print(line(rows[-1]), flush=True)
    return pd.DataFrame(rows)


def relative(value, expected):
    return float((value - expected).norm() / expected.norm())


def line(row):
    """What is printed of a row."""
    against = "" if isnan(row["times faster"]) else f"{row['times faster']:.1f} × the plain path, "
    return (
        f"{row['path']}: {row['s/edit']:.4f} s/edit, {against}bar {row['bar']}, largest difference "
        f"{row['largest difference']:.1e}, {row['share of roofline reached']:.0%} of the roofline"
    )


def save(table, name, folder=FIGURES):
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / name, index=False, float_format="%.4g")
    print(f"→ {folder / name}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="lab", choices=["lab", "smoke", "smollm2"])
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the tables")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", Doubtful)
    try:
        torch.set_num_threads(1)
        if args.profile == "smollm2":
            save(pretrained(), "benchmarks_smollm2.csv", args.out)
            return 0
        small = {"edits_each": 1, "batch": 2, "model": "smoke"}
        save(lab(**small if args.profile == "smoke" else {}), "benchmarks.csv", args.out)
    except kedit.KeditError as error:
        print(f"kedit: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
