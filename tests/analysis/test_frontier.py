"""The decision table: who is best, by how many orders, and what is not clear."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.text import Text

from kedit_lib.analysis.frontier import COST, decide, guide
from kedit_lib.report.choice_figures import plot_frontier


def table(values: dict[str, list[float]], need="efficacy", n=10) -> pd.DataFrame:
    rows = [(m, n, need, order, v) for m, vs in values.items() for order, v in enumerate(vs)]
    return pd.DataFrame(rows, columns=["method", "edits", "need", "order", "value"])


def test_the_best_is_clear_only_if_every_order_says_so():
    clear = decide(table({"A": [0.9, 0.8, 0.9], "B": [0.5, 0.7, 0.6]})).iloc[0]
    assert (clear.best, clear.second, clear["ahead in orders"], clear.clear) == ("A", "B", "3 of 3", True)
    split = decide(table({"A": [0.9, 0.6, 0.9], "B": [0.5, 0.7, 0.6]})).iloc[0]
    assert (split.best, split["ahead in orders"], split.clear) == ("A", "2 of 3", False)
    few = decide(table({"A": [0.9], "B": [0.5]})).iloc[0]
    assert not few.clear


def test_a_method_with_fewer_orders_is_left_out_where_others_have_them():
    one = decide(table({"A": [0.9, 0.8, 0.9], "B": [0.5, 0.5, 0.5], "C": [0.95]})).iloc[0]
    assert (one.best, one.second, one["ahead in orders"], one.clear) == ("A", "B", "3 of 3", True)
    alone = decide(table({"A": [0.9, 0.8, 0.9], "B": [0.5]})).iloc[0]
    assert alone["ahead in orders"] == "1 of 1" and not alone.clear


def test_the_best_must_be_ahead_of_every_other_not_of_the_second_only():
    found = decide(table({"A": [0.9] * 3, "B": [0.8] * 3, "C": [0.95, 0.1, 0.1]})).iloc[0]
    assert (found.best, found["ahead in orders"], found.clear) == ("A", "2 of 3", False)


def test_of_costs_the_smallest_is_best_and_never_clear():
    found = decide(table({"A": [0.2, 0.2, 0.2], "B": [0.1, 0.1, 0.1]}, COST)).iloc[0]
    assert found.best == "B" and found["its value"] == 0.1 and not found.clear


def test_the_guide_says_where_there_is_no_winner():
    rows = [table({"A": [0.9] * 3, "B": [0.1] * 3}), table({"A": [0.9, 0.1, 0.5], "B": [0.1, 0.9, 0.4]}, "locality")]
    said = guide(decide(pd.concat(rows)))
    assert said == "- **10 edits**: efficacy: A; locality: no clear winner"


def test_no_number_of_the_frontier_covers_another():
    """Methods that have lost everything lie on one spot; their numbers lie around it."""
    rows = [(f"m{i}", 10, "one edit at a time", 0.02 + 0.01 * (i % 3), 0.02, 0) for i in range(8)]
    rows += [("far", 10, "one batch", 0.9, 0.9, 0)]
    table = pd.DataFrame(rows, columns=["method", "edits", "how", "kept", "untouched", "order"])
    fig = plot_frontier(table, 0.05)
    (ax,) = fig.axes
    fig.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line that leads to a point
    assert [text.get_text() for text in ax.texts] == [str(i + 1) for i in range(9)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    plt.close(fig)
