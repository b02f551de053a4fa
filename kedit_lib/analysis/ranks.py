"""Comparisons that only look at the order of values."""

from __future__ import annotations

import numpy as np
import pandas as pd


def rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's ρ in [-1, 1]: Pearson's r of the ranks, ties at their mean rank; NaN when either side is constant.

    Written out because pandas asks for scipy for two series, and nothing else here needs it.
    """
    return float(a.rank().corr(b.rank()))


def auc(value: pd.Series, event: pd.Series) -> float:
    """How often, of one with the event and one without, the former has the larger value, in [0, 1]; ½ is chance.

    Mann and Whitney's U over its largest value; NaN when all or none have the event.
    """
    n, m = int(event.sum()), int((~event).sum())
    return float((value.rank()[event].sum() - n * (n + 1) / 2) / (n * m)) if n and m else np.nan
