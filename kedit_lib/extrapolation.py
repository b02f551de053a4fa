"""How the number of edits that a model survives grows with its width: a power law, and how little it may say.

The table has a row a model, stream and order: role ("d_ff 512" for a member of the family that differs from the others
in width alone), d_ff, both collapse points (NA: not reached), and the means of single edits, "single edit" and so on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .lab.tables import BARS

POINTS = ("N_optimisation", "N_model")
SEED_WIDTH, SEED_EDITS = 11008, 450  # of the report


def healthy(table: pd.DataFrame) -> pd.Series:
    """Whether single edits of the row's model and method meet every one of BARS."""
    return pd.concat([table[f"single {bar}"] >= value for bar, value in BARS.items()], axis=1).all(axis=1)


def widths(table: pd.DataFrame, point: str) -> pd.Series:
    """{d_ff: geometric mean over orders of a collapse point} of the members that differ in width alone and reached the
    point in every order: orders of one model are no models of their own."""
    family = table[table.role.str.startswith("d_ff")]
    found = {d: rows[point].astype(float) for d, rows in family.groupby("d_ff") if rows[point].notna().all()}
    return pd.Series({d: float(np.exp(np.log(n).mean())) for d, n in found.items()}, dtype=float)


def fit(points: pd.Series, at: float = SEED_WIDTH, level: float = 0.9, draws: int = 200_000) -> dict[str, float]:
    """log N = a + b·log d_ff by least squares over models, and the prediction interval of N for one more at width `at`.

    points: {d_ff: N}. Returns b, its standard error, and low, median, high:

        N(at) = exp(x₀ᵀβ ± t·s·√(1 + x₀ᵀ(XᵀX)⁻¹x₀)),   t of n − 2 degrees of freedom

    (Draper & Smith, Applied Regression Analysis, ch. 1.4; t from `draws` seeded samples.) All NaN with fewer than
    three widths: a line through two points has no error.
    """
    if len(points) < 3:
        return dict.fromkeys(("b", "error", "low", "median", "high"), float("nan"))
    x, y = np.log(points.index.to_numpy(float)), np.log(points.to_numpy(float))
    X, x0, free = np.column_stack([np.ones_like(x), x]), np.array([1.0, np.log(at)]), len(y) - 2
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    s2 = ((y - X @ beta) ** 2).sum() / free
    t = np.quantile(np.random.default_rng(0).standard_t(free, draws), (1 + level) / 2)
    half = t * np.sqrt(s2 * (1 + x0 @ inverse @ x0))
    low, median, high = np.exp(x0 @ beta + half * np.array([-1.0, 0.0, 1.0]))
    return {"b": beta[1], "error": np.sqrt(s2 * inverse[1, 1]), "low": low, "median": median, "high": high}


def fit_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row a stream, collapse point and choice of members (all, or those whose single edits meet every bar)."""
    rows = []
    for stream, of_stream in table.groupby("stream", sort=False):
        for members, some in (("all", of_stream), ("healthy", of_stream[healthy(of_stream)])):
            for point in POINTS:
                points = widths(some, point)
                found = fit(points)
                inside = found["low"] <= SEED_EDITS <= found["high"] if len(points) > 2 else pd.NA
                rows.append((stream, point, members, len(points), *found.values(), inside))
    columns = ["stream", "point", "members", "widths", "b", "error", "low", "median", "high", f"{SEED_EDITS} inside"]
    return pd.DataFrame(rows, columns=columns)


def sentence(table: pd.DataFrame, fits: pd.DataFrame) -> str:
    """What the fits over all members say of the report's width, and how many members are healthy."""
    said, asked = [], table.d_ff.nunique()
    for row in fits[fits.members == "all"].itertuples():
        what = f"{row.point} of {row.stream}"
        if np.isnan(row.b):
            said.append(f"{what} is not identifiable ({row.widths} of {asked} widths reached it in every order)")
        else:
            inside = "inside" if row.low <= SEED_EDITS <= row.high else "outside"
            said.append(
                f"{what} grows as d_ff to the {row.b:.2f} ± {row.error:.2f}; at {SEED_WIDTH} that is "
                f"{row.low:,.0f} to {row.high:,.0f} edits (90 %), and {SEED_EDITS} lies {inside}"
            )
    per_model = table.drop_duplicates(["model", "stream"])
    good = f"{healthy(per_model).sum()} of {len(per_model)}"
    worst = ", ".join(f"{bar} {per_model[f'single {bar}'].min():.2f}" for bar in BARS)
    held = "" if fits[fits.members == "healthy"].b.notna().any() else "; among these alone nothing can be fitted"
    return (
        "; ".join(said) + f". Single edits meet every bar in {good} pairs of model and stream (lowest: {worst}){held}."
    )


def answer(fits: pd.DataFrame) -> str:
    """What an engineer takes from it, in two sentences."""
    by = dict(list(fits[fits.b.notna()].groupby("members")))
    if not by:
        return "**Wider?** Not identifiable from this family. Do not carry a number of edits from one width to another."
    known, first = by.get("healthy"), ""
    if known is None:
        known, first = (
            by["all"],
            "Not identifiable from the models whose single edits meet every bar; with the others, ",
        )
    powers = f"{known.b.min():.2g}" + (f" to {known.b.max():.2g}" if len(known) > 1 else "")
    inside = f"{known[f'{SEED_EDITS} inside'].astype(bool).sum()} of {len(known)}"
    return (
        f"**Wider?** {first}{' and '.join(dict.fromkeys(known.point))} of lab models grows with d_ff to the power of "
        f"{powers}; the report's {SEED_EDITS} at {SEED_WIDTH}, where its optimised probability had sunk, lies inside "
        f"{inside} prediction intervals, which together span {known.low.min():,.0f} to {known.high.max():,.0f}. "
        "Do not carry an edit count to your model: measure it."
    )


def control(table: pd.DataFrame, role: str) -> str:
    """What another number of facts does at one width: medians of N_model of the member `role` and of the family's."""
    other = table[table.role == role]
    width, said = other.d_ff.iloc[0] if len(other) else 0, []
    for stream, rows in table[table.d_ff == width].groupby("stream", sort=False):
        changed, family = (_median(rows[rows.role == r]) for r in (role, f"d_ff {width}"))
        said.append(f"{changed} with {role} and {family} with all for {stream}")
    return f"The control, d_ff {width}: N_model is {'; '.join(said)}." if said else "The control was not run."


def _median(rows: pd.DataFrame) -> str:
    """Median N_model over orders; an order that did not reach it counts as lasting longer than its edits."""
    n = rows.N_model.astype(float).fillna(np.inf).median()
    return f"{n:.0f}" if np.isfinite(n) else f"beyond {rows.edits.max()}"
