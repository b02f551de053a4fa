"""The README's table of claims, written from the tables that the default run left in figures/.

`python -m kedit_lib.readme` rewrites the block between the markers; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .params import REPOSITORY

BEGIN, END = "<!-- claims: written by python -m kedit_lib.readme -->", "<!-- end of claims -->"


def claims(figures: Path) -> pd.DataFrame:
    """A row a claim of the report: what was measured here, and the verdict. All orders must agree for a plain yes."""
    collapse = pd.read_csv(figures / "02_collapse_points.csv")
    contrast = pd.read_csv(figures / "03_collapse_points.csv")
    batches = pd.read_csv(figures / "04_collapse_points.csv")
    mass = pd.read_csv(figures / "04_one_batch.csv")
    memit = contrast[contrast.stream == "MEMIT"].set_index("order")
    rows = []  # claim, orders measured, what came out, verdict
    for name in ("MEMIT", "PMET"):
        r = collapse[collapse.stream == name]
        rows.append(
            (
                f"{name}, one edit at a time, collapses",
                len(r),
                f"optimised probability halves at {_points(r.N_optimisation, r.edits)} and ends at "
                f"{_range(r['p last 25'])}; model dead at {_points(r.N_model, r.edits)}",
                _verdict(r.N_optimisation.notna() & (r["p last 25"] < r["p first 25"] / 2)),
            )
        )
    for name in ("ROME", "ROME, C off", "r-ROME", "r-ROME, C off"):
        r = contrast[contrast.stream == name].set_index("order")
        up = r["p last 25"] > r["p first 25"] / 2
        rows.append(
            (
                f"{name} keeps its optimised probability",
                len(r),
                f"{_range(r['p last 25'])} at the end (MEMIT {_range(memit['p last 25'])}), with "
                f"{_share(r.untouched)} of untouched facts and {_share(r['edits kept'])} of the edits right",
                _verdict(up),
            )
        )
    r = contrast[contrast.stream.str.contains("ROME")]
    dead = r[r.N_model.notna()]
    rows.append(
        (
            "A high probability may hide a damaged model",
            r.order.nunique(),
            f"{len(dead)} of {len(r)} ROME streams end with a dead model; {int((dead['p last 25'] > 0.5).sum())} of "
            "these still report p > 0.5",
            _verdict(dead["p last 25"] > 0.5),
        )
    )
    names = batches.stream.iloc[[0, -1]]
    single, whole = (batches[batches.stream == name].set_index("order") for name in names)
    for what, column in (("edits", "edits kept"), ("untouched facts", "untouched")):
        rows.append(
            (
                f"One large batch keeps more {what} than single edits",
                len(whole),
                f"{_share(whole[column])} against {_share(single[column])} at N = {int(whole.edits.iloc[0])}",
                _verdict(whole[column] > single[column].reindex(whole.index)),
            )
        )
    rows.append(
        (
            "A large batch does not run out of memory",
            1,
            f"{int(mass.batch.iloc[-1])} edits at once: {mass.peak_mb.iloc[-1]:.0f} MB at the peak; one edit: "
            f"{mass.peak_mb.iloc[0]:.0f} MB",
            _verdict(pd.Series([mass.batch.max() >= batches.edits.max()])),  # it finished
        )
    )
    return pd.DataFrame(rows, columns=["the report's claim", "orders", "measured on the lab model", "verdict"])


def _verdict(agree: pd.Series) -> str:
    return "reproduced" if len(agree) and agree.all() else "partly" if agree.any() else "not reproduced"


def _points(points: pd.Series, edits: pd.Series) -> str:
    known = points.dropna().astype(int)
    if known.empty:
        return f"no edit up to {edits.max()}"
    some = "" if len(known) == len(points) else f" in {len(known)} of {len(points)} orders"
    where = f"edit {known.min()}" if known.min() == known.max() else f"edits {known.min()}–{known.max()}"
    return where + some


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return low if low == high else f"{low}–{high}"


def _share(values: pd.Series) -> str:
    low, high = f"{values.min():.0%}", f"{values.max():.0%}"
    return low if low == high else f"{low}–{high}"


def render(figures: Path) -> str:
    """The block for the README, markers included."""
    table = claims(figures)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join([BEGIN, *lines, END])


def main() -> int:
    path = REPOSITORY / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(before + render(REPOSITORY / "figures") + rest.split(END)[1], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
