"""Figures of many metrics along the same streams: gaps, ages, families of metrics with their floors."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from ..evaluation.bootstrap import bootstrap_interval
from ..evaluation.early_warning import warning_table
from ..evaluation.retention import retention_matrix, retention_table
from ..streams.runner import WINDOW, Run, collapse_point
from .figures import DASHES, MARKERS, PALETTE, WIDTH, draw_curve, floor, legend_below, long_form, panels_of

SHARE = 0.25  # of a stream's time, that asking may take
SUMMARY = {  # column of the summary: (metric, cohort)
    "edits": ("accuracy", "edits"),
    "paraphrases": ("accuracy", "paraphrases"),
    "neighbors": ("accuracy", "neighbors"),
    "untouched": ("accuracy", "untouched"),
    "same subjects": ("accuracy", "same subjects"),
    "as before": ("answer agreement", "untouched"),
    "S": ("score", "edits"),
    "fluency": ("fluency", "free text"),
    "perplexity": ("perplexity", "plain text"),
}

UNITS = {  # what an axis says of a metric whose name alone does not say it
    "accuracy": "right answers, share",
    "answer agreement": "same answers, share",
    "success": "wanted object ahead, share",
    "fluency": "fluency, bits",
    "consistency": "consistency, cosine",
}


def gap_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """At each checkpoint: optimised probability (median of the latest 25 edits), and of all edits so far the share
    that is right when tokens are forced and when the model speaks freely."""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            forced, free = run.curve("strict accuracy", "edits"), run.curve("accuracy", "edits")
            for done in free.index[free.index > 0]:
                p = run.edits.probability_last[max(0, done - WINDOW) : done].median()
                rows.append((name, order, done, p, forced.get(done), free[done]))
    return pd.DataFrame(rows, columns=["stream", "order", "edits_done", "optimised", "forced", "free"])


def plot_gap(table: pd.DataFrame):
    """A panel a stream: what the optimisation reports above what the model says, the gap of the first order shaded."""
    names = list(dict.fromkeys(table.stream))
    fig, axes = panels_of(len(names), columns=3, sharex=True, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for n, (_, part) in enumerate(table[table.stream == name].groupby("order")):
            part = part.set_index("edits_done")
            single = len(part) == 1  # one batch: points, not courses
            for i, (column, label) in enumerate(
                {"optimised": "optimised probability", "forced": "right, forced", "free": "right, generated"}.items()
            ):
                curve = part[column].dropna()  # forced answers are asked more seldom
                ax.plot(
                    curve.index,
                    curve,
                    color=PALETTE[i],
                    linestyle="none" if single else DASHES[i],
                    marker=MARKERS[i] if single else None,
                    linewidth=2 if n == 0 else 0.8,
                    alpha=1 if n == 0 else 0.5,
                    label=label if n == 0 else None,
                )
            if n == 0 and not single:
                ax.fill_between(part.index, part.free, part.optimised, color=PALETTE[0], alpha=0.12)
        ax.set(title=name, xlabel="edits made", ylabel="probability, share", ylim=(0, 1.02))
        ax.tick_params(labelbottom=True)
    legend_below(fig, axes[0])
    return fig


def plot_retention(streams: dict[str, Run], width: int):
    """(figure, data): heat maps of age against checkpoint, one run a panel."""
    tables = {name: retention_table(run.checkpoints) for name, run in streams.items()}
    fig, axes = plt.subplots(1, len(tables), figsize=(3.3 * len(tables) + 0.9, 3.6), sharey=True)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        draw_map(ax, retention_matrix(table, width), bar=ax is axes[-1])
        ax.set(title=name, ylabel="age of the edit, edits" if ax is axes[0] else "")
    return fig, pd.concat([t.assign(stream=name) for name, t in tables.items()])


def draw_map(ax, matrix: pd.DataFrame, bar: bool = True) -> None:
    """Age × checkpoint, the old edits on top; bar: with its scale of colours."""
    scale = {"label": "edits still right, share"} if bar else None
    sns.heatmap(matrix.iloc[::-1], ax=ax, cmap="cividis", vmin=0, vmax=1, cbar=bar, cbar_kws=scale)
    ax.set(xlabel="edits made", ylabel="age of the edit, edits")
    ax.tick_params(axis="x", labelrotation=90)
    ax.tick_params(axis="y", labelrotation=0)


def plot_along(run: Run, at: int):
    """(figure, data): a stream up to `at` edits. The age × checkpoint map, how far ‖W‖ has grown since edit 1, and how
    large the step of each edit is; what comes later is left white, so that one picture can be laid on the next."""
    width = max(1, len(run.edits) // 12)
    matrix = retention_matrix(retention_table(run.checkpoints), width)
    seen = matrix.where([[done <= at for done in matrix.columns]] * len(matrix))
    done = run.edits[run.edits.edit <= at].set_index("edit")
    norms, first = [c for c in done if c.startswith("W_")], run.edits.iloc[0]
    grown = pd.DataFrame({f"layer {c[2:]}": done[c] / first[c] for c in norms})
    steps = pd.DataFrame({f"layer {c[2:]}": done[f"d{c}"] / done[c] for c in norms})
    fig, axes = plt.subplot_mosaic([["map", "W"], ["map", "dW"]], figsize=(WIDTH, 4.2), layout="constrained")
    draw_map(axes["map"], seen)
    for name, table, label in (("W", grown, "‖W‖ / ‖W₁‖"), ("dW", steps, "‖ΔW‖ / ‖W‖")):
        for i, layer in enumerate(table):
            axes[name].plot(table.index, table[layer], color=PALETTE[i], linestyle=DASHES[i], label=layer)
        axes[name].set(xlim=(0, len(run.edits)), xlabel="edits made", ylabel=label)
    axes["W"].legend(fontsize=8)
    tables = {"edits still right": seen.T, "norm": grown, "step": steps}
    long = [t.stack().rename("value").rename_axis(["edits_done", "of"]).reset_index() for t in tables.values()]
    return fig, pd.concat([part.assign(what=what) for what, part in zip(tables, long, strict=True)]).dropna()


def plot_families(streams: dict[str, dict[int, Run]], panels: dict[str, tuple[str, str]], floors: pd.DataFrame):
    """A panel for each {title: (metric, cohort)}, a line a stream, with the floor of a destroyed model."""
    fig, axes = panels_of(len(panels), columns=2 if len(panels) % 3 else 3)
    bottom = floors.set_index(["metric", "cohort"]).value
    for ax, (title, (metric, cohort)) in zip(axes, panels.items(), strict=True):
        for i, (name, runs) in enumerate(streams.items()):
            draw_curve(ax, runs, metric, cohort, i, name)
        if (metric, cohort) in bottom.index:
            floor(ax, bottom[metric, cohort], "destroyed")
        ax.set(title=title, ylabel=UNITS.get(metric, metric))
        if metric == "perplexity":
            ax.set_yscale("log")
    legend_below(fig, axes[0])
    return fig


def family_form(streams: dict[str, dict[int, Run]], panels: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """The checkpoints behind `plot_families`, in long form."""
    return long_form(streams, panels.values())


def lead_table(streams: dict[str, dict[int, Run]], floors: pd.DataFrame) -> pd.DataFrame:
    """`metrics.warning.warning_table` of every stream and order, medians over orders, the earliest warning first.

    lead: edits from the warning to the collapse of the optimised probability, or to the end where it did not.
    """
    parts = []
    for name, runs in streams.items():
        for order, run in runs.items():
            point = collapse_point(run) or len(run.edits)
            table = warning_table(run.checkpoints, point, floors, consecutive=2).assign(stream=name, order=order)
            asked = run.checkpoints.groupby(["metric", "cohort"]).edits_done.apply(
                lambda done: done.sort_values().diff().min()
            )
            parts.append(table.join(asked.rename("every"), on=["metric", "cohort"]))
    every = pd.concat(parts)
    rows = every.groupby(["stream", "metric", "cohort"], sort=False).agg(
        every=("every", "max"),
        orders=("order", "nunique"),
        warned=("exit", "count"),
        exit=("exit", "median"),
        lead=("lead", "median"),
    )
    return rows[rows.warned == rows.orders].sort_values(["exit", "stream"], kind="stable").reset_index()


def lead_sentence(leads: pd.DataFrame, streams: dict[str, dict[int, Run]]) -> str:
    """For every stream the first metrics that warned in all orders, and how early."""
    lines = []
    for name in streams:
        rows = leads[leads.stream == name]
        runs = streams[name].values()
        if runs and all(run.edits.batch.iloc[0] == len(run.edits) for run in runs):
            lines.append(f"- **{name}**: one batch has one checkpoint and cannot warn.")
            continue
        ahead = (
            "edits before the collapse"
            if any(map(collapse_point, runs))
            else "edits before the end, without a collapse"
        )
        if rows.empty:
            lines.append(f"- **{name}**: no metric warned in every order.")
            continue
        first = rows[rows.exit == rows.exit.min()]
        said = ", ".join(f"{r.metric} ({r.cohort})" for r in first.head(3).itertuples())
        lines.append(f"- **{name}**: {said}, at edit {first.exit.iloc[0]:.0f}, {first.lead.iloc[0]:.0f} {ahead}.")
    return "\n".join(lines)


def summary_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """At the end of each stream: every metric of SUMMARY as the median over orders with their range; for edits also
    the bootstrap interval of the first order over its edits."""
    rows = []
    for name, runs in streams.items():
        row = {"stream": name, "orders": len(runs)}
        for column, (metric, cohort) in SUMMARY.items():
            ends = pd.Series([c.iloc[-1] for run in runs.values() if len(c := run.curve(metric, cohort))], dtype=float)
            if len(ends):
                span = "" if len(ends) == 1 else f" ({ends.min():.2g}–{ends.max():.2g})"
                row[column] = f"{ends.median():.2g}{span}"
        table = retention_table(next(iter(runs.values())).checkpoints)
        if len(table):
            _, low, high = bootstrap_interval(table[table.edits_done == table.edits_done.max()].value)
            row["edits, 95 % over edits"] = f"{low:.2g}–{high:.2g}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("stream")


def asking_table(streams: dict[str, dict[int, Run]], every: int) -> pd.DataFrame:
    """What the probes of each stream's first run took of its time. A row a stream: seconds an edit, the share; median
    seconds of a checkpoint in between, of one with every family (each `every` edits) and of one that asks all untouched
    facts too; and the spacing of every family at which the share would be SHARE ("none": the rest alone is above it).
    The start is left out, for it is asked once for all streams."""
    rows = []
    for name, runs in streams.items():
        run = next(iter(runs.values()))
        asked, n, edits = run.curve("seconds", "probes").iloc[1:], len(run.edits), run.edits.seconds.sum()
        all_facts = asked.index.isin(run.curve("accuracy", "all untouched").index)
        full = (asked.index % every == 0) & ~all_facts
        brief, whole = asked[~full & ~all_facts], asked[all_facts]
        left = edits * SHARE / (1 - SHARE) - brief.sum() - whole.sum()
        spacing = "none" if left <= 0 else f"{n / (left / asked[full].median()):.0f}" if full.any() else "as it is"
        row = {"stream": name, "s/edit": edits / n, "share": asked.sum() / (asked.sum() + edits)}
        row |= {"in between, s": brief.median(), "every family, s": asked[full].median()}
        rows.append(row | {"all facts too, s": whole.median(), f"every family, for {SHARE:.0%}: edits": spacing})
    return pd.DataFrame(rows)


def asking_sentence(table: pd.DataFrame) -> str:
    """Which streams kept to SHARE, and what an edit is worth in checkpoints."""
    kept, missed = (table[(table.share <= SHARE) == met] for met in (True, False))
    said = [", ".join(f"{r.stream} {r.share:.0%}" for r in part.itertuples()) for part in (kept, missed)]
    worth = (table["every family, s"] / table["s/edit"]).median()
    costs = f" A checkpoint with every family costs as much as {worth:.0f} edits (median)." if worth == worth else ""
    within, above = f"**Within {SHARE:.0%}:** {said[0] or 'none'}.", f" **Above it:** {said[1] or 'none'}."
    return within + above + costs
