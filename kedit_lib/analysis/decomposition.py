"""What moves a fact that no edit touches: side effects of single edits, how far they agree, and what edits do to each
other.

h(W) [d_model] is the state of such a fact after the last edited layer, at its subject's last token; Δ⁰_j is the update
of edit j made alone, on the unedited weights W₀, and s_j = h(W₀ + Δ⁰_j) − h(W₀) its side effect. The shift of the edit
sequence, D = h(W₀ + Σ_j Δ_j) − h(W₀), is then

    ‖D‖²  =  Σ_j ‖s_j‖²                     side_effects  each edit's own, as if no two pointed the same way
          +  ‖Σ_j s_j‖² − Σ_j ‖s_j‖²        alignment     they point the same way (negative: against each other)
          +  ‖D⁰‖² − ‖Σ_j s_j‖²             layers        D⁰ = h(W₀ + Σ_j Δ⁰_j) − h(W₀): an update meets the keys that
                                                          the others moved in the layers below; 0 for a single layer
          +  ‖D‖² − ‖D⁰‖²                   response      edits differ from Δ⁰_j because of the edits before them

The last two are the interaction of the edits. Everything is relative to ‖h(W₀)‖².
"""

from __future__ import annotations

import warnings

import pandas as pd
import torch
from tqdm.auto import tqdm

from ..editing.compute_k import outputs_at, prompts_of
from ..editing.compute_z import Doubtful
from ..errors import KeditError
from ..evaluation import generation_accuracy
from ..models.hooks import no_bar
from ..streams.bench import Bench
from . import measured

WHAT = "decomposition.parquet"
STREAMS = ("memit", "memit-rho2", "memit-layers-steps")  # that a sweep decomposes
TERMS = ("side_effects", "alignment", "layers", "response")
CHECKPOINTS = 9
EDITS, FACTS = 100, 100  # of each stream in a sweep


def decompose(model, method, edits, facts, moments=None, contexts=None, match="exact", progress=True) -> pd.DataFrame:
    """Make `edits` one after another, and beside it each alone, and measure what that does to `facts`.

    facts   (prompt with {}, subject, answer): no edit touches them, and the unedited model knows them
    match   as in `generation_accuracy`

    One row per checkpoint and fact: edits (made so far), fact, the four TERMS (their sum is the squared shift), right
    (whether the fact is still said), right_sum (whether it is under W₀ + Σ Δ⁰_j). Afterwards the weights are those at
    entry. Every edit is made twice; the facts are read once an edit and asked twice at each of the CHECKPOINTS.
    KeditError without edits or facts.
    """
    if not edits or not facts:
        raise KeditError("decompose: needs at least one edit and one fact that no edit touches; give both")
    prompts = prompts_of(model, facts)
    asked, answers = [p.replace("{}", s) for p, s, _ in facts], [answer for *_, answer in facts]
    above, given = model.layers[max(method.layers)], {"moments": moments, "contexts": contexts}
    history, step = method.new_history(model, moments), -(-len(edits) // CHECKPOINTS)
    total, squares, aligned, rows = {}, 0, 0, []  # Σ Δ⁰_j, Σ ‖s_j‖² [n], Σ s_j [n, d_model]

    with model.temporarily(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Doubtful)  # a broken model says anything
        unedited = outputs_at(model, prompts, above).double()
        size = unedited.square().sum(1)

        def shift() -> torch.Tensor:
            return outputs_at(model, prompts, above).double() - unedited

        def look() -> tuple[torch.Tensor, list[bool]]:
            return shift().square().sum(1), generation_accuracy(model, asked, answers, match)

        for j, edit in enumerate(tqdm(edits, desc="decomposition", disable=no_bar(progress)), 1):
            with model.temporarily():
                for name, delta in method.apply(model, [edit], **given).deltas.items():
                    total[name] = total.get(name, 0) + delta
                side_effect = shift()
            squares, aligned = squares + side_effect.square().sum(1), aligned + side_effect
            method.apply(model, [edit], **given, **({} if history is None else {"history": history}))
            if j % step and j < len(edits):
                continue
            whole, says = look()
            with model.temporarily():
                model.add(total)
                summed, says_sum = look()
            straight = aligned.square().sum(1)
            terms = torch.stack([squares, straight - squares, summed - straight, whole - summed], 1) / size[:, None]
            table = pd.DataFrame(terms.cpu().numpy(), columns=TERMS)
            rows.append(table.assign(edits=j, fact=range(len(facts)), right=says, right_sum=says_sum))
    return pd.concat(rows, ignore_index=True)[["edits", "fact", *TERMS, "right", "right_sum"]]


def decomposition(bench: Bench, name: str, order: int = 0, edits: int = EDITS) -> pd.DataFrame | None:
    """`measure` of a stream: the committed table, whatever its size, or one from results/. A live order that is in
    neither is measured; another one is None."""
    return measured.found(bench, name, order, WHAT, lambda: measure(bench, name, order, edits))


def measure(bench: Bench, name: str, order: int = 0, edits: int = EDITS, facts: int = FACTS) -> pd.DataFrame:
    """`decompose` the first `edits` of a named stream; KeditError for a stream of batches or a pruned one."""
    method, every = bench.method(name), bench.edits(order)
    if bench.streams[name].batch_size != 1 or bench.streams[name].pruned:
        raise KeditError(f"decomposition of {name}: is not a stream of single edits; take one, such as memit")
    strangers, given = bench.facts.strangers(every, facts, order), bench.inputs(method, order)
    return decompose(
        bench.model, method, every[:edits], strangers, **given, match=bench.facts.match, progress=bench.progress
    )


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Each of TERMS as a share of the mean squared shift, one row per checkpoint of `decompose`; with the shift and the
    shares `right` and `right_sum`."""
    mean = table.groupby("edits")[[*TERMS, "right", "right_sum"]].mean()
    shift = mean[list(TERMS)].sum(axis=1)
    return mean.assign(shift=shift, **{term: mean[term] / shift for term in TERMS}).reset_index()
