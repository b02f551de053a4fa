"""Runs as one tidy table (`load_runs`), and the outcome of each stream: collapse points and final values (`outcomes`).

sns.lineplot(runs.query("metric == 'accuracy' and cohort == 'untouched'"), x="edits", y="value", hue="setting")
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.config import read_yaml
from ..errors import KeditError
from ..streams.bench import committed_runs, data_folder
from ..streams.store import WINDOW, Run, collapse_point, read_tables

LABELS = ["model", "stream", "setting", "order"]
EDIT = "each edit"  # the cohort of what is measured while an edit is made
CALLED = read_yaml(Path(__file__).with_suffix(".yaml"))


def setting_of(name: str) -> tuple[str, str]:
    """(stream, setting) of a stream's name: "memit-rho2" is memit as scaled, "memit" is memit as printed."""
    stream, rho = re.fullmatch(r"(.+?)(?:-rho([\d.]+))?", name).groups()
    return stream, "as printed" if rho is None else "as scaled" if rho == "2" else f"ρ = {rho}"


def tidy(run: Run, **labels) -> pd.DataFrame:
    """One run in long form: the labels, then edits, metric, cohort, value, n. What is measured while edit i is made has
    edits = i and the cohort "each edit"; "median probability" is that of all edits so far, where each was asked."""
    about = {name: (metric, EDIT) for name, metric in CALLED["edits"].items() if name in run.edits}
    for prefix, metric in CALLED["layers"].items():
        layers = (name for name in run.edits if name.startswith(prefix))
        about |= {name: (metric, name.replace(prefix, "layer ")) for name in layers}
    made = run.edits.melt("edit", list(about), "column").rename(columns={"edit": "edits"})
    made[["metric", "cohort"]] = made.column.map(about).tolist()
    asked = run.checkpoints.rename(columns={"edits_done": "edits"})
    each = asked[(asked.metric == "probability") & asked.cohort.str.match(r"edit \d")].groupby("edits", as_index=False)
    middle = each.agg({"value": "median", "n": "sum"}).assign(metric="median probability", cohort="edits")
    table = pd.concat([made.assign(n=1), asked, middle], ignore_index=True).assign(**labels)
    return table[[*labels, "edits", "metric", "cohort", "value", "n"]]


def load_runs(streams=None, bench=None, committed=None, each_edit: bool = False) -> pd.DataFrame:
    """Runs of the named streams (None: all) as one long table with the columns model, stream, setting, order, edits,
    metric, cohort, value, n. bench: its live orders are run or found in results/, its others come from committed data.
    committed: label(s) of models whose committed runs are put in front (without bench, None: of every model).
    each_edit: with the rows that ask every edit alone ("edit 1", "edit 2", …). KeditError when there is no such run."""
    models, found = [committed] if isinstance(committed, str) else committed, []
    for model, name, order in committed_runs() if models or bench is None else ():
        if (streams is None or name in streams) and (models is None or model in models):
            found.append((model, name, order, Run(*read_tables(data_folder(), f"{model}.{name}.order{order}."))))
    if bench is not None:
        names = [name for name in streams or bench.streams if name in bench.streams]
        found += [(bench.label, name, order, run) for name in names for order, run in bench.runs(name).items()]
    if not found:
        raise KeditError(f"runs {streams}: none is stored; run them (kedit sweep), or name others")
    labels = [dict(zip(LABELS, (model, *setting_of(name), order), strict=True)) for model, name, order, _ in found]
    table = pd.concat([tidy(one[-1], **of) for one, of in zip(found, labels, strict=True)], ignore_index=True)
    return table if each_edit else table[~table.cohort.str.fullmatch(r"edit \d+")].reset_index(drop=True)


def outcomes(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each model, stream, setting and order of `load_runs`: edits_made; N_optimisation, N_model (NA: not
    reached); p_first, p_last, the median optimised probability of the first and the last 25 edits, and p_lowest of one;
    p_edited, the median probability that the edited model gives to all its edits (NaN: it was not asked each), and
    p_edited_mean, of those asked; edits, latest, paraphrases, neighbors, untouched, accuracy at the end by free
    generation, and untouched_start; perplexity, perplexity_start; seconds of an edit, median."""
    return pd.DataFrame([dict(zip(LABELS, key, strict=True)) | outcome(one) for key, one in runs.groupby(LABELS)])


def outcome(one: pd.DataFrame) -> dict:
    """`outcomes` of one stream."""
    p = one[one.metric == "optimised probability"].sort_values("edits").value
    asked = one[one.cohort != EDIT].rename(columns={"edits": "edits_done"})
    run = Run(pd.DataFrame({"probability_last": p.tolist()}), asked, {})
    cohorts = ("edits", "latest edits", "paraphrases", "neighbors", "untouched")
    curves = {cohort.split()[0]: run.curve("accuracy", cohort) for cohort in cohorts}
    curves |= {"p_edited": run.curve("median probability", "edits"), "p_edited_mean": run.curve("probability", "edits")}
    curves["perplexity"] = run.curve("perplexity", "plain text")
    last = {name: c.iloc[-1] if len(c) and c.index[-1] else float("nan") for name, c in curves.items()}
    start = {f"{n}_start": curves[n].get(0, float("nan")) for n in ("untouched", "perplexity")}
    points = {f"N_{kind}": collapse_point(run, kind) for kind in ("optimisation", "model")}
    chosen = {"p_first": p.head(WINDOW).median(), "p_last": p.tail(WINDOW).median(), "p_lowest": p.min()}
    seconds = one[(one.metric == "seconds") & (one.cohort == EDIT)].value.median()
    return {"edits_made": len(p), **points, **chosen, **last, **start, "seconds": seconds}


def window_median(runs: pd.DataFrame) -> pd.DataFrame:
    """The optimised probability of each edit; `median`: its running median over 25 edits, or all of a shorter run."""
    p = runs[runs.metric == "optimised probability"].sort_values([*LABELS, "edits"])
    return p.assign(median=p.groupby(LABELS).value.transform(lambda v: v.rolling(min(WINDOW, len(v))).median()))


def interval(share, n):
    """Wilson's 95 % interval of a share of n right answers: (low, high)."""
    middle, spread = share + 1.92 / n, 1.96 * (share * (1 - share) / n + 0.96 / n**2) ** 0.5
    return (middle - spread) / (1 + 3.84 / n), (middle + spread) / (1 + 3.84 / n)


def over_orders(runs: pd.DataFrame, by: list[str], share: bool = True) -> pd.DataFrame:
    """One curve for each value of `by`: the mean over orders, whose checkpoints may differ (linear between them).
    Columns: edits, value, n (answers of all orders), low and high (the 95 % interval of a share of that many answers,
    or, of what is no share, the range over orders)."""
    curves = []
    for key, one in runs.sort_values("edits").groupby(by, sort=False):
        orders = [some for _, some in one.groupby([c for c in LABELS if c in one])]
        edits = np.unique(one.edits[one.edits <= min(some.edits.max() for some in orders)])
        values = np.array([np.interp(edits, some.edits, some.value) for some in orders])
        n, value = sum(np.interp(edits, some.edits, some.n) for some in orders), values.mean(0)
        low, high = interval(value, n) if share else (values.min(0), values.max(0))
        curves.append(pd.DataFrame({"edits": edits, "value": value, "low": low, "high": high, "n": n}))
        curves[-1][by] = key
    return pd.concat(curves, ignore_index=True) if curves else runs.assign(low=np.nan, high=np.nan)
