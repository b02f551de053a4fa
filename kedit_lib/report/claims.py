"""The sentences of the original report as claims: what decides each, its bar, and the verdict per model and setting.

    table = claims.verdicts(kedit.load_runs(claims.STREAMS, bench, committed=["smollm2"]))

params/claims.yaml holds them. A bar is what the sentence asks for, set before the runs it judges. *reproduced*: every
order that can be tested is beyond the bar; *partly*: some are; *not testable*: what the sentence presupposes never
happened. `make reproduce` fails when a claim leaves the band round its accepted value.
"""

from pathlib import Path

import pandas as pd
from jinja2 import StrictUndefined, UndefinedError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment

from ..analysis.runs import load_runs, outcome, window_median
from ..data.atomic import replacing
from ..data.config import LAB_MODELS, REPOSITORY, parse
from ..errors import KeditError, explained
from ..streams.bench import Bench, committed_table, data_folder

PATH = REPOSITORY / "params" / "claims.yaml"
CLAIMS = parse(PATH.read_text(encoding="utf-8"), PATH.name)
VARIANTS = {(claim["name"], name): asked for claim in CLAIMS for name, asked in claim["variants"].items()}
SINGLES = ("memit", "pmet", "rome", "rome-noC", "rrome", "rrome-noC")  # streams of single edits
STREAMS = tuple(
    f"{name}{rho}" for name in (*SINGLES, "memit-mass", "memit-share", "memit-sum") for rho in ("", "-rho2")
)
ACCEPTED = data_folder() / "claims.csv"  # the committed values that later runs are held to
MARGIN = 0.25  # round an accepted value, where the claim has no other
KEY = ["claim", "variant", "model", "setting", "order"]
EXPRESSIONS = SandboxedEnvironment(undefined=StrictUndefined)


def measure(runs: pd.DataFrame, memory: dict[str, float] | None = None) -> pd.DataFrame:
    """A row for each claim, variant, model, setting and order: value (NaN: not testable), bar, holds. runs: from
    `load_runs`; memory: {model: peak memory of its largest batch over that of one edit}."""
    rows = []
    for (model, setting, order), some in runs.groupby(["model", "setting", "order"]):
        names = _names(some)
        if order == 0 and model in (memory or {}):  # whatever the length of the steps
            names["memory"] = memory[model]
        for labels, asked in VARIANTS.items():
            try:
                given = _value(asked.get("given", "true"), names)
                value = float(_value(asked["value"], names)) if given else float("nan")
            except UndefinedError:  # one of its streams was not run here
                continue
            holds = None if pd.isna(value) else _value(f"value {asked['bar']}", {"value": value})
            rows.append([*labels, model, setting, order, asked["bar"], value, holds])
    return pd.DataFrame(rows, columns=[*KEY, "bar", "value", "holds"])


def _value(text: str, names: dict):
    return EXPRESSIONS.compile_expression(text, undefined_to_none=False)(names)


def _names(runs: pd.DataFrame) -> dict:
    """What expressions may name, from the runs of one model, setting and order. Of streams those that were run."""
    names = {"min": min, "mean": lambda *values: sum(values) / len(values), "rank_correlation": _rank_correlation(runs)}
    texts = [text for asked in VARIANTS.values() for text in (asked["value"], asked.get("given", "true"))]
    for name in find_undeclared_variables(EXPRESSIONS.parse("".join(f"{{{{ {text} }}}}" for text in texts))):
        stream, _, edits = name.partition("_after")
        one = runs[(runs.stream == stream.replace("_", "-")) & (runs.edits <= float(edits or "inf"))]
        if len(one):
            latest = one[(one.metric == "accuracy") & (one.cohort == "latest edits") & (one.edits > 0)].value.mean()
            cosine = one[one.metric == "cosine with earlier updates"].value.mean()
            names[name] = {**outcome(one), "cosine": cosine, "latest_mean": latest}
            if edits and one[one.metric == "accuracy"].edits.max() < float(edits):  # nothing was asked there
                names[name] = dict.fromkeys(names[name], float("nan"))
    return names


def _rank_correlation(runs: pd.DataFrame) -> float:
    """Spearman's, of the optimised probability and the unrelated facts that are right; NaN where one is constant."""
    some = runs[runs.stream.isin(SINGLES)]
    p = window_median(some).set_index(["stream", "edits"])["median"].rename("p")
    asked = some[(some.metric == "accuracy") & (some.cohort == "untouched") & (some.edits > 0)]
    both = asked.join(p, on=["stream", "edits"]).dropna(subset="p")
    return both.p.rank().corr(both.value.rank())


def verdict(holds: pd.Series) -> str:
    """Of a claim's orders, each True, False or None (not testable)."""
    tested = holds.dropna().astype(bool)
    if tested.empty:
        return "not testable"
    return "reproduced" if tested.all() else "partly" if tested.any() else "not reproduced"


def verdicts(measured: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim, variant, model and setting: median, low, high, orders (those tested), verdict."""
    found = measured.groupby(KEY[:-1], sort=False)
    table = found.value.agg(["median", "min", "max"]).rename(columns={"min": "low", "max": "high"})
    return table.assign(orders=found.value.count(), verdict=found.holds.agg(verdict)).reset_index()


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` for readers: a row per claim; a column per model (real ones first) and setting, one as published."""
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


def judge(bench: Bench, figures: Path, hold: bool) -> None:
    """`measure` on a bench's streams and on the committed ones of the profile's `beside`, into <figures>/claims.csv.
    `hold`: KeditError that names the values that left their bands; where none is accepted yet there are none."""
    beside = bench.profile.beside
    mass = {beside: committed_table(beside, "mass") if beside else None, bench.label: bench.mass_table()}
    memory = {label: one.peak_mb.iloc[-1] / one.peak_mb.iloc[0] for label, one in mass.items() if one is not None}
    measured = measure(load_runs(STREAMS, bench, [beside] if beside else None), memory)
    with replacing(figures / "claims.csv") as partial:
        measured.to_csv(partial, index=False, float_format="%.6g")
    counted = verdicts(measured).verdict.value_counts()
    print(f"claims: {', '.join(f'{n} {v}' for v, n in counted.items())}", flush=True)
    if hold and ACCEPTED.exists() and (lines := outside(measured, read(ACCEPTED))):
        remedy = "look at the figures; if the change is meant, kedit claims --accept"
        raise KeditError(f"{len(lines)} claims left their bands: {'; '.join(lines)}; {remedy}")


def outside(new: pd.DataFrame, old: pd.DataFrame) -> list[str]:
    """A line for every value of `measure` that lies further from the accepted one than its margin, or has none."""
    was, lines = old.set_index(KEY).value, []
    for *at, value in new[[*KEY, "value"]].itertuples(index=False):
        where, margin = " / ".join(map(str, at)), VARIANTS[at[0], at[1]].get("margin", MARGIN)
        before = was.get(tuple(at))
        if before is None:
            lines.append(f"{where}: has no accepted value")
        elif not (pd.isna(value) and pd.isna(before)) and not abs(value - before) <= margin:
            lines.append(f"{where}: {value:.3g}, accepted {before:.3g} ± {margin:g}")
    return lines


def read(path: Path | None = None) -> pd.DataFrame:
    """What `measure` found, from figures/claims.csv or another file. KeditError when it cannot be read."""
    path = path or REPOSITORY / "figures" / "claims.csv"
    with explained(f"{path.name}: cannot be read", "run make reproduce"):
        table = pd.read_csv(path)
        return table.assign(holds=table.holds.astype(object).where(table.value.notna(), None))


def accept_or_compare(accept: bool) -> int:
    """Make the values of the last run the accepted ones, or print which left their bands. Exit code 1: some did."""
    found = read()
    if accept:
        with replacing(ACCEPTED) as partial:
            found.to_csv(partial, index=False)
        return 0
    lines = outside(found, read(ACCEPTED))
    print("\n".join(lines) or "every claim lies in its band")
    return 1 if lines else 0
