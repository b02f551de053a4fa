"""The README's table of claims and the speeds in docs/speed.md, written from figures/ by `kedit readme`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError, first_line
from . import claims

CLAIMS = "<!-- claims: written by kedit readme -->", "<!-- end of claims -->"
SPEED = "<!-- speed: written by kedit readme -->", "<!-- end of speed -->"
RATES = {"path": "one core, lab model", "s/edit": "s an edit", "times faster": "times the plain path"}


def claims_table(figures: Path) -> str:
    """One row per claim, one column for each model and setting."""
    table = claims.shown(claims.verdicts(claims.read(figures / "claims.csv")))
    names = {p.name[:2]: p.name for p in (REPOSITORY / "notebooks").glob("*.ipynb")}
    table["notebook"] = table.notebook.map(lambda n: f"[{n}](notebooks/executed/{names[n]})")
    return _markdown(table)


def speed_table(figures: Path) -> str:
    """Seconds of one core for an edit, and how many times as fast as the plain path, measured in one process."""
    table = pd.read_csv(figures / "benchmarks.csv")
    table = table[~table.path.str.contains("float64")][list(RATES)].rename(columns=RATES)
    return _markdown(table.round({"s an edit": 3, "times the plain path": 1}))


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
    """Write both tables. KeditError when figures/ lacks what they are made of."""
    figures = REPOSITORY / "figures"
    try:
        tables = claims_table(figures), speed_table(figures)
    except (OSError, ValueError, KeyError) as error:
        raise KeditError(f"figures: cannot be read ({first_line(error)}); run make reproduce and make bench") from error
    put(REPOSITORY / "README.md", CLAIMS, tables[0])
    put(REPOSITORY / "docs" / "speed.md", SPEED, tables[1])
