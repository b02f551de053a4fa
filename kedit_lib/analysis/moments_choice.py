"""What the choice of plain text costs: C, and the updates that are made with it.

    error of C     ‖C − C₀‖ / ‖C₀‖      C₀ on the reference text, Frobenius norms
    error of Δ     ‖Δ − Δ₀‖ / ‖Δ₀‖      for one and the same target z: C has no part in its optimisation
    size of Δ      ‖Δ‖ / ‖Δ₀‖

What two halves of the reference text differ by is the scale for all three.

    python -m kedit_lib.analysis.moments_choice smollm2 --reference wikitext-2.txt --edits counterfact.json \\
        --out figures/data/smollm2.moments_choice.csv
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from torch import Tensor

from ..data.atomic import replacing
from ..editing import Method, method_for
from ..editing.second_moments import SecondMoments
from ..errors import program
from ..models.loading import load_model
from ..streams.edit_sets import load_edits
from ..streams.facts import HELD_OUT, plain_texts, read_texts

METHODS = ("memit", "rome")
TOKENS, EDITS = 60_000, 5  # of each text; edits, each by itself


def choice_cost(
    model, corpora: dict[str, list[str]], edits, methods: list[Method], tokens: int = TOKENS, progress: bool = False
) -> pd.DataFrame:
    """What the second and further texts of `corpora` ({name: documents}) cost against the first, the reference.

    A row a text, quantity ("error of C", "error of Δ", "size of Δ"), method (of Δ) and layer: the median over edits.
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


def halves(texts: list[str]) -> tuple[list[str], list[str]]:
    """Every other document: two samples of one text."""
    return texts[::2], texts[1::2]


@program
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kedit_lib.analysis.moments_choice", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--reference", required=True, help="plain text to compare with: a file or a hub name")
    parser.add_argument("--edits", required=True, help="a file or a hub name of edits")
    parser.add_argument("--n", type=int, default=EDITS, help="how many edits, each by itself")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text")
    parser.add_argument("--out", required=True, help="the table, .csv")
    args = parser.parse_args(arguments)
    model = load_model(args.model)
    edits = load_edits(args.edits, model=model, limit=args.n)
    first, second = halves(read_texts(args.reference))
    own = plain_texts(model, "self")[HELD_OUT:]
    name = Path(args.reference).stem
    corpora = {name: first, f"{name}, other half": second, "written by the model": own}
    methods = [method_for(model, method) for method in METHODS]
    table = choice_cost(model, corpora, edits, methods, args.tokens, progress=sys.stderr.isatty())
    table = table.assign(model=args.model, tokens=args.tokens, edits=args.n)
    with replacing(Path(args.out)) as partial:
        table.to_csv(partial, index=False, float_format="%.4g")
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
