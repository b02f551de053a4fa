"""What faster and not exact targets cost: single MEMIT edits of SmolLM2-135M, each by every setting in turn.

    python bench/shortcuts.py 100             → figures/benchmarks_shortcuts.csv: a row per setting, means of the edits
    python bench/shortcuts.py 48 --plateau    → figures/benchmarks_plateau.csv

Matrix products in bfloat16 (`engine="bfloat16"`), targets that stop once the model says them (`stop="argmax"`), both;
with --plateau targets that stop where the loss hardly falls (`stop="plateau"`), against exact ones.
"""

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd
import torch

import kedit_lib as kedit
from kedit_lib.evaluation.single_edits import single_edits
from kedit_lib.models.llama import multiplies_in_bfloat16

FIGURES = Path(__file__).resolve().parents[1] / "figures"
PLATEAU = {"exact": (None, None), "plateau": (None, "plateau")}
SETTINGS = {"exact": (None, None), "argmax": (None, "argmax")}
if multiplies_in_bfloat16():
    SETTINGS |= {"bfloat16": ("bfloat16", None), "argmax, bfloat16": ("bfloat16", "argmax")}


class Timed:
    """A method that notes the core seconds of its last call and the updates that it made."""

    def __init__(self, method, engine):
        self.method, self.engine = method, engine
        self.name, self.layers = method.name, method.layers

    def apply(self, model, edits, **given):
        begin = time.process_time()
        outcome = self.method.apply(model, edits, engine=self.engine, **given)
        self.seconds, self.deltas = time.process_time() - begin, outcome.deltas
        return outcome


def measure(n: int, settings: dict, name: str, profile: str = "smollm2") -> None:
    bench = kedit.Bench(profile, progress=False)
    found, edits, plain = [], bench.edits(0, n), bench.method("memit")
    given = bench.moments, bench.contexts(plain), bench.facts.around
    methods = {
        setting: Timed(plain if stop is None else kedit.method_for(bench.model, "memit", stop=stop), engine)
        for setting, (engine, stop) in settings.items()
    }
    for method in methods.values():
        method.apply(bench.model, edits[:1], moments=given[0], contexts=given[1])  # what only the first call does
        bench.model.restore()
    for i, edit in enumerate(edits):
        for setting, method in methods.items():
            (row,) = single_edits(bench.model, method, [edit], *given, seed=i, match=bench.facts.match).to_dict(
                "records"
            )
            exact = methods["exact"].deltas
            far = max(float((method.deltas[k] - d).norm() / d.norm()) for k, d in exact.items())
            found.append({"setting": setting, "edits": i, "core s": method.seconds, "update differs by": far} | row)
        if not (i + 1) % 10 or i + 1 == n:  # so that it can be stopped
            pd.DataFrame(found).to_csv(bench.results / f"{name}.csv", index=False)
            summary(found).to_csv(FIGURES / f"benchmarks_{name}.csv")
            print(summary(found).to_string(), flush=True)


def summary(found: list[dict]) -> pd.DataFrame:
    numbers = ["edit", "templates", "near", "same_subject", "probability_last", "steps", "core s", "update differs by"]
    table = pd.DataFrame(found).groupby("setting", sort=False)
    means = table[numbers].mean().rename(columns={"templates": "paraphrases", "near": "locality"})
    means["times faster"] = means.loc["exact", "core s"] / means["core s"]
    return means.assign(edits=table.size()).round(4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("edits", type=int, nargs="?", default=100)
    parser.add_argument("--plateau", action="store_true", help="the plateau stop alone, beside exact edits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = (PLATEAU, "plateau") if args.plateau else (SETTINGS, "shortcuts")
    measure(args.edits, *chosen)
