"""The tables of README.md, docs/speed.md and docs/machines.md, written from figures/, each between two marker lines:
`make tables`."""

import re
from pathlib import Path

import pandas as pd

from kedit_lib.data.atomic import replacing
from kedit_lib.report import claims as judged

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
RATES = {  # {a column of figures/benchmarks*.csv: its name in docs/speed.md, and its format}
    "model": ("one core", "{}"),
    "path": ("edit", "{}"),
    "s/edit": ("s an edit", "{:.2g}"),
    "times faster": ("times the plain path", "{:.2g}"),
    "bar": ("bar", "{:.0f}"),
    "share: steps": ("in its steps", "{:.0%}"),
    "least s/edit (roofline)": ("least s", "{:.2g}"),
    "largest difference": ("updates differ by", "{:.2g}"),
    "peak MB": ("peak MB", "{:.0f}"),
}


def claims() -> pd.DataFrame:
    """One row per claim, one column for each model and setting, its notebook as a link."""
    table = judged.shown(judged.verdicts(judged.read()))
    names = {path.name[:2]: path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    return table.assign(notebook=table.notebook.map(lambda n: f"[{n}](notebooks/executed/{names[n]})"))


def speed() -> pd.DataFrame:
    """Seconds of one core for an edit, and how many times as fast as the plain path, measured in one process; the least
    that its arithmetic and its memory traffic take on the same core."""
    files = {"SmolLM2-135M": "benchmarks_smollm2.csv", "lab": "benchmarks.csv"}
    table = pd.concat([pd.read_csv(FIGURES / name).assign(model=model) for model, name in files.items()])
    table = table[~table.path.str.contains("float64")]
    table = pd.DataFrame({name: table[column].map(form.format) for column, (name, form) in RATES.items()})
    return table.replace("nan", "")


def shortcuts() -> pd.DataFrame:
    """What faster and not exact targets cost, of single edits; seconds stand in `speed` alone."""
    return pd.read_csv(FIGURES / "benchmarks_shortcuts.csv").drop(columns=["core s", "edits"]).round(3)


def gpu() -> pd.DataFrame:
    """Single edits on a GPU, with and without CUDA graphs."""
    return pd.concat(map(pd.read_csv, sorted(FIGURES.glob("gpu.*.replay.csv")))).astype(object).fillna("")


def paper() -> pd.DataFrame:
    """Estimated seconds of an edit and hours of 1,000 in three orders on models that were not run; weights in bfloat16,
    as a card has them."""
    table = pd.read_csv(FIGURES / "benchmarks_on_paper.csv")
    index, on_core = ["model", "method", "edits at once"], table.machine == "one CPU core"
    core, card = (table[of].set_index(index) for of in (on_core, ~on_core))
    numbers = {"s/edit, core": core["s/edit"], "hours, core": core["hours on one core"], "s/edit, card": card["s/edit"]}
    numbers |= {f"hours, {name}": card[f"hours on {name}"] for name in ("1 card", "8 cards")}
    shown = pd.DataFrame(numbers).map(lambda v: f"{float(f'{v:.2g}'):,g}")
    return shown.assign(**{"GiB": card["weights, GiB"].map("{:.0f}".format)}).replace("nan", "").reset_index()


PAGES = {"README.md": (claims,), "docs/speed.md": (speed, shortcuts), "docs/machines.md": (gpu, paper)}


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [table.columns, *table.itertuples(index=False)]]
    return "\n".join([lines[0], "|" + "---|" * len(table.columns), *lines[1:]])


def between(name: str) -> re.Pattern:
    """What stands between the two marker lines of a table."""
    return re.compile(rf"(?<=<!-- {name}: written by make tables -->\n).*(?=\n<!-- end of {name} -->)", re.DOTALL)


def written(page: str) -> str:
    """The text of a page with its tables as figures/ has them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for table in PAGES[page]:
        made = markdown(table())
        text, places = between(table.__name__).subn(lambda _, made=made: made, text)
        if not places:
            raise SystemExit(f"{page}: has no marker lines of the table {table.__name__!r}; put them in")
    return text


if __name__ == "__main__":
    for page, text in {page: written(page) for page in PAGES}.items():
        with replacing(ROOT / page) as partial:
            partial.write_text(text, encoding="utf-8")
