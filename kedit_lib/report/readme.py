"""The README's table of claims and the tables of docs/speed.md and docs/machines.md, written from figures/ by
`kedit readme`, each between two marker lines."""

import re
from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError, first_line
from . import claims

PLACES = {
    "claims": "README.md",
    "speed": "docs/speed.md",
    "shortcuts": "docs/speed.md",
    "gpu": "docs/machines.md",
    "paper": "docs/machines.md",
}
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


def tables(figures: Path) -> dict[str, str]:
    """{name: Markdown} of every table.

    claims      one row per claim, one column for each model and setting
    speed       seconds of one core for an edit, and how many times as fast as the plain path, measured in one process;
                the least that its arithmetic and its memory traffic take on the same core
    shortcuts   what faster and not exact targets cost, of single edits
    gpu         single edits on a GPU, with and without CUDA graphs
    paper       estimated hours of 1,000 edits in three orders on models that were not run
    """
    judged = claims.shown(claims.verdicts(claims.read(figures / "claims.csv")))
    names = {p.name[:2]: p.name for p in (REPOSITORY / "notebooks").glob("*.ipynb")}
    judged["notebook"] = judged.notebook.map(lambda n: f"[{n}](notebooks/executed/{names[n]})")

    files = {"SmolLM2-135M": "benchmarks_smollm2.csv", "lab": "benchmarks.csv"}
    speed = pd.concat([pd.read_csv(figures / name).assign(model=model) for model, name in files.items()])
    speed = speed[~speed.path.str.contains("float64")]
    speed = pd.DataFrame({name: speed[column].map(form.format) for column, (name, form) in RATES.items()})

    paper = pd.read_csv(figures / "benchmarks_on_paper.csv").groupby(["model", "method", "edits at once"]).first()
    hours = paper[["hours on one core", "hours on 1 card", "hours on 8 cards"]].map(lambda v: f"{float(f'{v:.2g}'):,g}")
    return {
        "claims": _markdown(judged),
        "speed": _markdown(speed.replace("nan", "")),
        "shortcuts": _markdown(pd.read_csv(figures / "benchmarks_shortcuts.csv").round(3)),
        "gpu": _markdown(
            pd.concat(map(pd.read_csv, sorted(figures.glob("gpu.*.replay.csv")))).astype(object).fillna("")
        ),
        "paper": _markdown(
            hours.assign(**{"cards an order": paper.cards.astype(int)}).replace("nan", "").reset_index()
        ),
    }


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [table.columns, *table.itertuples(index=False)]]
    return "\n".join([lines[0], "|" + "---|" * len(table.columns), *lines[1:]])


def between(name: str) -> re.Pattern:
    """What stands between the two marker lines of a table."""
    return re.compile(rf"(?<=<!-- {name}: written by kedit readme -->\n).*(?=\n<!-- end of {name} -->)", re.DOTALL)


def rewrite() -> None:
    """Write the tables. KeditError when figures/ lacks what they are made of, or a page the marker lines."""
    try:
        found = tables(REPOSITORY / "figures")
    except (OSError, ValueError, KeyError) as error:
        raise KeditError(f"figures: cannot be read ({first_line(error)}); run make reproduce and make bench") from error
    texts = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in PLACES.values()}
    for name, page in PLACES.items():
        texts[page], places = between(name).subn(lambda _, name=name: found[name], texts[page])
        if not places:
            raise KeditError(f"{page}: has no marker lines of the table {name!r}; put them in")
    for page, text in texts.items():
        with replacing(REPOSITORY / page) as partial:
            partial.write_text(text, encoding="utf-8")
