"""A stream taken apart: what every edit does to the values of all the other subjects.

Where one layer is edited, the key k of a subject is the same all along, and the value that the edited map gives it is
exactly W₀k + Σ_j Δ_j k: the *spill* of edit j on it is Δ_j k, its *shift* D = Σ_j Δ_j k. With Δ⁰_j the update that edit
j would be as the only one, on the unedited model,

    ‖D‖²  =  Σ_j ‖Δ⁰_j k‖²                     spills     each edit's own, as if no two pointed the same way
          +  ‖Σ_j Δ⁰_j k‖² − Σ_j ‖Δ⁰_j k‖²     agreement  they do point the same way (negative: against each other)
          +  ‖D‖² − ‖Σ_j Δ⁰_j k‖²              response   edits differ from Δ⁰ because of the edits before them:
                                                       they grow (Σ ‖Δ_j k‖² − Σ ‖Δ⁰_j k‖²) and turn (the rest)

The three are the suspected causes: errors that add up, directions that conflict, edits that answer to each other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import mannwhitneyu
from tqdm.auto import tqdm

from ..data.provenance import ALGORITHMS, key_of
from ..editing.compute_k import keys_at
from ..editing.compute_z import Doubtful
from ..errors import KeditError
from ..evaluation import generation_accuracy
from ..models.hooks import no_bar
from ..models.tokenization import encode_prompt
from ..streams.bench import Bench, data_folder
from ..streams.runner import edits_hash
from ..streams.store import write_parquet

STREAMS = ("memit", "memit-steps")  # one layer each; MEMIT as published, and where it costs most bystanders
CHECKPOINTS = 9
STRANGERS = 250  # untouched facts
SUBJECTS, KEYS = "subject and relation", "cosine of the keys, C⁻¹"  # ways to sort pairs of edits
NEAR = (0.3, 0.1, 0.03)  # |cos| between which pairs of keys are sorted


@dataclass
class Anatomy:
    """shifts  a row a checkpoint, stream (as it is, or `superposed`: W₀ + Σ Δ⁰) and fact: cohort ("untouched" or
            "edits", these from the edit after their own on), fact, shift = ‖D‖/‖v‖ with v its value before,
            spills = Σ_j ‖Δ_j k‖²/‖v‖², right (by free generation)
    doses   a row an edit: own = ‖Δ_j k_j‖, own_alone of Δ⁰_j; norm and norm_alone, ‖Δ_j‖_F and ‖Δ⁰_j‖_F
    kin     a row an earlier edit, way to sort the later ones (`by`, SUBJECTS or KEYS) and kind of later one: kin,
            later (how many), spills = Σ_j ‖Δ_j k‖²/‖v‖²
    """

    shifts: pd.DataFrame
    doses: pd.DataFrame
    kin: pd.DataFrame


PARTS = ("shifts", "doses", "kin")


def anatomy(bench: Bench, name: str, order: int = 0) -> Anatomy | None:
    """Of a stream: the committed one, or one from results/; a live order is dissected when it is in neither. None: an
    order that is not there, or a stream of several layers."""
    if len(bench.method(name).layers) != 1:
        return None
    found = _read(data_folder(), bench, name, order) or _read(bench.results / "anatomy", bench, name, order)
    if found is None and order in bench.profile.live_orders:
        found = keep(bench, name, order, bench.results / "anatomy")
    return found


def keep(bench: Bench, name: str, order: int, folder: Path) -> Anatomy:
    """Put the three tables of a stream into a folder: dissected, or, as a sweep that was stopped goes on, found in
    results/."""
    ours = bench.results / "anatomy"
    if (found := _read(ours, bench, name, order)) is None:
        found = dissect(bench, name, order)
    for where in {ours, folder}:
        for part in PARTS:
            write_parquet(getattr(found, part), _path(where, bench, name, order, part))
    return found


def _read(folder: Path, bench: Bench, name: str, order: int) -> Anatomy | None:
    paths = [_path(folder, bench, name, order, part) for part in PARTS]
    return Anatomy(*map(pd.read_parquet, paths)) if all(path.exists() for path in paths) else None


def _path(folder: Path, bench: Bench, name: str, order: int, part: str) -> Path:
    return folder / f"{measured_on(folder, bench, name, order)}{part}.parquet"


def measured_on(folder: Path, bench: Bench, name: str, order: int) -> str:
    """How the files of a measurement on a stream's edits begin; the library's own version counts in results/ only, for
    committed data stay what they are."""
    method = bench.method(name)
    decides = [bench.model.checksum, method.name, method.hyperparameters, edits_hash(bench.edits(order))]
    decides += [] if folder == data_folder() else [ALGORITHMS]
    return f"{bench.profile.model.split('/')[-1]}.{name}.order{order}.{key_of(parts=decides)}."


class _Facts:
    """Some facts and what has happened to their values: keys k [n, d_ff], D and Σ‖Δk‖² since they count."""

    def __init__(self, model, layer: int, cohort: str, facts):
        self.cohort, self.subjects = cohort, [subject for _, subject, _ in facts]
        self.asked = [prompt.replace("{}", subject) for prompt, subject, _ in facts]
        self.answers = [answer for *_, answer in facts]
        prompts = [encode_prompt(model.tokenizer, "{}", prompt, subject) for prompt, subject, _ in facts]
        self.k = keys_at(model, prompts, [layer])[layer].double()
        self.size = (self.k @ _w(model, layer).T).norm(dim=1)  # ‖v‖
        self.shift = torch.zeros(len(facts), model.d_model, dtype=torch.float64, device=self.k.device)
        self.spills = torch.zeros_like(self.size)

    def add(self, delta, counts) -> torch.Tensor:
        """Note the spills of Δ on the facts that `counts` [n] says; returns ‖Δk‖² [n] of all."""
        spill = self.k @ delta.T
        squared = spill.square().sum(1)
        self.shift += spill * counts[:, None]
        self.spills += squared * counts
        return squared

    def rows(self, model, done: int, which, superposed: bool) -> list[dict]:
        right = generation_accuracy(model, [self.asked[i] for i in which], [self.answers[i] for i in which])
        shift, size = self.shift.norm(dim=1), self.size
        return [
            {
                "edits_done": done,
                "superposed": superposed,
                "cohort": self.cohort,
                "fact": i,
                "shift": (shift[i] / size[i]).item(),
                "spills": (self.spills[i] / size[i] ** 2).item(),
                "right": bool(r),
            }
            for i, r in zip(which, right, strict=True)
        ]


def _w(model, layer: int) -> torch.Tensor:
    """W [d_model, d_ff] as it is now, in float64."""
    w = model.weight(layer).detach().double()
    return w.T if model.layout.transposed else w


def dissect(bench: Bench, name: str, order: int = 0) -> Anatomy:
    """Run the stream again, and beside it each edit alone. KeditError for a stream of several layers or of batches."""
    model, method, stream = bench.model, bench.method(name), bench.streams[name]
    if len(method.layers) != 1 or stream.batch_size != 1:
        raise KeditError(f"anatomy of {name}: takes a stream of single edits in one layer; {method.layers} are edited")
    (layer,) = method.layers
    edits, given = bench.edits(order), {"moments": bench.moments, "contexts": bench.contexts(method, order)}
    step = -(-len(edits) // CHECKPOINTS)
    before = model.snapshot()
    model.restore()
    try:
        own = [(e.prompt, e.subject, e.target_new) for e in edits]
        panel = bench.facts.strangers(edits, STRANGERS, order)
        seq, sup = ([_Facts(model, layer, c, f) for c, f in (("untouched", panel), ("edits", own))] for _ in range(2))
        total = torch.zeros_like(_w(model, layer))
        kin, spills = _kinship(edits) | _nearness(seq[1].k, bench.moments.solve(layer, seq[1].k)), {}
        shifts, doses = [], []
        for j, edit in enumerate(tqdm(edits, desc=f"anatomy of {name}", disable=no_bar(bench.progress))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Doubtful)  # a broken model says anything
                with model.temporarily():
                    delta0 = _delta(model, layer, method.apply(model, [edit], **given))
                delta = _delta(model, layer, method.apply(model, [edit], **given))
            total += delta0
            earlier = torch.arange(len(edits), device=delta.device) < j
            for facts, d in ((seq, delta), (sup, delta0)):
                strangers, edited = facts
                strangers.add(d, torch.ones_like(strangers.size))
                squared = edited.add(d, earlier.double())
                if facts is seq:
                    for kind, mask in kin.items():
                        now = (squared / edited.size**2).cpu() * earlier.cpu() * mask[:, j]
                        spills[kind] = spills.get(kind, 0) + now
            doses.append(_dose(seq[1].k[j], delta, delta0, j + 1))
            for facts, w in ((seq, _w(model, layer)), (sup, _w_unedited(model, layer) + total)):
                facts[1].size[j] = (w @ facts[1].k[j]).norm()  # an edit's value counts from its own writing on
            if (j + 1) % step == 0 or j + 1 == len(edits):
                shifts += _ask(model, layer, seq, sup, total, j + 1)
    finally:
        model.load_snapshot(before)
    rows = [
        {"by": by, "edit": i + 1, "kin": kind, "later": int(mask[i, i + 1 :].sum()), "spills": spilt[i].item()}
        for ((by, kind), mask), spilt in zip(kin.items(), spills.values(), strict=True)
        for i in range(len(edits) - 1)
    ]
    return Anatomy(pd.DataFrame(shifts), pd.DataFrame(doses), pd.DataFrame(rows))


def _delta(model, layer: int, outcome) -> torch.Tensor:
    delta = outcome.deltas[model.weight_name(layer)].double()
    return delta.T if model.layout.transposed else delta


def _w_unedited(model, layer: int) -> torch.Tensor:
    return _w(model, layer) - (model.drift(layer).T if model.layout.transposed else model.drift(layer)).double()


def _dose(k, delta, delta0, edit: int) -> dict:
    return {
        "edit": edit,
        "own": (delta @ k).norm().item(),
        "own_alone": (delta0 @ k).norm().item(),
        "norm": delta.norm().item(),
        "norm_alone": delta0.norm().item(),
    }


def _ask(model, layer: int, seq, sup, total, done: int) -> list[dict]:
    found = [row for facts in seq for row in facts.rows(model, done, _due(facts, done), superposed=False)]
    with model.temporarily():
        name = model.weight_name(layer)
        model.add({name: (total.T if model.layout.transposed else total).to(model.math_dtype).contiguous()})
        found += [row for facts in sup for row in facts.rows(model, done, _due(facts, done), superposed=True)]
    return found


def _due(facts: _Facts, done: int) -> range:
    return range(len(facts.subjects)) if facts.cohort == "untouched" else range(done)


def _kinship(edits) -> dict[tuple[str, str], torch.Tensor]:
    """{(SUBJECTS, kind): [n, n] bool}: whether subject or relation of two edits are akin; each pair has one kind."""
    names = [set(e.subject.split()) for e in edits]
    named = torch.tensor([[bool(a & b) for b in names] for a in names])
    relation = torch.tensor([[bool(a.relation) and a.relation == b.relation for b in edits] for a in edits])
    return {
        (SUBJECTS, "a name part"): named & ~relation,
        (SUBJECTS, "the relation"): relation & ~named,
        (SUBJECTS, "both"): named & relation,
        (SUBJECTS, "neither"): ~named & ~relation,
    }


def _nearness(k: torch.Tensor, ck: torch.Tensor) -> dict[tuple[str, str], torch.Tensor]:
    """{(KEYS, kind): [n, n] bool} by |cos| of the keys in the metric of C⁻¹, by which one update acts at another's key
    (`directions`); each pair has one kind. k, C⁻¹k: [n, d_ff]."""
    inner = (k @ ck.to(k).T).cpu()
    size = inner.diagonal().sqrt()
    near = (inner / (size[:, None] * size)).abs()
    kinds = {f"above {NEAR[0]:g}": near >= NEAR[0]}
    kinds |= {f"{low:g} to {high:g}": (near >= low) & (near < high) for high, low in pairwise(NEAR)}
    kinds[f"below {NEAR[-1]:g}"] = near < NEAR[-1]
    return {(KEYS, kind): mask for kind, mask in kinds.items()}


def shares(found: Anatomy, at: int | None = None) -> dict[str, float]:
    """The terms of ‖D‖² as shares of their sum, means over the untouched facts, at the checkpoint nearest to `at` edits
    (None: at the end); growth and turning are the two parts of response."""
    seq, sup = _at(found, "untouched", at)
    whole, alone, spills = (seq["shift"] ** 2).mean(), (sup["shift"] ** 2).mean(), sup["spills"].mean()
    response, growth = whole - alone, seq["spills"].mean() - spills
    terms = {"spills": spills, "agreement": alone - spills, "response": response}
    return {name: value / whole for name, value in {**terms, "growth": growth, "turning": response - growth}.items()}


def _at(found: Anatomy, cohort: str, at: int | None = None) -> list[pd.DataFrame]:
    """What is known of each fact at a checkpoint, of the stream and of the superposed one."""
    done = found.shifts.edits_done.unique()
    nearest = max(done) if at is None else min(done, key=lambda n: abs(n - at))
    there = found.shifts[(found.shifts.cohort == cohort) & (found.shifts.edits_done == nearest)].set_index("fact")
    return [there[there.superposed == superposed] for superposed in (False, True)]


def survival(found: Anatomy, bins: int = 12) -> pd.DataFrame:
    """Right answers against shift: a row a cohort, superposed or not, and quantile of the shift."""
    table = found.shifts[found.shifts["shift"] > 0].copy()
    table["bin"] = table.groupby(["cohort", "superposed"])["shift"].transform(
        lambda s: pd.qcut(s, bins, labels=False, duplicates="drop")
    )
    grouped = table.groupby(["cohort", "superposed", "bin"])
    return grouped.agg(shift=("shift", "median"), right=("right", "mean"), n=("right", "size")).reset_index()


def foresight(found: Anatomy) -> dict[str, float]:
    """How well what was known before the first edit foretells what becomes of each edit by the end.

    shift  Spearman's ρ over the edits between the shift of the superposed stream and that of the stream
    loss   AUC: how often, of an edit that is lost and one that is kept, the lost one has the larger foreseen shift (½:
           chance); NaN when all or none are lost

    "by position": the same by an edit's place alone, for the older one has been shifted by more edits.
    """
    seq, sup = _at(found, "edits")
    both = seq.join(sup["shift"].rename("foreseen")).iloc[:-1]  # nothing came after the last one
    age, lost = pd.Series(-both.index.to_numpy(float), both.index), ~both.right
    return {
        "shift": both["foreseen"].corr(both["shift"], method="spearman"),
        "by position": age.corr(both["shift"], method="spearman"),
        "loss": _auc(both.foreseen, lost),
        "loss by position": _auc(age, lost),
    }


def _auc(value: pd.Series, event: pd.Series) -> float:
    """P(value with the event > value without it), ties count half: Mann and Whitney's U / (n·m)."""
    with_it, without = value[event], value[~event]
    if with_it.empty or without.empty:
        return float("nan")
    return float(mannwhitneyu(with_it, without).statistic / (len(with_it) * len(without)))
