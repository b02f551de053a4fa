"""Tables about a lab model, for its notebook."""

from __future__ import annotations

import json

import pandas as pd

from ..editing import method_for
from ..lab import world_of
from ..lab.train import recall

MEASURES = ["edit", "templates", "near", "same_subject"]
BARS = {"edit": 0.95, "templates": 0.80, "near": 0.98}
LLAMA_2_7B = {
    "layers": 32,
    "d_model": 4096,
    "d_ff": 11008,
    "vocabulary": 32000,
    "parameters": 6_738_415_616,
    "λ": 15000,
}
SAMPLE = 60  # people whose facts are asked for in the notebook


def provenance(model) -> pd.Series:
    """How the model came about, from the file beside its weights."""
    p = json.loads((model.folder / "provenance.json").read_text())
    r = p["recipe"]
    return pd.Series(
        {
            "people": r["n_people"],
            "layers × d_model × d_ff": f"{r['n_layers']} × {r['d_model']} × {r['d_ff']}",
            "parameters": f"{p['parameters']:,}",
            "tokens seen in training": f"{p['tokens_seen']:,}",
            "recall, worst phrasing": p["recall_min"],
            "seed": r["seed"],
            "sha256 of the weights": p["sha256"][:16] + "…",
        },
        name=r["name"],
    )


def recall_table(model) -> pd.DataFrame:
    """Recall now, of a sample of people: relations by phrasing."""
    world = world_of(model)
    step = max(1, len(world.people) // SAMPLE)
    table = recall(model.hf, model.tokenizer, world, people=world.people[::step])
    return table.pivot(index="relation", columns="template", values="recall").rename(columns=lambda t: f"phrasing {t}")


def dimensions(model) -> pd.DataFrame:
    """The lab model beside Llama-2-7B."""
    weight = method_for(model, "memit").mom2_update_weight
    n = sum(p.numel() for p in model.hf.parameters())
    own = [model.n_layers, model.d_model, model.d_ff, model.hf.config.vocab_size, n, weight]
    table = pd.DataFrame({model.name: own, "Llama-2-7B": LLAMA_2_7B.values()}, index=LLAMA_2_7B.keys())
    table.loc["λ/d_ff"] = table.loc["λ"] / table.loc["d_ff"]
    table.loc["450 edits / d_ff"] = [450 / 11008, 450 / 11008]
    table.loc["edits at the same N/d_ff"] = [450 * model.d_ff / 11008, 450]
    return table.map(lambda v: f"{v:,.4g}")


def layer_table(model) -> pd.DataFrame:
    """The sweep that chose the layers, and which were chosen."""
    table = pd.read_csv(model.folder / "layers.csv", dtype={"layers": str})
    chosen = {m.upper(): "-".join(map(str, method_for(model, m).layers)) for m in ("memit", "pmet", "rome")}
    table["chosen"] = ["←" if chosen[m] == layers else "" for m, layers in zip(table.method, table.layers, strict=True)]
    return table[["method", "layers", *MEASURES, "chosen"]].round(3)


def scale_table(model) -> pd.DataFrame:
    """The sweep that chose the scale of the residual stream, the chosen one marked."""
    table = pd.read_csv(model.folder / "scales.csv")
    norm = json.loads((model.folder / "provenance.json").read_text())["recipe"]["stream_norm"]
    table["chosen"] = ["←" if n == norm else "" for n in table.norm]
    return table[["method", "norm", *MEASURES, "probability_last", "chosen"]].sort_values(["method", "norm"]).round(3)


def single_summary(singles: pd.DataFrame) -> pd.DataFrame:
    """Means over independent edits with their bars, and the interval of the first (Wilson, 95 %)."""
    table = singles.groupby("method")[MEASURES].mean()
    table["n"] = singles.groupby("method").size()
    table["edit, 95 %"] = [_wilson(p, n) for p, n in zip(table.edit, table.n, strict=True)]
    table["bars met"] = (table[list(BARS)] >= pd.Series(BARS)).all(axis=1)
    return table.round(3)


def written_table(singles: pd.DataFrame, method) -> pd.DataFrame:
    """Median s and written fraction for each edited layer, at the published λ/d_ff, a tenth and ten times of it."""
    s = singles[singles.method == "MEMIT"]
    rows = []
    for layer in method.layers:
        middle = s[f"s_{layer}"].median()
        row = {"layer": layer, "median s": middle}
        for scale in (0.1, 1, 10):
            row[f"written, λ × {scale:g}"] = middle / (scale * method.mom2_update_weight + middle)
        rows.append(row)
    return pd.DataFrame(rows).set_index("layer").round(3)


def _wilson(p: float, n: int, z: float = 1.96) -> str:
    """95 % interval of a share (Wilson 1927)."""
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return f"{middle - half:.2f}–{middle + half:.2f}"
