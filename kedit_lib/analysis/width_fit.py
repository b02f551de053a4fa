"""How the number of edits that a model survives grows with its width: a power law, and how little it may say.

The table has a row a model, stream and order: role ("d_ff 512" for a member of the family that differs from the others
in width alone), d_ff, both collapse points (NA: not reached), and the means of the model's single edits, "single edit"
and so on. A model that misses a bar with these has one row and no stream: it is left out of everything but its mention.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from .lab_tables import BARS

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


def fit(points: pd.Series, at: float = SEED_WIDTH, level: float = 0.9) -> dict[str, float]:
    """log N = a + b·log d_ff by least squares over models, and the prediction interval of N for one more at width `at`.

    points: {d_ff: N}. Returns b, its standard error, and low, median, high:

        N(at) = exp(x₀ᵀβ ± t·s·√(1 + x₀ᵀ(XᵀX)⁻¹x₀)),   t of n − 2 degrees of freedom

    (Draper & Smith, Applied Regression Analysis, ch. 1.4.) All NaN with fewer than three widths: a line through two
    points has no error.
    """
    if len(points) < 3:
        return dict.fromkeys(("b", "error", "low", "median", "high"), float("nan"))
    x, y = np.log(points.index.to_numpy(float)), np.log(points.to_numpy(float))
    X, x0, free = np.column_stack([np.ones_like(x), x]), np.array([1.0, np.log(at)]), len(y) - 2
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    s2 = ((y - X @ beta) ** 2).sum() / free
    half = student_t.ppf((1 + level) / 2, free) * np.sqrt(s2 * (1 + x0 @ inverse @ x0))
    low, median, high = np.exp(x0 @ beta + half * np.array([-1.0, 0.0, 1.0]))
    return {"b": beta[1], "error": np.sqrt(s2 * inverse[1, 1]), "low": low, "median": median, "high": high}


def fit_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row a stream and collapse point, over the models whose single edits meet every bar."""
    rows = []
    for stream, of_stream in table[healthy(table)].groupby("stream", sort=False):
        for point in POINTS:
            points = widths(of_stream, point)
            found = fit(points)
            inside = found["low"] <= SEED_EDITS <= found["high"] if len(points) > 2 else pd.NA
            seen = ", ".join(f"{n:.0f} at {d_ff:,}" for d_ff, n in points.items())
            rows.append((stream, point, len(points), seen, *found.values(), inside))
    columns = ["stream", "point", "widths", "seen", "b", "error", "low", "median", "high", f"{SEED_EDITS} inside"]
    return pd.DataFrame(rows, columns=columns)


def sentence(table: pd.DataFrame, fits: pd.DataFrame) -> str:
    """What the fits say of the report's width, and which models were left out."""
    good = table[healthy(table)]
    said, asked = [], good.d_ff[good.role.str.startswith("d_ff")].nunique()
    for row in fits.itertuples():
        what = f"{row.point} of {row.stream}"
        if np.isnan(row.b):
            seen = f": {row.seen}" if row.seen else ""
            said.append(f"{what} is not identifiable ({row.widths} of {asked} widths reached it in every order{seen})")
        else:
            inside = "inside" if row.low <= SEED_EDITS <= row.high else "outside"
            said.append(
                f"{what} grows as d_ff to the {row.b:.2f} ± {row.error:.2f} over {row.widths} widths; at {SEED_WIDTH} "
                f"that is {row.low:,.0f} to {row.high:,.0f} edits (90 %), and {SEED_EDITS} lies {inside}"
            )
    worse = table[~healthy(table)].drop_duplicates("role").set_index("role")
    values = pd.concat([worse[f"single {bar}"].map(f"{bar} {{:.2f}}".format) for bar in BARS], axis=1)
    out = [f"{role} ({', '.join(row)})" for role, row in zip(values.index, values.to_numpy(), strict=True)]
    if not len(good):
        said = ["No model's single edits meet every bar, and nothing can be fitted"]
    left = f" Left out, for single edits miss a bar: {'; '.join(out)}." if out else " No model was left out."
    return "; ".join(said) + "." + left + _own(good)


def _own(good: pd.DataFrame) -> str:
    """How healthy single edits by each stream's own method are, over the models."""
    columns, said = [f"own {bar}" for bar in BARS], []
    if not set(columns) <= set(good):
        return ""
    for stream, rows in good.groupby("stream", sort=False):
        low, high = rows[columns].min(), rows[columns].max()
        spans = (f"{bar} {low[c]:.2f} to {high[c]:.2f}" for bar, c in zip(BARS, columns, strict=True))
        said.append(f"{stream}: {', '.join(spans)}")
    return f" Single edits by the streams' own methods: {'; '.join(said)}."


def answer(fits: pd.DataFrame) -> str:
    """What an engineer takes from it, in two sentences."""
    known = fits[fits.b.notna()]
    if not len(known):
        seen = "; ".join(f"{row.point} of {row.stream} {row.seen}" for row in fits.itertuples() if row.seen)
        return (
            f"**Wider?** Not identifiable: fewer than three widths count{f' ({seen})' if seen else ''}. Do not carry a "
            "number of edits from one width to another."
        )
    laws = "; ".join(
        f"{row.point} of {row.stream} to the {row.b:.2g} ± {row.error:.1g}, {row.low:,.0f} to {row.high:,.0f} edits at "
        f"{SEED_WIDTH:,}"
        for row in known.itertuples()
    )
    inside = f"{known[f'{SEED_EDITS} inside'].astype(bool).sum()} of {len(known)}"
    sure = (known.b > 2 * known.error).all()
    grow = "grow" if sure else "are not sure to grow"
    wide = f"intervals as wide as a factor of {(known.high / known.low).max():.0f} say no number: "
    return (
        f"**Wider?** Collapse points of lab models {grow} with d_ff ({laws}), and the report's {SEED_EDITS} lies "
        f"inside {inside} of these prediction intervals. {wide[0].upper()}{wide[1:]}do not carry an edit count from "
        "one model to another, measure it."
    )


def control(table: pd.DataFrame, role: str) -> str:
    """What another number of facts does at one width: medians of N_model of the member `role` and of the family's."""
    other = table[table.role == role]
    width, said = other.d_ff.iloc[0] if len(other) else 0, []
    if len(other) and not healthy(other).all():
        return f"The control, d_ff {width}, was left out, for its single edits miss a bar."
    for stream, rows in table[(table.d_ff == width) & healthy(table)].groupby("stream", sort=False):
        changed, family = (_median(rows[rows.role == r]) for r in (role, f"d_ff {width}"))
        said.append(f"{changed} with {role} and {family} with all for {stream}")
    return f"The control, d_ff {width}: N_model is {'; '.join(said)}." if said else "The control was not run."


def _median(rows: pd.DataFrame) -> str:
    """Median N_model over orders; an order that did not reach it counts as lasting longer than its edits."""
    n = rows.N_model.astype(float).fillna(np.inf).median()
    return f"{n:.0f}" if np.isfinite(n) else f"beyond {rows.edits.max()}"
