"""The frontier of notebook 07: edits kept against facts untouched."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd

from .figures import MARKERS, PALETTE


def plot_frontier(table: pd.DataFrame, guess: float):
    """A panel a number of edits: a small marker an order, a large one the median, numbered as in the legend.

    Filled: one edit at a time; hollow: one batch. Dotted: a guess that knows the relations and nothing of the person.
    """
    counts = sorted(table.edits.unique())
    methods = list(dict.fromkeys(table.method))
    fig, axes = plt.subplots(
        1, len(counts), figsize=(3.9 * len(counts) + 2.2, 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    points = {ax: {} for ax in axes[0]}
    for ax, n in zip(axes[0], counts, strict=True):
        for method, rows in table[table.edits == n].dropna(subset=["kept", "untouched"]).groupby("method", sort=False):
            i = methods.index(method)
            color, marker = PALETTE[i % len(PALETTE)], MARKERS[(i // len(PALETTE) + i) % len(MARKERS)]
            face = {"markerfacecolor": "white"} if rows.how.iloc[0] == "one batch" else {}
            look = {"color": color, "marker": marker, "linestyle": "none", **face}
            ax.plot(rows.untouched, rows.kept, markersize=4, alpha=0.5, **look)
            x, y = rows.untouched.median(), rows.kept.median()
            ax.plot(x, y, markersize=10, label=f"{i + 1}  {method}", **look)
            points[ax][str(i + 1)] = (x, y)
        ax.axhline(guess, color="grey", linewidth=1, linestyle=(0, (2, 3)))
        ax.axvline(guess, color="grey", linewidth=1, linestyle=(0, (2, 3)))
        ax.set(title=f"after {n} edits", xlabel="untouched facts right", xlim=(-0.02, 1.05), ylim=(-0.02, 1.05))
    axes[0][0].set_ylabel("edits so far right")
    found = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = sorted(found, key=lambda label: int(label.split()[0]))
    fig.legend([found[label] for label in labels], labels, loc="outside right center", fontsize=8)
    fig.draw_without_rendering()  # lays it out
    for ax in axes[0]:
        _name(ax, points[ax])
    return fig


def _name(ax, points: dict[str, tuple[float, float]]) -> None:
    """Write each name beside its point where it covers neither a point nor another name; a line leads to one that
    stands far off. The figure is laid out already."""
    inches = ax.figure.dpi_scale_trans.inverted()
    panel = ax.get_window_extent().transformed(inches)
    at = {name: tuple(inches.transform(ax.transData.transform(point))) for name, point in points.items()}
    taken = list(at.values())
    for name, (x, y) in at.items():
        ways = [(r, math.radians(45 + a)) for r in (0.17, 0.25, 0.35, 0.5, 0.7) for a in range(0, 360, 30)]
        places = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in ways]
        free = (p for p in places if panel.contains(*p) and all(math.dist(p, other) > 0.165 for other in taken))
        place = next(free, places[0])
        taken.append(place)
        line = {"arrowstyle": "-", "color": "grey", "linewidth": 0.6} if math.dist(place, (x, y)) > 0.2 else None
        text = {"xytext": [72 * (p - q) for p, q in zip(place, (x, y), strict=True)], "textcoords": "offset points"}
        ax.annotate(name, points[name], **text, ha="center", va="center", fontsize=9, arrowprops=line)
