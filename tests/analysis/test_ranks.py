import math

import pandas as pd
import pytest

from kedit_lib.analysis.ranks import auc, rank_correlation


def test_rank_correlation_by_hand():
    """d = 0, 0, 1, -1 over four: ρ = 1 − 6·2/(4·15); a tie takes the mean rank."""
    assert rank_correlation(pd.Series([1, 2, 30, 4]), pd.Series([1, 2, 3, 4])) == pytest.approx(0.8)
    assert rank_correlation(pd.Series([1.0, 2.0, 2.0]), pd.Series([1.0, 2.0, 3.0])) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(rank_correlation(pd.Series([1.0, 1.0]), pd.Series([1.0, 2.0])))


def test_auc_counts_pairs():
    value, event = pd.Series([4.0, 2.0, 3.0, 1.0]), pd.Series([True, True, False, False])
    assert auc(value, event) == 3 / 4  # (4, 3), (4, 1), (2, 1) of four pairs
    assert auc(pd.Series([1.0, 1.0]), pd.Series([True, False])) == 0.5
    assert math.isnan(auc(value, event & False))
