"""The sentences of the original report as claims: what decides each, its bar, and the verdict of this run.

    table = measure(kedit.Bench("lab"))        # a row a claim; figures/claims.csv of the default run
    kedit claims --accept                       # make the last run's values the ones that later runs must stay near

A bar is what the sentence asks for, set before the streams it judges were run. *reproduced*: every measured order
is beyond it; *partly*: some; *not reproduced*: none; *not measured*: no order says anything. Streams that collapse
amplify rounding, so later runs are held to the accepted values within a margin for each claim, not to their digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..analysis.claim_values import (
    HELD,
    Quantity,
    along,
    difference,
    each,
    forgotten,
    interference_ratio,
    kept,
    last_probability,
    lead_of_mass,
    memory_growth,
    overall,
    precise,
    rank_correlation,
    right,
    tested_singly,
    untouched_by_the_sum,
)
from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError, first_line
from ..streams.bench import Bench, data_folder

FEW = 10  # "few precise edits"


@dataclass(frozen=True)
class Claim:
    """A sentence of the report.

    says      the sentence in short
    quantity  what decides it
    bar       with `above`, values over it bear the sentence out; else values under it
    margin    how far a later run's value may lie from the accepted one
    measure   (Bench) -> {order: value}
    """

    name: str
    says: str
    quantity: str
    bar: float
    above: bool
    margin: float
    notebook: str
    measure: Quantity

    def holds(self, value: float) -> bool:
        return value > self.bar if self.above else value < self.bar

    def verdict(self, values: dict[int, float]) -> str:
        if all(pd.isna(v) for v in values.values()):
            return "not measured"
        agree = [self.holds(v) for v in values.values()]
        return "reproduced" if agree and all(agree) else "partly" if any(agree) else "not reproduced"


# ---- the claims --------------------------------------------------------------------------------------

_ROME = {"rome": "ROME", "rome-noC": "ROME, C off", "rrome": "r-ROME", "rrome-noC": "r-ROME, C off"}
_KEPT = "optimised probability, median of the last 25 edits over that of the first 25"

CLAIMS = (
    *(
        Claim(
            f"{m}-collapses",
            f"{m.upper()}, one edit at a time, collapses",
            _KEPT,
            0.5,
            False,
            0.25,
            "02",
            each(m, kept),
        )
        for m in ("memit", "pmet")
    ),
    *(
        Claim(
            f"{m}-stuck",
            f"after that no optimisation lifts {m.upper()}'s probability",
            "optimised probability at its last step, median of the last 25 edits",
            0.01,
            False,
            0.25,
            "02",
            each(m, last_probability),
        )
        for m in ("memit", "pmet")
    ),
    *(
        Claim(f"{m}-keeps", f"{name} keeps a high optimised probability", _KEPT, 0.9, True, 0.25, "03", each(m, kept))
        for m, name in _ROME.items()
    ),
    *(
        Claim(
            f"{m}-hides",
            f"{name}'s probability is not the accuracy of the edited model",
            "median optimised probability of the last 25 edits minus share of all edits right at the end",
            0.3,
            True,
            0.25,
            "03",
            each(m, lambda run: last_probability(run) - right(run, "edits")),
        )
        for m, name in _ROME.items()
    ),
    *(
        Claim(
            f"mass-{what}",
            f"one batch of all edits keeps {what}",
            f"right answers, {cohort}",
            0.8,
            True,
            0.1,
            "04",
            each("memit-mass", lambda run, c=cohort: right(run, c)),
        )
        for what, cohort in zip(("efficacy", "generalisation", "locality"), HELD, strict=True)
    ),
    Claim(
        "mass-leads",
        "one batch keeps more than single edits at the same N",
        "its smallest lead in right answers among edits, paraphrases and untouched facts",
        0.0,
        True,
        0.1,
        "04",
        lead_of_mass,
    ),
    Claim(
        "mass-memory",
        "a large batch does not run out of memory",
        "peak memory of the largest batch over that of one edit",
        4.0,
        False,
        1.0,
        "04",
        memory_growth,
    ),
    Claim(
        "tested-singly",
        "edited together, tested one by one",
        "right answers to the edits of one batch of the second largest size, each asked alone",
        0.8,
        True,
        0.1,
        "04",
        tested_singly,
    ),
    Claim(
        "not-the-only-criterion",
        "probability is not the only criterion",
        "rank correlation of optimised probability and untouched facts over all checkpoints",
        0.5,
        False,
        0.25,
        "05",
        rank_correlation,
    ),
    Claim(
        "few-edits",
        "few precise edits favour ROME",
        f"ROME minus MEMIT at {FEW} edits, mean of edits and untouched facts",
        0.0,
        True,
        0.1,
        "07",
        difference("rome", "memit", lambda run: precise(run, FEW)),
    ),
    Claim(
        "many-edits",
        "mass edits favour MEMIT-MASS",
        "one batch minus ROME at all edits, mean of edits, paraphrases and untouched facts",
        0.0,
        True,
        0.1,
        "07",
        difference("memit-mass", "rome", overall),
    ),
    Claim(
        "least-interference",
        "spreading an edit over layers interferes least",
        "tr ΔCΔᵀ for each achieved edit, MEMIT over several layers against the last of them alone",
        1.0,
        False,
        0.3,
        "07",
        interference_ratio,
    ),
    Claim(
        "cause-directions",
        "edits pull in conflicting directions",
        "mean cosine of an edit's ΔW with the sum of all before it, MEMIT",
        -0.02,
        False,
        0.05,
        "02",
        each("memit", along),
    ),
    Claim(
        "cause-accumulation",
        "small errors add up",
        "untouched facts right under the sum of independent edits, as many as kill the stream, or all",
        0.5,
        False,
        0.15,
        "02",
        untouched_by_the_sum,
    ),
    Claim(
        "cause-objectives",
        "later edits undo earlier ones",
        "right answers on the newest 25 edits (mean over the stream) minus on all at the end, MEMIT",
        0.2,
        True,
        0.15,
        "02",
        each("memit", forgotten),
    ),
)


# ---- the table ---------------------------------------------------------------------------------------


def measure(bench: Bench, claims=CLAIMS) -> pd.DataFrame:
    """A row a claim: name, claim, quantity, bar, median, lowest and highest over the orders, a column an order,
    verdict, model, notebook, and what is known of Llama-2-7B (not run)."""
    rows = []
    for claim in claims:
        values = claim.measure(bench)
        of = pd.Series(values, dtype=float)
        rows.append(
            {
                "name": claim.name,
                "claim": claim.says,
                "quantity": claim.quantity,
                "bar": f"{'>' if claim.above else '<'} {claim.bar:g}",
                "median": of.median(),
                "low": of.min(),
                "high": of.max(),
                "orders": len(of),
                "verdict": claim.verdict(values),
                "model": bench.model.name,
                "profile": bench.profile.name,
                "notebook": claim.notebook,
                "Llama-2-7B": "not run",
                **{f"order {order}": value for order, value in values.items()},
            }
        )
    return pd.DataFrame(rows)


def write(bench: Bench, figures: Path) -> pd.DataFrame:
    """Measure every claim and put the table into `figures`/claims.csv."""
    table = measure(bench)
    with replacing(figures / "claims.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    return table


def accepted() -> Path:
    """The committed table that later runs are held to."""
    return data_folder() / "claims.csv"


def outside(new: pd.DataFrame, old: pd.DataFrame, claims=CLAIMS) -> list[str]:
    """A line for every claim that `old` lacks, or of which some order's value is further from the old one than the
    margin."""
    before, lines = old.set_index("name"), []
    orders = [c for c in new.columns if c.startswith("order ")]
    for claim in claims:
        row = new.set_index("name").loc[claim.name]
        if claim.name not in before.index:
            lines.append(f"{claim.name}: has no accepted value")
            continue
        for order in orders:
            was, now = before.loc[claim.name].get(order, float("nan")), row[order]
            if pd.isna(was) and pd.isna(now):
                continue
            if not abs(now - was) <= claim.margin:  # NaN on one side is outside, too
                lines.append(f"{claim.name}, {order}: {now:.3g}, accepted {was:.3g} ± {claim.margin:g}")
    return lines


def check(new: pd.DataFrame) -> None:
    """KeditError that names the claims whose values left their bands. Nothing accepted yet: nothing to leave."""
    if accepted().exists() and (lines := outside(new, pd.read_csv(accepted()))):
        raise KeditError(f"{len(lines)} claims left their bands: {'; '.join(lines)}; see kedit claims --help")


def shown(figures: Path | None = None) -> pd.DataFrame:
    """The table for readers, from figures/claims.csv. KeditError when there is none yet."""
    path = (figures or REPOSITORY / "figures") / "claims.csv"
    if not path.exists():
        raise KeditError(f"{path.name}: the claims have not been measured yet; run make reproduce")
    table = _read(path)
    one = table.low.map("{:.2g}".format)
    span = one.where(table.low == table.high, one + " to " + table.high.map("{:.2g}".format))
    return pd.DataFrame(
        {
            "the report's claim": table.claim,
            "what decides it": table.quantity + " (" + table.bar + ")",
            "measured": span,
            "orders": table.orders,
            "verdict": table.verdict,
            "notebook": table.notebook.astype(int).map("{:02d}".format),
            "Llama-2-7B": table["Llama-2-7B"],
        }
    )


def _read(path: Path) -> pd.DataFrame:
    """A table of claims from disk."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise KeditError(f"{path.name}: cannot be read ({first_line(error)}); run make reproduce") from error
    if not {"name", "median", "verdict"} <= set(table.columns):
        raise KeditError(f"{path.name}: is no table of claims; run make reproduce")
    return table


def accept_or_compare(accept: bool = False) -> int:
    """`accept`: make the last run's values the accepted ones. Else print the claims that left their bands; 1 if any."""
    latest = REPOSITORY / "figures" / "claims.csv"
    if not latest.exists():
        raise KeditError("figures/claims.csv: the claims have not been measured yet; run make reproduce")
    found = _read(latest)
    if accept:
        with replacing(accepted()) as partial:
            partial.write_bytes(latest.read_bytes())
        return 0
    if not accepted().exists():
        raise KeditError("figures/data/claims.csv: nothing was accepted yet; run with --accept")
    lines = outside(found, _read(accepted()))
    print("\n".join(lines) or "every claim lies in its band")
    return 1 if lines else 0
