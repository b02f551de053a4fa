"""The tables of docs/speed.md and docs/machines.md, written from figures/ (`make bench` and `make gpu` end with it)."""

from pathlib import Path

import pandas as pd

from kedit_lib.report.readme import rewrite

FIGURES = Path(__file__).resolve().parents[1] / "figures"
RATES = {  # {a column of figures/benchmarks*.csv: its name in docs/speed.md, and its format}
    "model": ("one core", "{}"),
    "path": ("edit", "{}"),
    "s/edit": ("s an edit", "{:.2g}"),
    "times faster": ("times the plain path", "{:.2g}"),
    "bar": ("bar", "{:.0f}"),
    "least s/edit (roofline)": ("least s", "{:.2g}"),
    "largest difference": ("updates differ by", "{:.2g}"),
    "peak MB": ("peak MB", "{:.0f}"),
}


def speed() -> pd.DataFrame:
    """Seconds of one core for an edit, and how many times as fast as the plain path, measured in one process; the least
    that its arithmetic and its memory traffic take on the same core."""
    files = {"SmolLM2-135M": "benchmarks_smollm2.csv", "lab": "benchmarks.csv"}
    table = pd.concat([pd.read_csv(FIGURES / name).assign(model=model) for model, name in files.items()])
    table = table[~table.path.str.contains("float64")]
    table = pd.DataFrame({name: table[column].map(form.format) for column, (name, form) in RATES.items()})
    return table.replace("nan", "")


def shortcuts() -> pd.DataFrame:
    """What faster and not exact targets cost, of single edits."""
    return pd.read_csv(FIGURES / "benchmarks_shortcuts.csv").round(3)


def gpu() -> pd.DataFrame:
    """Single edits on a GPU, with and without CUDA graphs."""
    return pd.concat(map(pd.read_csv, sorted(FIGURES.glob("gpu.*.replay.csv")))).astype(object).fillna("")


def paper() -> pd.DataFrame:
    """Estimated hours of 1,000 edits in three orders on models that were not run."""
    table = pd.read_csv(FIGURES / "benchmarks_on_paper.csv").groupby(["model", "method", "edits at once"]).first()
    hours = table[["hours on one core", "hours on 1 card", "hours on 8 cards"]].map(lambda v: f"{float(f'{v:.2g}'):,g}")
    return hours.assign(**{"cards an order": table.cards.astype(int)}).replace("nan", "").reset_index()


PAGES = {"docs/speed.md": (speed, shortcuts), "docs/machines.md": (gpu, paper)}

if __name__ == "__main__":
    for page, tables in PAGES.items():
        rewrite(page, {table.__name__: table() for table in tables})
