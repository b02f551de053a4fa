"""How long the matrix products of an edit's steps take alone, on the shapes and the weights that the engine has, in its
order: no engine on this core, with torch's products, is more times as fast as the plain path than that is slower.

    PYTHONPATH=tests python bench/products.py        # SmolLM2 → figures/benchmarks_products.csv
"""

from unittest.mock import patch

import pandas as pd
import torch
from roofline import timed
from speed import FIGURES, Paths

import kedit_lib as kedit
from kedit_lib.models import llama

METHODS, EDITS = ("memit", "pmet"), 4


def products_of(paths: Paths, edits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(x, W) of every product in the layers that are written out, x random, one tensor for each shape."""
    found, random, times = [], {}, llama.times

    def noted(x, weight):
        found.append((random.setdefault(x.shape, torch.randn(x.shape)), weight))
        return times(x, weight)

    with patch.object(llama, "times", noted), patch.object(llama, "plus_times", lambda x, y, w: x.add_(noted(y, w))):
        paths.ours(edits)
    return found


def row(bench, name: str) -> dict:
    """Seconds an edit: by the library, by the plain path, and of the products, in turn."""
    paths, rows = Paths(bench.model, bench.method(name), bench.moments, bench.contexts(bench.method(name))), []
    for edit in bench.edits(0, EDITS + 1):
        found = products_of(paths, [edit])
        alone = timed(lambda found=found: [llama.times(x, w) for x, w in found], bench.model.device)[0]
        rows.append({"s": paths.ours([edit])[0], "products s": alone, "plain s": paths.plain([edit])[0]})
    mean = pd.DataFrame(rows[1:]).mean()
    return {
        "path": name,
        **mean,
        "times faster": mean["plain s"] / mean["s"],
        "most": mean["plain s"] / mean["products s"],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    smollm2 = kedit.Bench("smollm2", progress=False)
    table = pd.DataFrame([row(smollm2, name) for name in METHODS]).round(3)
    table.to_csv(FIGURES / "benchmarks_products.csv", index=False)
    print(table.to_string(index=False))
