"""Predictions, written before the runs that they are about, and what came of them.

In params/predictions.yaml `where` and `holds` are pandas expressions over `runs.outcomes`; a point that was not reached
is infinite. `against`: the row of another stream, of the same model, setting and order, stands beside each; its columns
end in _other. `table`: they speak of a table that a notebook keeps in figures/ instead, such as "11_foretold".
`verdict`: what came of an experiment that is no longer shown.
"""

import pandas as pd

from ..data.config import REPOSITORY, figures_folder, parse

PATH = REPOSITORY / "params" / "predictions.yaml"


def scored(found: pd.DataFrame, notebook: str | None = None) -> pd.DataFrame:
    """One row per prediction (of one notebook: "02"; None: of all): name, notebook, prediction, held, runs, verdict. It
    is about `runs` streams and orders and holds in `held` of them; verdict: held (in all), failed (in none), "in 1 of
    3", or not testable (there is no such run). found: `runs.outcomes` of every stream there is."""
    found = found.assign(**{n: found[n].astype(float).fillna(float("inf")) for n in ("N_optimisation", "N_model")})
    rows = []
    for one in parse(PATH.read_text(encoding="utf-8"), PATH.name):
        if notebook in (None, one["notebook"]):
            asked = _asked(one, found)
            n, held = len(asked), int(asked.eval(one["holds"], engine="python").sum()) if len(asked) else 0
            came = "not testable" if not n else "held" if held == n else "failed" if not held else f"in {held} of {n}"
            rows.append((one["name"], one["notebook"], one["says"], held, n, one.get("verdict") or came))
    return pd.DataFrame(rows, columns=["name", "notebook", "prediction", "held", "runs", "verdict"])


def _asked(one: dict, found: pd.DataFrame) -> pd.DataFrame:
    table = found
    if "table" in one:
        path = figures_folder() / f"{one['table']}.csv"
        table = pd.read_csv(path) if path.exists() else None
    if "verdict" in one or table is None:
        return found[:0]
    if "against" in one:
        theirs = found[found.stream == one["against"]].drop(columns="stream")
        table = found.merge(theirs, on=["model", "setting", "order"], suffixes=("", "_other"))
    return table.query(one["where"], engine="python")
