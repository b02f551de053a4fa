"""Retention: whether edit i still holds at checkpoint t, for all i ≤ t.

The probes note every edit by itself as a cohort of one, "edit 17"; here those rows become a table and a matrix.
"""

from __future__ import annotations

import pandas as pd

ONE = "edit "  # cohort of a single edit: this and its number, counted from 1


def each_edit(metric: str, values) -> list[dict]:
    """Rows (metric, cohort, value, n) for a store: one per edit, in the order of the sequence."""
    return [{"metric": metric, "cohort": f"{ONE}{i}", "value": float(v), "n": 1} for i, v in enumerate(values, 1)]


def retention_table(checkpoints: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Of `run.checkpoints` in long form, one row per edit and checkpoint: edits_done, edit (from 1), age, value.

    age = edits_done − edit: how many edits came after it, 0 for the newest. value: the metric of that edit alone, 0 or
    1 for accuracy. Floor: what the same prompts give on a destroyed model. No rows where no single edits were noted.
    """
    number = checkpoints.cohort.str.extract(rf"^{ONE}(\d+)$")[0]
    rows = checkpoints[(checkpoints.metric == metric) & number.notna()]
    table = pd.DataFrame({"edits_done": rows.edits_done, "edit": number[rows.index].astype(int)})
    table["age"] = table.edits_done - table.edit
    table["value"] = rows.value
    return table.sort_values(["edits_done", "edit"], ignore_index=True)


def retention_matrix(table: pd.DataFrame, width: int = 25) -> pd.DataFrame:
    """Age × checkpoint: the mean of `value` over the edits whose age at checkpoint t lies in a row's band.

    Rows: the youngest age of each band of `width` ages (0, width, …); columns: edits_done; NaN where no edit is that
    old. Down a column: older edits of one moment; along a row: edits of one age as the sequence goes on.
    """
    band = (table.age // width * width).rename("age")
    return table.groupby([band, "edits_done"]).value.mean().unstack("edits_done")
