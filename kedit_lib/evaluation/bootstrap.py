"""How far a mean over edits would move with other edits."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import bootstrap


def bootstrap_interval(
    values, edits=None, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high): the percentile bootstrap of a mean, resampling edits and nothing else.

    values  one a prompt; edits: which edit each belongs to (None: one each). Prompts of one edit are
            averaged first and go together, for they are right or wrong together

    Says how the number varies with the choice of edits on this one model and order, not over
    seeds, orders or models; where edits of one stream share its fate, it is too narrow. NaN bounds
    for fewer than two edits. Source: Efron 1979.
    """
    values = pd.Series(np.asarray(values, dtype=float))
    if edits is not None:
        values = values.groupby(np.asarray(edits)).mean()
    x = values.to_numpy()
    if len(x) < 2:
        return (float(x.mean()) if len(x) else np.nan, np.nan, np.nan)
    found = bootstrap(
        (x,), np.mean, n_resamples=draws, confidence_level=level, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(x.mean()), float(found.low), float(found.high)


def interval_table(table: pd.DataFrame, by: list[str], level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """`mean low high edits` for each group of a long table with columns edit and value, such as `retention_table`'s
    by edits_done."""
    rows = [
        (*(group if isinstance(group, tuple) else (group,)),)
        + bootstrap_interval(part.value, part.edit, level, seed=seed)
        + (part.edit.nunique(),)
        for group, part in table.groupby(by)
    ]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "edits"])
