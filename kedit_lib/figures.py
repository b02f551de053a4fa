"""Figures of the report: one style, saved with their data, shown with caption and alt text."""

from __future__ import annotations

import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown, display

from .experiments import DEAD, WINDOW, Run, collapse_point
from .params import REPOSITORY

# Okabe–Ito: told apart by colour-blind readers; line styles and markers say the same again.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), "-"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def style() -> None:
    """The report's look; call once at the top of a notebook."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "svg.hashsalt": "kedit",  # the same figure gives the same file
            "pdf.compression": 9,
        }
    )


def folder() -> Path:
    return Path(os.environ.get("KEDIT_FIGURES") or REPOSITORY / "figures")


def show(fig, name: str, caption: str, alt: str, data: pd.DataFrame) -> None:
    """Save `fig` as figures/<name>.png .svg .pdf with its numbers as .csv, and show it with caption and alt text.

    caption: what is drawn and what it shows. alt: for who cannot see it. data: what the lines are made of.
    """
    where = folder()
    where.mkdir(parents=True, exist_ok=True)
    fig.tight_layout()
    fig.savefig(where / f"{name}.svg", metadata={"Date": None})
    fig.savefig(where / f"{name}.pdf", metadata={"CreationDate": None, "ModDate": None})
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    (where / f"{name}.png").write_bytes(buffer.getvalue())
    data.to_csv(where / f"{name}.csv", index=False, float_format="%.6g")
    plt.close(fig)
    display(Image(buffer.getvalue(), alt=alt))
    display(Markdown(f"**Figure.** {caption}"))


def say(text: str) -> None:
    """A paragraph whose numbers come from data."""
    display(Markdown(text))


# ---- drawing streams ---------------------------------------------------------------------------------


def draw_probability(ax, runs: dict[int, Run], index: int = 0, label: str = "", points: bool = True) -> None:
    """Final optimised probability of each edit against its number, log axis: dots for the first order,
    a line for each order's running median over 25 edits; triangles at the collapse points."""
    color = PALETTE[index % len(PALETTE)]
    for n, (order, run) in enumerate(runs.items()):
        p = run.edits.set_index("edit").probability_last.clip(lower=1e-12)
        if points and n == 0:
            ax.plot(p.index, p, ".", color=color, alpha=0.25, markersize=3, rasterized=True)
        median = p.rolling(min(WINDOW, len(p)), min_periods=1).median()
        ax.plot(
            median.index,
            median,
            color=color,
            linestyle=DASHES[index % len(DASHES)],
            linewidth=2.2 if n == 0 else 1,
            alpha=1 if n == 0 else 0.6,
            label=label if n == 0 else None,
        )
        if (at := collapse_point(run)) is not None:
            ax.plot(at, median[at], "v", color=color, markersize=8, markeredgecolor="white")
        if (at := collapse_point(run, "model")) is not None and at in median.index:
            ax.plot(at, median[at], "X", color=color, markersize=8, markeredgecolor="white")
    ax.set(yscale="log", xlabel="edits made", ylabel="optimised probability of the target")
    ax.set_ylim(top=1.6)


def draw_curve(ax, runs: dict[int, Run], metric: str, cohort: str, index: int = 0, label: str | None = None) -> None:
    """A metric at the checkpoints: the first order thick with markers, the others thin."""
    for n, run in enumerate(runs.values()):
        curve = run.curve(metric, cohort)
        ax.plot(
            curve.index,
            curve,
            color=PALETTE[index % len(PALETTE)],
            linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)] if n == 0 else None,
            markevery=max(1, len(curve) // 8),
            markersize=5,
            linewidth=2 if n == 0 else 0.9,
            alpha=1 if n == 0 else 0.55,
            label=(label or cohort) if n == 0 else None,
        )
    ax.set_xlabel("edits made")


def floor(ax, value: float, text: str) -> None:
    """The value of a model that knows nothing."""
    ax.axhline(value, color="grey", linewidth=1, linestyle=(0, (2, 3)))
    ax.annotate(text, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="dimgrey")


# ---- tables ------------------------------------------------------------------------------------------


def collapse_table(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """A row a stream and order: both collapse points, and what was true at the end."""
    rows = []
    for name, runs in streams.items():
        for order, run in runs.items():
            last, first = run.edits.iloc[-WINDOW:], run.edits.iloc[:WINDOW]
            end = run.checkpoints[run.checkpoints.edits_done == run.checkpoints.edits_done.max()].set_index(["metric", "cohort"]).value
            rows.append(
                {
                    "stream": name,
                    "order": order,
                    "edits": len(run.edits),
                    "N_optimisation": collapse_point(run),
                    "N_model": collapse_point(run, "model"),
                    "p first 25": first.probability_last.median(),
                    "p last 25": last.probability_last.median(),
                    "edits kept": end.get(("accuracy", "edits"), np.nan),
                    "untouched": end.get(("accuracy", "untouched"), np.nan),
                    "perplexity": end.get(("perplexity", "plain text"), np.nan),
                }
            )
    return pd.DataFrame(rows).astype({"N_optimisation": "Int64", "N_model": "Int64"})


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """A table for readers: rounded, a point that was not reached as "> N"."""
    out = table.copy()
    for column in ("N_optimisation", "N_model"):
        if column in out:
            out[column] = [f"> {n}" if pd.isna(v) else str(v) for v, n in zip(out[column], out["edits"], strict=True)]
    return out.map(lambda v: f"{v:.3g}" if isinstance(v, float) else v)


def spread(values, unit: str = "", digits: int = 3) -> str:
    """Orders in words: "62 (54–71)" is the median and the range; a missing one counts as not reached."""
    known = [v for v in values if not pd.isna(v)]
    if not known:
        return "not reached"
    if len(known) < len(list(values)):
        return f"{min(known):.{digits}g}{unit} at the earliest, in {len(known)} of {len(list(values))} orders"
    middle = f"{np.median(known):.{digits}g}"
    return f"{middle}{unit}" if len(known) == 1 else f"{middle} ({min(known):.{digits}g}–{max(known):.{digits}g}){unit}"


def long_form(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """Checkpoints of many streams in one table, for the CSV beside a figure."""
    parts = [run.checkpoints.assign(stream=name, order=order) for name, runs in streams.items() for order, run in runs.items()]
    table = pd.concat(parts)
    return table[table.cohort != "probes"]


def edits_form(streams: dict[str, dict[int, Run]]) -> pd.DataFrame:
    """Edit rows of many streams in one table."""
    columns = ["edit", "probability_first", "probability_last", "steps", "delta_ratio", "clamped"]
    return pd.concat(
        [run.edits[columns].assign(stream=name, order=order) for name, runs in streams.items() for order, run in runs.items()]
    )


__all__ = [
    "DEAD",
    "collapse_table",
    "draw_curve",
    "draw_probability",
    "edits_form",
    "floor",
    "long_form",
    "say",
    "show",
    "spread",
    "style",
    "tidy",
]
