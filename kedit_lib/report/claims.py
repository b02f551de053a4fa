"""The sentences of the original report as claims: what decides each, its bar, and the verdict per model and setting.

    table = claims.verdicts(kedit.load_runs(claims.STREAMS, bench, committed=["smollm2"]))

A bar is what the sentence asks for, set before the runs it judges. *reproduced*: every order that can be tested is
beyond the bar; *partly*: some are; *not testable*: what the sentence presupposes never happened. `make reproduce`
measures all claims into figures/claims.csv and fails when one leaves the band round its accepted value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from scipy.stats import spearmanr

from ..analysis.runs import load_runs, outcome, window_median
from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError, first_line
from ..streams.bench import Bench, data_folder

FEW = 50  # "few precise edits"
NEAR = 1.5  # two collapse points within this factor are one


class Streams:
    """The streams of one model, setting and order: `streams("memit").p_last` as in `analysis.runs.outcomes`;
    `streams("memit", 50)` as they were after 50 edits. LookupError for a stream that was not run."""

    def __init__(self, runs: pd.DataFrame):
        self.runs, self._found = runs, {}

    def __call__(self, stream: str, edits: int | None = None) -> SimpleNamespace:
        if (stream, edits) not in self._found:
            one = self.table(stream)
            self._found[stream, edits] = SimpleNamespace(**outcome(one if edits is None else one[one.edits <= edits]))
        return self._found[stream, edits]

    def table(self, stream: str) -> pd.DataFrame:
        if (one := self.runs[self.runs.stream == stream]).empty:
            raise LookupError(stream)
        return one


@dataclass(frozen=True)
class Variant:
    """One number that decides a claim.

    value   (Streams) -> the number;  bar: what it must be for the sentence to hold, such as "< 0.5"
    given   (Streams) -> whether what the sentence presupposes has happened
    margin  how far a later run's value may lie from the accepted one
    """

    name: str
    bar: str
    value: Callable[[Streams], float]
    given: Callable[[Streams], bool] = lambda s: True
    margin: float = 0.25

    def holds(self, value: float) -> bool:
        sign, bar = self.bar.split()
        return value > float(bar) if sign == ">" else value < float(bar)


@dataclass(frozen=True)
class Claim:
    """A sentence of the report, what decides it, and what is published of it for Llama-2-7B."""

    name: str
    says: str
    quantity: str
    notebook: str
    published: str
    variants: tuple[Variant, ...]


# ---- the numbers -----------------------------------------------------------------------------------------------------

ROMES = {"ROME": "rome", "ROME, C off": "rome-noC", "r-ROME": "rrome", "r-ROME, C off": "rrome-noC"}
SINGLES = {"MEMIT": "memit", "PMET": "pmet"}
WISE = "WISE, arXiv 2405.14768, zsRE"


def _each(streams: dict, bar: str, value, given=lambda run: True, margin=0.25) -> tuple[Variant, ...]:
    return tuple(
        Variant(label, bar, lambda s, n=name: value(s(n)), lambda s, n=name: given(s(n)), margin)
        for label, name in streams.items()
    )


def _mean(run, *cohorts) -> float:
    return sum(getattr(run, cohort) for cohort in cohorts) / len(cohorts)


def _lead_of_mass(s: Streams) -> float:
    return min(getattr(s("memit-mass"), c) - getattr(s("memit"), c) for c in ("edits", "paraphrases", "untouched"))


def _collapsed(run) -> bool:
    return run.N_optimisation is not None or run.N_model is not None


def _rank_correlation(s: Streams) -> float:
    """Spearman's ρ over the checkpoints of all single-edit streams: optimised probability against unrelated facts."""
    names = [n for n in (*SINGLES.values(), *ROMES.values()) if (s.runs.stream == n).any()]
    some = s.runs[s.runs.stream.isin(names)]
    p = window_median(some).set_index(["stream", "edits"])["median"].rename("p")
    asked = some[(some.metric == "accuracy") & (some.cohort == "untouched") & (some.edits > 0)]
    both = asked.join(p, on=["stream", "edits"]).dropna(subset="p")
    constant = both.p.nunique() < 2 or both.value.nunique() < 2
    return float("nan") if constant else float(spearmanr(both.p, both.value).statistic)


def _along(s: Streams) -> float:
    found = s.table("memit")
    return found[found.metric == "cosine with earlier updates"].value.mean()


def _undone(s: Streams) -> float:
    found = s.table("memit")
    latest = found[(found.metric == "accuracy") & (found.cohort == "latest edits") & (found.edits > 0)]
    return latest.value.mean() - s("memit").edits


CLAIMS = (
    Claim(
        "probability-collapses",
        "MEMIT and PMET, one edit at a time, collapse",
        "optimised probability, median of the last 25 edits over that of the first 25",
        "02",
        "4.66e-08 after some 450 edits (the report)",
        _each(SINGLES, "< 0.5", lambda run: run.p_last / run.p_first),
    ),
    Claim(
        "nothing-lifts-it",
        "after that no optimisation raises the probability",
        "optimised probability at its last step, median of the last 25 edits",
        "02",
        "4.66e-08 at every step (the report)",
        _each(SINGLES, "< 0.01", lambda run: run.p_last, lambda run: run.N_optimisation is not None),
    ),
    Claim(
        "rome-stays",
        "ROME keeps a high probability",
        "optimised probability, median of the last 25 edits over that of the first 25",
        "03",
        "about 0.98 after 1,000 edits (the report)",
        _each(ROMES, "> 0.9", lambda run: run.p_last / run.p_first),
    ),
    Claim(
        "probability-hides",
        "a high probability may be overfitting, not accuracy",
        "median optimised probability of the last 25 edits minus share of all edits right at the end",
        "03",
        f"ROME: reliability about .01 after 1,000 single edits ({WISE})",
        _each(ROMES, "> 0.3", lambda run: run.p_last - run.edits, lambda run: run.p_last > 0.5),
    ),
    Claim(
        "batch-keeps",
        "one batch of all edits keeps efficacy, generalisation and locality",
        "right answers after one batch of 0.09 edits a unit of d_ff, as in the report, each asked alone; and of the "
        "stream's N (the lowest of the three)",
        "04",
        f".69 / .65 / .62 after 1,000 ({WISE})",
        (
            Variant("efficacy", "> 0.8", lambda s: s("memit-share").edits, margin=0.1),
            Variant("generalisation", "> 0.8", lambda s: s("memit-share").paraphrases, margin=0.1),
            Variant("locality", "> 0.8", lambda s: s("memit-share").untouched, margin=0.1),
            Variant(
                "at the stream's N",
                "> 0.8",
                lambda s: min(s("memit-mass").edits, s("memit-mass").paraphrases, s("memit-mass").untouched),
                margin=0.1,
            ),
        ),
    ),
    Claim(
        "batch-leads",
        "one batch keeps more than single edits",
        "its smallest lead in right answers among edits, paraphrases and unrelated facts, at the same edits",
        "04",
        f".69 / .65 / .62 against .04 / .04 / .02 ({WISE})",
        (Variant("MEMIT-MASS", "> 0", _lead_of_mass, lambda s: _collapsed(s("memit")), 0.1),),
    ),
    Claim(
        "batch-memory",
        "a large batch does not run out of memory",
        "peak memory of a batch of all edits over that of one edit",
        "04",
        "no figure published",
        (Variant("MEMIT-MASS", "< 4", lambda s: s.memory, margin=1.0),),
    ),
    Claim(
        "not-the-only-criterion",
        "probability is not the only criterion",
        "rank correlation of optimised probability and unrelated facts over all checkpoints of single edits",
        "05",
        "no figure published",
        (Variant("all streams", "< 0.5", _rank_correlation),),
    ),
    Claim(
        "advice",
        "few precise edits ROME, mass edits MEMIT-MASS",
        f"ROME minus MEMIT after {FEW} edits (mean of edits and unrelated facts); one batch minus ROME after all edits "
        "(mean of edits, paraphrases and unrelated facts)",
        "07",
        "no figure published",
        (
            Variant(
                "few",
                "> 0",
                lambda s: _mean(s("rome", FEW), "edits", "untouched") - _mean(s("memit", FEW), "edits", "untouched"),
                margin=0.1,
            ),
            Variant(
                "many",
                "> 0",
                lambda s: (
                    _mean(s("memit-mass"), "edits", "paraphrases", "untouched")
                    - _mean(s("rome"), "edits", "paraphrases", "untouched")
                ),
                margin=0.1,
            ),
        ),
    ),
    Claim(
        "causes",
        "conflicting directions, accumulated error, later edits undo earlier ones",
        "mean cosine of an edit's ΔW with the sum before it; N_model of the sum of edits made apart over N_model of "
        "the stream; newest 25 edits right (mean) minus all at the end",
        "06",
        "no figure published",
        (
            Variant("directions", "< -0.02", _along, margin=0.05),
            Variant(
                "accumulation",
                f"< {NEAR}",
                lambda s: s("memit-sum").N_model / s("memit").N_model,
                lambda s: s("memit").N_model is not None and s("memit-sum").N_model is not None,
                0.5,
            ),
            Variant("undone", "> 0.2", _undone, margin=0.15),
        ),
    ),
)

STREAMS = tuple(
    f"{name}{rho}"
    for name in (*SINGLES.values(), *ROMES.values(), "memit-mass", "memit-share", "memit-sum")
    for rho in ("", "-rho2")
)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def measure(runs: pd.DataFrame, memory: dict[str, float] | None = None) -> pd.DataFrame:
    """A row for each claim, variant, model, setting and order: value (NaN: not testable), bar, holds.

    runs    from `load_runs`;  memory: {model: peak memory of a batch of all edits over that of one}
    """
    rows = []
    for (model, setting, order), some in runs.groupby(["model", "setting", "order"]):
        streams = Streams(some)
        streams.memory = (memory or {}).get(model) if order == 0 and setting == "as printed" else None
        for claim in CLAIMS:
            for variant in claim.variants:
                try:
                    value = variant.value(streams) if variant.given(streams) else float("nan")
                except LookupError:  # one of its streams was not run here
                    continue
                if value is not None:
                    labels = [claim.name, variant.name, model, setting, order]
                    rows.append([*labels, variant.bar, value, None if pd.isna(value) else variant.holds(value)])
    columns = ["claim", "variant", "model", "setting", "order", "bar", "value", "holds"]
    return pd.DataFrame(rows, columns=columns)


def of_bench(bench: Bench, figures: Path) -> pd.DataFrame:
    """`measure` on a bench's streams and on the committed ones of the profile's `beside`, into <figures>/claims.csv."""
    mass = bench.mass_table()
    beside = [bench.profile.beside] if bench.profile.beside else None
    runs = load_runs(STREAMS, bench, beside)
    table = measure(runs, {bench.label: mass.peak_mb.iloc[-1] / mass.peak_mb.iloc[0]})
    with replacing(figures / "claims.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    return table


def verdict(holds: pd.Series) -> str:
    """Of the orders of one claim: None where it cannot be tested."""
    tested = holds.dropna().astype(bool)
    if tested.empty:
        return "not testable"
    return "reproduced" if tested.all() else "partly" if tested.any() else "not reproduced"


def verdicts(measured: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim, variant, model and setting: median, low, high, orders, verdict."""
    by = ["claim", "variant", "model", "setting"]
    found = measured.groupby(by, sort=False)
    table = found.value.agg(["median", "min", "max"]).rename(columns={"min": "low", "max": "high"})
    return table.assign(orders=found.order.nunique(), verdict=found.holds.agg(verdict)).reset_index()


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` for readers: a row a claim, a column for each model and setting, and what is published."""
    median, low, high = (table[name].map("{:.2g}".format) for name in ("median", "low", "high"))
    number = median.where(table.low == table.high, median + " (" + low + " to " + high + ")")
    number = number.where(table["median"].notna(), "")
    text = (table.variant + ": " + table.verdict + " " + number).str.strip()
    cells = table.assign(text=text, where=table.model + ", " + table.setting)
    wide = cells.groupby(["claim", "where"], sort=False).text.agg("; ".join).unstack(fill_value="not run")
    about = pd.DataFrame([(c.name, c.says, c.quantity, c.notebook, c.published) for c in CLAIMS])
    about.columns = ["name", "the report's claim", "what decides it", "notebook", "published for Llama-2-7B"]
    return about.set_index("name").join(wide).fillna("not run").reset_index(drop=True)


# ---- bands -----------------------------------------------------------------------------------------------------------


def accepted() -> Path:
    """The committed values that later runs are held to."""
    return data_folder() / "claims.csv"


def outside(new: pd.DataFrame, old: pd.DataFrame) -> list[str]:
    """A line for every value of `measure` that lies further from the accepted one than its margin, or has none."""
    margins = {(c.name, v.name): v.margin for c in CLAIMS for v in c.variants}
    key = ["claim", "variant", "model", "setting", "order"]
    was, lines = old.set_index(key).value, []
    for row in new.itertuples():
        at = (row.claim, row.variant, row.model, row.setting, row.order)
        if at not in was.index:
            lines.append(f"{' / '.join(map(str, at))}: has no accepted value")
        elif not (pd.isna(row.value) and pd.isna(was[at])) and not abs(row.value - was[at]) <= margins[at[:2]]:
            lines.append(f"{' / '.join(map(str, at))}: {row.value:.3g}, accepted {was[at]:.3g} ± {margins[at[:2]]:g}")
    return lines


def check(new: pd.DataFrame) -> None:
    """KeditError that names the values that left their bands. Nothing accepted yet: nothing to leave."""
    if accepted().exists() and (lines := outside(new, read(accepted()))):
        remedy = "look at the figures; if the change is meant, kedit claims --accept"
        raise KeditError(f"{len(lines)} claims left their bands: {'; '.join(lines)}; {remedy}")


def read(path: Path | None = None) -> pd.DataFrame:
    """What `measure` found, from figures/claims.csv or another file. KeditError when it cannot be read."""
    path = path or REPOSITORY / "figures" / "claims.csv"
    try:
        table = pd.read_csv(path)
        return table.assign(holds=table.holds.astype(object).where(table.value.notna(), None))
    except (OSError, ValueError, AttributeError) as error:
        raise KeditError(f"{path.name}: cannot be read ({first_line(error)}); run make reproduce") from error


def accept_or_compare(accept: bool) -> int:
    """Make the values of the last run the accepted ones, or print which left their bands. Exit code 1: some did."""
    found = read()
    if accept:
        with replacing(accepted()) as partial:
            found.to_csv(partial, index=False)
        return 0
    lines = outside(found, read(accepted()))
    print("\n".join(lines) or "every claim lies in its band")
    return 1 if lines else 0
