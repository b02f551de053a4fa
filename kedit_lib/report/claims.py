"""The sentences of the original report as claims: what decides each, its bar, and the verdict per model and setting.

    table = claims.verdicts(kedit.load_runs(claims.STREAMS, bench, committed=["smollm2"]))

params/claims.yaml holds them. A bar is what the sentence asks for, set before the runs it judges. *reproduced*: every
order that can be tested is beyond the bar; *partly*: some are; *not testable*: what the sentence presupposes never
happened. `make reproduce` measures all claims into figures/claims.csv and fails when one leaves the band round its
accepted value.
"""

import ast
import operator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from scipy.stats import spearmanr

from ..analysis.runs import load_runs, outcome, window_median
from ..data.atomic import replacing
from ..data.config import LAB_MODELS, REPOSITORY
from ..data.yaml_text import parse
from ..errors import KeditError, first_line
from ..streams.bench import Bench, data_folder

PATH = REPOSITORY / "params" / "claims.yaml"
CLAIMS = parse(PATH.read_text(encoding="utf-8"), PATH.name)
SINGLES = ("memit", "pmet", "rome", "rome-noC", "rrome", "rrome-noC")  # streams of single edits
STREAMS = tuple(
    f"{name}{rho}" for name in (*SINGLES, "memit-mass", "memit-share", "memit-sum") for rho in ("", "-rho2")
)
MARGIN = 0.25  # round an accepted value, where the claim has no other
SIGNS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
}
KEY = ["claim", "variant", "model", "setting", "order"]


class Names(dict):
    """What the expressions of params/claims.yaml may name, for the runs of one model, setting and order; memory: None
    where it was not measured."""

    def __init__(self, runs: pd.DataFrame, memory: float | None):
        super().__init__(min=min, mean=lambda *values: sum(values) / len(values))
        self.runs = runs
        if memory is not None:
            self["memory"] = memory

    def __missing__(self, name: str):
        """Found when first asked for. KeyError for a stream that was not run."""
        if name == "rank_correlation":
            return _rank_correlation(self.runs)
        stream, _, edits = name.partition("_after")
        one = self.runs[self.runs.stream == stream.replace("_", "-")]
        if one.empty:
            raise KeyError(name)
        one = one[one.edits <= int(edits)] if edits else one
        latest = one[(one.metric == "accuracy") & (one.cohort == "latest edits") & (one.edits > 0)]
        cosine = one[one.metric == "cosine with earlier updates"].value.mean()
        self[name] = SimpleNamespace(**outcome(one), cosine=cosine, latest_mean=latest.value.mean())
        return self[name]


def _value(text: str, names: Names):
    """The value of an expression: arithmetic, comparison, `and`, `or` and calls of what `names` holds."""

    def of(node: ast.AST):
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return names[name]
            case ast.Attribute(value, name):
                return getattr(of(value), name)
            case ast.Call(function, arguments):
                return of(function)(*map(of, arguments))
            case ast.BinOp(left, sign, right) | ast.Compare(left, [sign], [right]):
                return SIGNS[type(sign)](of(left), of(right))
            case ast.BoolOp(sign, values):
                return (all if isinstance(sign, ast.And) else any)(map(of, values))
        raise KeditError(f"{PATH.name}: {text}: only numbers, names, + - / > <, and, or, and calls are understood")

    return of(ast.parse(text, mode="eval").body)


def _rank_correlation(runs: pd.DataFrame) -> float:
    some = runs[runs.stream.isin(SINGLES)]
    p = window_median(some).set_index(["stream", "edits"])["median"].rename("p")
    asked = some[(some.metric == "accuracy") & (some.cohort == "untouched") & (some.edits > 0)]
    both = asked.join(p, on=["stream", "edits"]).dropna(subset="p")
    constant = both.p.nunique() < 2 or both.value.nunique() < 2
    return float("nan") if constant else float(spearmanr(both.p, both.value).statistic)


def measure(runs: pd.DataFrame, memory: dict[str, float] | None = None) -> pd.DataFrame:
    """A row for each claim, variant, model, setting and order: value (NaN: not testable), bar, holds.

    runs    from `load_runs`;  memory: {model: peak memory of a batch of all edits over that of one}
    """
    rows = []
    for (model, setting, order), some in runs.groupby(["model", "setting", "order"]):
        names = Names(some, (memory or {}).get(model) if order == 0 and setting == "as printed" else None)
        for claim in CLAIMS:
            for variant, asked in claim["variants"].items():
                try:
                    given = "given" not in asked or _value(asked["given"], names)
                    value = _value(asked["value"], names) if given else float("nan")
                except KeyError:  # one of its streams was not run here
                    continue
                sign, bar = asked["bar"].split()
                holds = value > float(bar) if sign == ">" else value < float(bar)
                labels = [claim["name"], variant, model, setting, order]
                rows.append([*labels, asked["bar"], value, None if pd.isna(value) else holds])
    return pd.DataFrame(rows, columns=[*KEY, "bar", "value", "holds"])


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
    found = measured.groupby(KEY[:-1], sort=False)
    table = found.value.agg(["median", "min", "max"]).rename(columns={"min": "low", "max": "high"})
    return table.assign(orders=found.order.nunique(), verdict=found.holds.agg(verdict)).reset_index()


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` for readers: one row per claim, one column for each model (real ones first) and setting, and what is
    published."""
    median, low, high = (table[name].map("{:.2g}".format) for name in ("median", "low", "high"))
    number = median.where(table.low == table.high, median + " (" + low + " to " + high + ")")
    number = number.where(table["median"].notna(), "")
    text = (table.variant + ": " + table.verdict + " " + number).str.strip()
    cells = table.assign(text=text, where=table.model + ", " + table.setting)
    wide = cells.groupby(["claim", "where"], sort=False).text.agg("; ".join).unstack(fill_value="not run")
    about = pd.DataFrame(CLAIMS)[["name", "says", "quantity", "notebook", "published"]]
    bars = [dict.fromkeys(variant["bar"] for variant in claim["variants"].values()) for claim in CLAIMS]
    about["quantity"] += [f" (holds if {'; '.join(bar)})" for bar in bars]
    about.columns = ["name", "the report's claim", "what decides it", "notebook", "published for Llama-2-7B"]
    columns = sorted(wide, key=lambda name: (name.split(",")[0] in LAB_MODELS, name))
    names = ["the report's claim", "notebook", *columns, "published for Llama-2-7B", "what decides it"]
    return about.set_index("name").join(wide).fillna("not run").reset_index(drop=True)[names]


def accepted() -> Path:
    """The committed values that later runs are held to."""
    return data_folder() / "claims.csv"


def outside(new: pd.DataFrame, old: pd.DataFrame) -> list[str]:
    """A line for every value of `measure` that lies further from the accepted one than its margin, or has none."""
    margins = {(c["name"], name): v.get("margin", MARGIN) for c in CLAIMS for name, v in c["variants"].items()}
    was, lines = old.set_index(KEY).value, []
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
