"""The README's table of claims and the speeds in docs/speed.md, written from figures/ by `kedit readme`."""

from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError, first_line
from . import claims

CLAIMS = "<!-- claims: written by kedit readme -->", "<!-- end of claims -->"
SPEED = "<!-- speed: written by kedit readme -->", "<!-- end of speed -->"
SHORTCUTS = "<!-- shortcuts: written by kedit readme -->", "<!-- end of shortcuts -->"
PAPER = "<!-- paper: written by kedit readme -->", "<!-- end of paper -->"
RATES = {
    "model": "one core",
    "path": "edit",
    "s/edit": "s an edit",
    "times faster": "times the plain path",
    "bar": "bar",
    "least s/edit (roofline)": "least s",
    "largest difference": "updates differ by",
    "peak MB": "peak MB",
}


def claims_table(figures: Path) -> str:
    """One row per claim, one column for each model and setting."""
    table = claims.shown(claims.verdicts(claims.read(figures / "claims.csv")))
    names = {p.name[:2]: p.name for p in (REPOSITORY / "notebooks").glob("*.ipynb")}
    table["notebook"] = table.notebook.map(lambda n: f"[{n}](notebooks/executed/{names[n]})")
    return _markdown(table)


def speed_table(figures: Path) -> str:
    """Seconds of one core for an edit, and how many times as fast as the plain path, measured in one process; the least
    that its arithmetic and its memory traffic take on the same core."""
    files = {"SmolLM2-135M": "benchmarks_smollm2.csv", "lab": "benchmarks.csv"}
    table = pd.concat([pd.read_csv(figures / name).assign(model=model) for model, name in files.items()])
    table = table[~table.path.str.contains("float64")][list(RATES)].rename(columns=RATES)
    whole = table[["bar", "peak MB"]].map("{:.0f}".format)
    short = table[["s an edit", "times the plain path", "least s", "updates differ by"]].map("{:.2g}".format)
    return _markdown(table.assign(**whole, **short).replace("nan", ""))


def shortcuts_table(figures: Path) -> str:
    """What faster and not exact targets cost, of single edits."""
    return _markdown(pd.read_csv(figures / "benchmarks_shortcuts.csv").round(3))


def paper_table(figures: Path) -> str:
    """Reckoned hours of 1,000 edits in three orders on models that were not run."""
    table = pd.read_csv(figures / "benchmarks_on_paper.csv").groupby(["model", "method", "edits at once"]).first()
    hours = table[["hours on one core", "hours on 1 card", "hours on 8 cards"]].map(lambda v: f"{float(f'{v:.2g}'):,g}")
    return _markdown(hours.assign(**{"cards an order": table.cards.astype(int)}).replace("nan", "").reset_index())


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def put(path: Path, markers: tuple[str, str], text: str) -> None:
    """`text` between the two marker lines of a file. KeditError when they are not there."""
    old = path.read_text(encoding="utf-8")
    before, found, rest = old.partition(markers[0])
    _, closed, after = rest.partition(markers[1])
    if not (found and closed):
        raise KeditError(f"{path.name}: has no lines {markers[0]!r} and {markers[1]!r}; put them in")
    with replacing(path) as partial:
        partial.write_text(f"{before}{markers[0]}\n{text}\n{markers[1]}{after}", encoding="utf-8")


def rewrite() -> None:
    """Write the tables. KeditError when figures/ lacks what they are made of."""
    figures, docs = REPOSITORY / "figures", REPOSITORY / "docs"
    places = {
        CLAIMS: (REPOSITORY / "README.md", claims_table),
        SPEED: (docs / "speed.md", speed_table),
        SHORTCUTS: (docs / "speed.md", shortcuts_table),
        PAPER: (docs / "machines.md", paper_table),
    }
    try:
        tables = [(path, markers, table(figures)) for markers, (path, table) in places.items()]
    except (OSError, ValueError, KeyError) as error:
        raise KeditError(f"figures: cannot be read ({first_line(error)}); run make reproduce and make bench") from error
    for path, markers, table in tables:
        put(path, markers, table)
