"""What the checkpoints of a run show: whether edit i still holds at checkpoint t, and which metric would have warned
first. Probes note every edit by itself as a cohort of one, "edit 17"."""

from __future__ import annotations

import pandas as pd

ONE = "edit "  # cohort of a single edit: this and its number, counted from 1


def each_edit(metric: str, values) -> list[dict]:
    """Rows (metric, cohort, value, n) for a store: one per edit, in the order of the sequence."""
    return [{"metric": metric, "cohort": f"{ONE}{i}", "value": float(v), "n": 1} for i, v in enumerate(values, 1)]


def retention_table(checkpoints: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Of `run.checkpoints`, one row per edit and checkpoint: edits_done, edit (from 1), age = edits_done − edit (0 for
    the newest), value of the metric for that edit alone. No rows where no single edits were noted."""
    number = checkpoints.cohort.str.extract(rf"^{ONE}(\d+)$")[0]
    rows = checkpoints[(checkpoints.metric == metric) & number.notna()]
    table = pd.DataFrame({"edits_done": rows.edits_done, "edit": number[rows.index].astype(int)})
    table["age"] = table.edits_done - table.edit
    table["value"] = rows.value
    return table.sort_values(["edits_done", "edit"], ignore_index=True)


def retention_matrix(table: pd.DataFrame, width: int = 25) -> pd.DataFrame:
    """Age × checkpoint: the mean of `value` over the edits whose age at a checkpoint lies in a row's band. Rows: the
    youngest age of each band of `width` ages; columns: edits_done; NaN where no edit is that old."""
    band = (table.age // width * width).rename("age")
    return table.groupby([band, "edits_done"]).value.mean().unstack("edits_done")


def healthy_band(start: float, floor: float | None = None, tolerance: float = 0.1) -> tuple[float, float]:
    """(low, high) = start ± tolerance · reach around a metric's healthy value. reach: |start|, or |start − floor| where
    that is known and shorter, so that metrics of different floors are asked for the same share of what they can lose.
    A start of 0 without a floor has no width."""
    ways = [abs(start)] + ([] if floor is None else [abs(start - floor)])
    half = tolerance * min((way for way in ways if way > 0), default=0.0)
    return start - half, start + half


def first_exit(curve: pd.Series, low: float, high: float, consecutive: int = 1) -> int | None:
    """The first checkpoint at which a curve (value by edits_done) has been outside low..high at `consecutive`
    checkpoints in a row; None: at none. NaN is outside."""
    run = 0
    for done, value in curve.sort_index().items():
        run = 0 if low <= value <= high else run + 1
        if run == consecutive:
            return int(done)
    return None


def warning_table(
    checkpoints: pd.DataFrame,
    point: int | None = None,
    floors: pd.DataFrame | None = None,
    tolerance: float = 0.1,
    consecutive: int = 1,
) -> pd.DataFrame:
    """Every metric of a run with its healthy band and when it left it, the earliest first.

    checkpoints  `run.checkpoints`; the healthy value is the first one measured
    point        the edit of the collapse (`collapse_point`), None: not reached
    floors       of `floors` on a destroyed model (columns metric, cohort, value); None: unknown

    Columns: metric, cohort, start, low, high, exit (edits_done, <NA>: it never left), lead = point − exit (negative: it
    only followed), n (prompts at the exit, or at the last checkpoint): over few prompts a metric leaves its band by
    chance; ask for 2 consecutive checkpoints. Left out: single edits, what was measured once, a start of 0 without a
    floor.
    """
    single = checkpoints.cohort.str.match(rf"^{ONE}\d+$")
    bottom = {} if floors is None else floors.set_index(["metric", "cohort"]).value.to_dict()
    rows = []
    for name, group in checkpoints[~single & (checkpoints.metric != "seconds")].groupby(["metric", "cohort"]):
        curve = group.set_index("edits_done").sort_index()
        start = float(curve.value.iloc[0])
        low, high = healthy_band(start, bottom.get(name), tolerance)
        if len(curve) < 2 or low == high:
            continue
        at = first_exit(curve.value, low, high, consecutive)
        lead = None if at is None or point is None else point - at
        rows.append((*name, start, low, high, at, lead, int(curve.n.iloc[-1] if at is None else curve.n[at])))
    table = pd.DataFrame(rows, columns=["metric", "cohort", "start", "low", "high", "exit", "lead", "n"])
    return table.astype({"exit": "Int64", "lead": "Int64"}).sort_values("exit", ignore_index=True, kind="stable")
