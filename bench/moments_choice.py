"""What the choice of plain text costs: C, and the updates that are made with it.

    error of C     ‖C − C₀‖ / ‖C₀‖      C₀ on the reference text, Frobenius norms
    error of Δ     ‖Δ − Δ₀‖ / ‖Δ₀‖      for one and the same target z: C has no part in its optimisation
    size of Δ      ‖Δ‖ / ‖Δ₀‖

What two halves of the reference text differ by is the scale for all three.

    python bench/moments_choice.py wikitext-2.txt       → figures/benchmarks_texts.csv (half an hour of one core)

There also what a sequence has with either text: MEMIT as printed on SmolLM2, 60 edits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from kedit_lib.editing import Method, method_for
from kedit_lib.editing.second_moments import SecondMoments
from kedit_lib.streams.bench import Bench
from kedit_lib.streams.facts import HELD_OUT, plain_texts, read_texts

METHODS = ("memit", "rome")
TOKENS = 60_000  # of each text


def choice_cost(
    model, corpora: dict[str, list[str]], edits, methods: list[Method], tokens: int = TOKENS, progress: bool = False
) -> pd.DataFrame:
    """What the second and further texts of `corpora` ({name: documents}) cost against the first, the reference.

    One row per text, quantity ("error of C", "error of Δ", "size of Δ"), method (of Δ) and layer: medians over edits.
    """
    layers = sorted({layer for method in methods for layer in method.layers})
    found = {
        name: SecondMoments.estimate(model, texts, layers, tokens=tokens, progress=progress)
        for name, texts in corpora.items()
    }
    reference, *others = found
    rows = [
        (name, "error of C", None, layer, _error(found[name].tensors[layer], found[reference].tensors[layer]))
        for name in others
        for layer in layers
    ]
    for method in methods:
        contexts = method.contexts(model)
        for edit in edits:
            outcome = method.apply(model, [edit], found[reference], contexts)
            model.restore()
            for name in others:
                z = [target.z for target in outcome.targets]
                other = method.apply(model, [edit], found[name], contexts, targets=z)
                model.restore()
                for layer in method.layers:
                    one, two = (o.deltas[model.weight_name(layer)] for o in (other, outcome))
                    rows.append((name, "error of Δ", method.name, layer, _error(one, two)))
                    rows.append((name, "size of Δ", method.name, layer, float(one.norm() / two.norm())))
    table = pd.DataFrame(rows, columns=["text", "quantity", "method", "layer", "value"])
    keys = ["text", "quantity", "method", "layer"]
    return table.groupby(keys, dropna=False, sort=False).value.median().reset_index().assign(reference=reference)


def _error(one: Tensor, reference: Tensor) -> float:
    return float((one - reference).norm() / reference.norm())


def own_text_cost(model, reference: str, edits, tokens: int = TOKENS) -> pd.DataFrame:
    """`choice_cost` of text that the model writes itself against half of a reference text (a file or a hub name); the
    other half of it gives the scale."""
    texts = read_texts(reference)
    name = Path(reference).stem
    own = plain_texts(model, "self")[HELD_OUT:]
    corpora = {name: texts[::2], f"{name}, other half": texts[1::2], "written by the model": own}
    table = choice_cost(model, corpora, edits, [method_for(model, method) for method in METHODS], tokens)
    return table.assign(model=model.name, tokens=tokens, edits=len(edits))


def sequence_cost(reference: str, profile: str = "smollm2-60") -> pd.DataFrame:
    """What MEMIT's first sequence keeps with C on a reference text, and in the committed run with the model's own."""
    runs = {
        Path(reference).stem: Bench(profile, texts=str(Path(reference).resolve())).run("memit", 0),
        "written by the model": Bench(profile).committed("memit", 0),
    }
    rows = []
    for text, run in runs.items():
        for cohort, what in {"edits": "edits", "untouched": "unrelated facts"}.items():
            for edits, right in run.curve("accuracy", cohort).loc[[20, 40, 60]].items():
                rows.append({"text": text, "quantity": f"{what} right after {edits} edits", "method": "MEMIT"})
                rows[-1] |= {"min": right, "max": right, "edits": edits}
    return pd.DataFrame(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    bench = Bench("smollm2-60", progress=False)
    apart = own_text_cost(bench.model, sys.argv[1], bench.edits(0)[:10])
    ranges = apart.groupby(["text", "quantity", "method"], dropna=False, sort=False).value.agg(["min", "max"])
    table = pd.concat([ranges.reset_index().assign(edits=10), sequence_cost(sys.argv[1])])
    table.to_csv(Path(__file__).parents[1] / "figures" / "benchmarks_texts.csv", index=False, float_format="%.4g")
