"""Independent single edits, weights restored in between: whether one edit is healthy on this model."""

from __future__ import annotations

import random
from itertools import islice

import pandas as pd

from .accuracy import generation_accuracy


def single_edits(model, method, edits, moments, contexts, around, seed: int = 0) -> pd.DataFrame:
    """Each edit alone on the original weights. One row per edit, shares of right answers by free generation:

    edit          the edit prompt gives the new object (0 or 1)
    templates     the other phrasings of the relation give it
    near          facts of other subjects that share a name part or the relation are still right
    same_subject  the subject's other relations are still right
    interference  tr ΔCΔᵀ, summed over the layers

    around: (edit, rng) -> two lists of (prompt, answer), near and same subject.
    """
    rng, rows = random.Random(f"single-{seed}"), []
    for edit in edits:
        near, own = around(edit, rng)
        asked = [*((prompt, edit.target_new) for prompt in (edit.text, *edit.paraphrases)), *near, *own]
        outcome = method.apply(model, [edit], moments=moments, contexts=contexts)
        right = iter(generation_accuracy(model, [p for p, _ in asked], [a for _, a in asked]))
        model.restore()
        target = outcome.targets[0]
        rows.append(
            {
                "method": method.name,
                "layers": "-".join(map(str, method.layers)),
                "edit": float(next(right)),
                "templates": _mean(islice(right, len(edit.paraphrases))),
                "near": _mean(islice(right, len(near))),
                "same_subject": _mean(islice(right, len(own))),
                "probability_last": target.probabilities[-1],
                "steps": target.steps,
                "clamped": target.clamped,
                "interference": interference(model, outcome.deltas, moments),
                "relation": edit.relation,
                "prompt": edit.prompt,
                **{f"s_{i}": s[0].item() for i, s in outcome.s.items()},
            }
        )
    return pd.DataFrame(rows)


def interference(model, deltas: dict, moments) -> float:
    """Σ over edited layers of tr(Δ C Δᵀ) = E‖Δk‖² over the text that C was measured on: how much an edit changes the
    layers' outputs on ordinary text. In squared units of the residual stream; 0 for no change, no upper bound.

    ROME and MEMIT minimise it under their constraints. Source: Meng et al. 2022, appendix A; Meng et al. 2023, eq. 10.
    """
    total = 0.0
    for layer in range(model.n_layers):
        if (delta := deltas.get(model.weight_name(layer))) is not None:
            delta = (delta.T if model.layout.transposed else delta).double().cpu()
            total += ((delta @ moments.tensors[layer].double().cpu()) * delta).sum().item()
    return total


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")
