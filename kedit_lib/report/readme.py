"""Generated tables in the pages of this repository, each between two marker lines. `kedit readme` writes the README's
table of claims, bench/docs_tables.py those of docs/."""

import re

import pandas as pd

from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError
from . import claims


def claims_table() -> pd.DataFrame:
    """One row per claim, one column for each model and setting, its notebook as a link."""
    table = claims.shown(claims.verdicts(claims.read()))
    names = {path.name[:2]: path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    return table.assign(notebook=table.notebook.map(lambda n: f"[{n}](notebooks/executed/{names[n]})"))


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [table.columns, *table.itertuples(index=False)]]
    return "\n".join([lines[0], "|" + "---|" * len(table.columns), *lines[1:]])


def between(name: str) -> re.Pattern:
    """What stands between the two marker lines of a table."""
    return re.compile(rf"(?<=<!-- {name}: written by a program -->\n).*(?=\n<!-- end of {name} -->)", re.DOTALL)


def rewrite(page: str, tables: dict[str, pd.DataFrame]) -> None:
    """Write the tables into a page. KeditError when it has no marker lines for one of them."""
    path = REPOSITORY / page
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        text, places = between(name).subn(lambda _, table=table: markdown(table), text)
        if not places:
            raise KeditError(f"{page}: has no marker lines of the table {name!r}; put them in")
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
