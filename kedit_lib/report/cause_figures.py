"""The figures of notebook 06."""

from __future__ import annotations

import matplotlib.pyplot as plt
import matplotlib.ticker as ticker
import numpy as np
import pandas as pd

from ..analysis import width_fit as extrapolation
from ..analysis.decomposition import Anatomy, survival
from .figures import DASHES, MARKERS, PALETTE, floor, legend_below, panels_of, tick_at

TERMS = {"spills": "spills of single edits", "agreement": "spills that agree", "response": "response to earlier edits"}


def _plain_log(axis, subs=(1, 2, 5)) -> None:
    """Ticks of a log axis at 1, 2 and 5, as plain numbers."""
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())


def survival_form(found: dict[str, Anatomy]) -> pd.DataFrame:
    """`survival` of untouched facts for each stream, as it is and superposed."""
    parts = [survival(one).query("cohort == 'untouched'").assign(stream=name) for name, one in found.items()]
    columns = ["cohort", "superposed", "bin", "shift", "right", "n", "stream"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns).astype({"superposed": bool})


def plot_survival(table: pd.DataFrame, guess: float):
    """Right answers against how far the fact's own value was shifted; a panel a stream."""
    names = list(dict.fromkeys(table.stream))
    fig, axes = panels_of(len(names), columns=2, height=3.6, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for i, superposed in enumerate((False, True)):
            rows = table[(table.stream == name) & (table.superposed == superposed)]
            label = "each edit made on the unedited model, added up" if superposed else "the stream"
            ax.plot(rows["shift"], rows.right, color=PALETTE[i], linestyle=DASHES[i], marker=MARKERS[i], label=label)
        floor(ax, guess, "guess")
        ax.set(xscale="log", title=name, xlabel="shift of the fact's value, ‖Σ Δk‖ / ‖W₀k‖", ylim=(0, 1.02))
        _plain_log(ax.xaxis)
    axes[0].set_ylabel("untouched facts right")
    legend_below(fig, axes[0])
    return fig


def terms_form(found: dict[str, Anatomy]) -> pd.DataFrame:
    """The three terms of the squared shift of untouched facts at every checkpoint, means over the facts."""
    rows = []
    for name, one in found.items():
        facts = one.shifts[one.shifts.cohort == "untouched"].assign(squared=lambda t: t["shift"] ** 2)
        for done, part in facts.groupby("edits_done"):
            seq, sup = part[~part.superposed], part[part.superposed]
            spills, alone, whole = sup.spills.mean(), sup.squared.mean(), seq.squared.mean()
            terms = {"spills": spills, "agreement": alone - spills, "response": whole - alone}
            rows += [{"stream": name, "edits_done": done, "term": t, "value": v} for t, v in terms.items()]
    return pd.DataFrame(rows)


def plot_terms(table: pd.DataFrame):
    """The squared shift of untouched facts along the stream, stacked by its terms; a panel a stream."""
    names = list(dict.fromkeys(table.stream))
    fig, axes = panels_of(len(names), columns=2, height=3.6)
    for ax, name in zip(axes, names, strict=True):
        wide = table[table.stream == name].pivot(index="edits_done", columns="term", values="value")[list(TERMS)]
        bottom = np.zeros(len(wide))
        for i, (term, label) in enumerate(TERMS.items()):
            top = bottom + wide[term].to_numpy()
            look = {"color": PALETTE[i], "hatch": ("", "////", "....")[i], "edgecolor": "white", "linewidth": 0}
            ax.fill_between(wide.index, bottom, top, alpha=0.75, label=label, **look)
            bottom = top
        ax.set(title=name, xlabel="edits made", ylim=(0, None))
    axes[0].set_ylabel("untouched facts: ‖D‖²/‖v‖²")
    legend_below(fig, axes[0])
    return fig


def plot_interventions(table: pd.DataFrame):
    """A line a change: both collapse points, a marker an order; hollow at the end of the stream: not reached."""
    names = list(dict.fromkeys(table.stream))[::-1]
    fig, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(names) + 1.3), sharey=True)
    points = {"N_optimisation": "optimised probability halved", "N_model": "half of the untouched facts lost"}
    for i, (ax, (column, title)) in enumerate(zip(axes, points.items(), strict=True)):
        for y, name in enumerate(names):
            rows = table[table.stream == name]
            reached = rows[column].notna()
            look = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": "none", "markersize": 7}
            ax.plot(rows[column][reached].astype(float), [y] * int(reached.sum()), alpha=0.8, **look)
            ax.plot(rows.edits[~reached], [y] * int((~reached).sum()), markerfacecolor="none", **look)
        base = table[table.stream == names[-1]]
        if base[column].notna().any():
            ax.axvline(base[column].median(), color="grey", linewidth=1, linestyle=(0, (2, 3)))
        ax.set(title=title, xlabel="edits made (hollow: not reached)", xlim=(0, table.edits.max() * 1.05))
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    return fig


def plot_sensitivity(table: pd.DataFrame):
    """A panel a hyperparameter: both collapse points against its value, a marker an order, hollow at the stream's
    length: not reached; the line goes through the medians, in which that counts as the length."""
    fields = list(dict.fromkeys(table.field)) or ["nothing was varied"]
    fig, axes = panels_of(len(fields), columns=4, height=3.0, sharey=True)
    for ax, field in zip(axes, fields, strict=True):
        rows = table[table.field == field]
        values = sorted(rows.value.unique())
        at = rows.value.map(values.index)
        for i, column in enumerate(("N_optimisation", "N_model")):
            missed, shown = rows[column].isna(), rows[column].astype(float).fillna(rows.edits)
            ax.plot(range(len(values)), shown.groupby(at).median(), color=PALETTE[i], linestyle=DASHES[i], linewidth=1)
            look = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": "none", "alpha": 0.8, "markersize": 5}
            ax.plot(at[~missed], shown[~missed], label=column, **look)
            ax.plot(at[missed], shown[missed], markerfacecolor="none", **look)
        own = set(rows.value[rows.base])
        ax.set_xticks(range(len(values)), [f"{v:g}{'*' if v in own else ''}" for v in values])
        ax.set(ylim=(0, None))
        ax.set_title(field, fontsize=10)
    for ax in axes[::4]:
        ax.set_ylabel("edits (hollow: not reached)")
    legend_below(fig, axes[0])
    return fig


def plot_reach(table: pd.DataFrame):
    """What optimisations did against how far their steps reach, a point 25 edits of a stream: by which factor they
    lifted the probability, and which share of them did nothing. table: `lifting.reaches`."""
    fig, axes = panels_of(2, columns=2, height=3.8)
    for i, (padding, rows) in enumerate(table.groupby("padding")):
        look = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": "none", "markersize": 4, "alpha": 0.5}
        label = f"prompts padded as they are looked up ({rows.stream.nunique()} streams)"
        if padding == "wrong":
            label = f"padded in front, looked up as if behind ({rows.stream.nunique()} streams)"
        axes[0].plot(rows.reach, rows.lifted, label=label, **look)
        axes[1].plot(rows.reach, rows.frozen, **look)
    axes[0].set(yscale="log", ylabel="p at the last step / p at the first")
    axes[0].axhline(1, color="grey", linewidth=1)
    axes[1].set(ylabel="optimisations that did nothing", ylim=(-0.03, 1.03))
    for ax in axes:
        ax.set(xscale="log", xlabel="reach of the steps, as a multiple of ‖v₀‖")
        _plain_log(ax.xaxis, subs=(1,))
    legend_below(fig, axes[0])
    return fig


def plot_lifting(table: pd.DataFrame):
    """Optimised probability of new targets along a stream, a line a budget (medians over orders, a marker an order); a
    panel a stream. table: `lifting.lifting_table`, its streams by title."""
    names = list(dict.fromkeys(table.stream))
    fig, axes = panels_of(len(names), columns=2, height=3.8, sharey=True)
    budgets = list(dict.fromkeys(table.budget))
    for ax, name in zip(axes, names, strict=True):
        for i, budget in enumerate(budgets):
            rows = table[(table.stream == name) & (table.budget == budget)]
            look = {"color": PALETTE[i], "marker": MARKERS[i], "markersize": 5, "alpha": 0.8}
            ax.plot(rows.edits_done, rows.p_last, linestyle="none", **look)
            middle = rows.groupby("edits_done").p_last.median()
            ax.plot(middle.index, middle, color=PALETTE[i], linestyle=DASHES[i], linewidth=1.5)
            ax.plot([], [], label=budget, linestyle=DASHES[i], **look)  # for the legend, also where it has no rows
        ax.set(yscale="log", title=name, xlabel="edits made before")
    axes[0].set(ylabel="p at the last step", ylim=(table.p_last.min() / 2, 2))
    legend_below(fig, axes[0], columns=3)
    return fig


def plot_foretold(table: pd.DataFrame):
    """Foretold against observed N_model, a marker a stream; hollow at the stream's length: not reached."""
    table = table[np.isfinite(table.foretold.astype(float))]  # what is foretold to last for ever has no place on it
    fig, ax = plt.subplots(figsize=(5.6, 4.8))
    for i, (name, rows) in enumerate(table.groupby("stream", sort=False)):
        seen = rows.observed.notna()
        look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]}
        ax.plot(rows.foretold[seen], rows.observed[seen].astype(float), linestyle="none", **look)
        ax.plot(rows.foretold[~seen], rows.length[~seen], linestyle="none", markerfacecolor="none", **look)
        ax.plot([], [], linestyle="none", label=name, **look)
    ends = [max(1, 0.7 * table[["foretold", "observed"]].min().min()), 1.4 * table.foretold.max()]
    ax.plot(ends, ends, color="grey", linewidth=1)
    ax.fill_between(ends, [e / 2 for e in ends], [e * 2 for e in ends], color="grey", alpha=0.12, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="foretold N_model", ylabel="observed N_model (hollow: not reached)")
    _plain_log(ax.xaxis)
    _plain_log(ax.yaxis)
    ax.legend(fontsize=7, ncols=2)
    return fig


def plot_scaling(table: pd.DataFrame):
    """Collapse points against the width, of the models whose single edits meet every bar; a panel a point, a marker a
    model and order, hollow: a control. The line and the band of 90 % are `extrapolation.fit` over the widths, the cross
    is the report."""
    table = table[extrapolation.healthy(table)]
    fig, axes = panels_of(len(extrapolation.POINTS), columns=2, height=4.0, sharey=True)
    reach = np.geomspace(table.d_ff.min(), extrapolation.SEED_WIDTH, 40)
    for ax, point in zip(axes, extrapolation.POINTS, strict=True):
        for i, (stream, rows) in enumerate(table.groupby("stream", sort=False)):
            look = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": "none", "markersize": 6}
            widths = rows.role.str.startswith("d_ff")
            ax.plot(rows.d_ff[widths], rows[point][widths].astype(float), label=stream, **look)
            ax.plot(rows.d_ff[~widths] * 1.06, rows[point][~widths].astype(float), markerfacecolor="none", **look)
            points = extrapolation.widths(rows, point)
            band = pd.DataFrame([extrapolation.fit(points, at) for at in reach])
            ax.plot(reach, band["median"], color=PALETTE[i], linestyle=DASHES[i], linewidth=1)
            ax.fill_between(reach, band.low, band.high, color=PALETTE[i], alpha=0.12, linewidth=0)
        ax.plot([extrapolation.SEED_WIDTH], [extrapolation.SEED_EDITS], "k+", markersize=12, label="the report")
        ax.set(xscale="log", yscale="log", title=point, xlabel="d_ff (hollow: a control)", ylim=(1, 1e5))
        tick_at(ax.xaxis, [*table.d_ff.unique(), extrapolation.SEED_WIDTH])
        ax.tick_params(axis="x", labelsize=8)
    axes[0].set_ylabel("edits until the collapse")
    legend_below(fig, axes[0])
    return fig
