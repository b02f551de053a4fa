"""The frontier of notebook 07: edits kept against facts untouched."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd

from .figures import MARKERS, PALETTE


def plot_frontier(table: pd.DataFrame, guess: float):
    """A panel a number of edits: a small marker an order, a large one the median, numbered as in the legend.

    Filled: one edit at a time; hollow: one batch. Dotted: a guess that knows the relations and nothing of the person.
    """
    counts = sorted(table.edits.unique())
    methods = list(dict.fromkeys(table.method))
    fig, axes = plt.subplots(1, len(counts), figsize=(3.9 * len(counts) + 2.2, 4.4), sharey=True, squeeze=False)
    for ax, n in zip(axes[0], counts, strict=True):
        for method, rows in table[table.edits == n].dropna(subset=["kept", "untouched"]).groupby("method", sort=False):
            i = methods.index(method)
            color, marker = PALETTE[i % len(PALETTE)], MARKERS[(i // len(PALETTE) + i) % len(MARKERS)]
            face = {"markerfacecolor": "white"} if rows.how.iloc[0] == "one batch" else {}
            look = {"color": color, "marker": marker, "linestyle": "none", **face}
            ax.plot(rows.untouched, rows.kept, markersize=4, alpha=0.5, **look)
            x, y = rows.untouched.median(), rows.kept.median()
            ax.plot(x, y, markersize=10, label=f"{i + 1}  {method}", **look)
            ax.annotate(str(i + 1), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
        ax.axhline(guess, color="grey", linewidth=1, linestyle=(0, (2, 3)))
        ax.axvline(guess, color="grey", linewidth=1, linestyle=(0, (2, 3)))
        ax.set(title=f"after {n} edits", xlabel="untouched facts right", xlim=(0, 1.03), ylim=(0, 1.03))
    axes[0][0].set_ylabel("edits so far right")
    found = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = sorted(found, key=lambda label: int(label.split()[0]))
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "fontsize": 8}
    axes[0][-1].legend([found[label] for label in labels], labels, **place)
    return fig
