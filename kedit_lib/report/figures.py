"""Figures of the report: one style, saved with their data, shown with caption and alt text."""

import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator, ScalarFormatter
from PIL import Image as Picture

from ..data.config import figures_folder, read_yaml

# Okabe–Ito, for colour-blind readers; line styles and markers repeat the distinction.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), "-"]
WIDTH = 7.5  # inches, of figures with several panels: at the width of a phone their text can still be read
COLOURS = 128  # of a stored picture: a third of the size, and no difference to the eye
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
HEADERS = {"untouched": "unrelated facts", "neighbors": "neighbours"}  # {a name in stored data: the report's word}


def style() -> None:
    """The report's look; in tables what a model writes is text, not HTML. Call it once, at the top of a notebook."""
    pd.set_option("display.max_colwidth", 120, "styler.format.escape", "html")  # whole prompts
    pd.set_option("display.multi_sparse", False, "styler.sparse.index", False)  # a row that moves keeps its names
    looks = read_yaml(Path(__file__).with_name("figures.yaml"))
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE, rc=looks)


def folder() -> Path:
    """figures/, or where KEDIT_FIGURES says; made when it is not there."""
    (where := figures_folder()).mkdir(parents=True, exist_ok=True)
    return where


def show(fig, name: str, caption: str, alt: str, data: pd.DataFrame) -> None:
    """Save `fig` as figures/<name>.png .svg .pdf with its numbers, `data`, as .csv. Show it with a caption (what is
    drawn, and what it shows) and with an alt text for readers who cannot see it."""
    where = folder()
    _label_short_logs(fig)
    if not fig.get_layout_engine():
        fig.tight_layout()
    fig.savefig(where / f"{name}.svg", metadata={"Date": None})
    fig.savefig(where / f"{name}.pdf", metadata={"CreationDate": None, "ModDate": None})
    picture = png_of(fig)
    (where / f"{name}.png").write_bytes(picture)
    data.to_csv(where / f"{name}.csv", index=False, float_format="%.6g")
    plt.close(fig)
    display(Image(picture, alt=alt))
    say(f"**Figure.** {caption}")


def png_of(fig) -> bytes:
    """The figure as a .png of few colours."""
    drawn, stored = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi="figure")
    picture = Picture.open(drawn).convert("RGB").quantize(COLOURS, dither=Picture.Dither.NONE)
    picture.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def _label_short_logs(fig) -> None:
    """Plain numbers on a logarithmic axis of less than a decade: 3.5 and not 3.5 × 10⁰."""
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        if axis.get_scale() == "log" and high < 10 * low:
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(ScalarFormatter())


def keep(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Save a table as figures/<name>.csv and hand it back."""
    table.to_csv(folder() / f"{name}.csv", index=False, float_format="%.6g")
    return table


def for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """A table in the report's words, at three digits; a point that was not reached and what was not asked are named."""

    def shown(value):
        return format(value, ",.0f" if 1e3 <= abs(value) < 1e6 else ".3g") if isinstance(value, float) else value

    gaps = {name: "not reached" if name.startswith("N_") else "not measured" for name in map(str, table)}
    return table.astype(object).map(shown, na_action="ignore").fillna(gaps).rename(columns=HEADERS)


def say(text: str) -> None:
    """Show a paragraph, in which nothing is HTML: it may quote what a model wrote."""
    display(Markdown(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)))


def verdict(claim: str, answer: str, number: str, where: str, figure: str) -> None:
    """The box a notebook opens with. claim: the report's; where: models and settings; figure: the one that shows it."""
    rows = {"The report says": claim, "Answer": answer, "Number": number, "Measured on": where}
    rows["Figure"] = f"[{figure}](../../figures/{figure}.png)"
    say("\n".join(f"> **{name}.** {text}  " for name, text in rows.items()))


def tick_at(axis, values) -> None:
    """Ticks of an axis at the values that were measured, as plain numbers."""
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def panels_of(count: int, columns: int, height: float = 3.0, **shared):
    """(figure, axes): `count` panels in rows of `columns`, as wide as a page."""
    rows = -(-count // columns)
    size = (WIDTH, height * rows + 0.4)
    fig, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **shared)
    for ax in grid.flat[count:]:
        ax.remove()
    return fig, list(grid.flat[:count])


def facets(grid, columns: int = 4) -> None:
    """The report's look for a seaborn grid: as wide as a page, panels named by value, legend below, gaps marked."""
    grid.set_titles(col_template="{col_name}", row_template="{row_name}", size=10)
    grid.figure.set_size_inches(WIDTH, grid.figure.get_figheight())
    grid.figure.set_layout_engine("constrained")
    if grid.legend is not None:
        sns.move_legend(grid, "outside lower center", ncols=columns, title=None, fontsize=9)
    empty = {ax for ax in grid.axes.flat if _is_empty(ax)}
    for ax in empty:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="dimgrey")
        if empty.issuperset(ax.get_shared_x_axes().get_siblings(ax)):  # no panel needs these ticks
            ax.set_xticks([])


def _is_empty(ax) -> bool:
    """Whether a panel has no curve and no cloud of points; lines across all of it do not count."""
    curves = (line for line in ax.lines if line.get_transform() == ax.transData)
    clouds = (cloud.get_offsets() for cloud in ax.collections)
    return all(len(set(curve.get_xdata())) < 2 for curve in curves) and all(len(cloud) < 2 for cloud in clouds)


def bands(grid, names, *by: str) -> None:
    """Bands from column low to column high behind a grid's curves, one for each value of the columns `by`; the first of
    these decides the colour, in the order of `names`."""
    names = list(names)
    for (row, col, _), here in grid.facet_data():
        for (name, *_), one in here.sort_values("edits").groupby(list(by), sort=False):
            look = {"color": PALETTE[names.index(name)], "alpha": 0.15, "linewidth": 0}
            grid.axes[row, col].fill_between(one.edits, one.low, one.high, **look)


def legend_below(fig, ax, columns: int = 5) -> None:
    """One legend for all panels, in rows under them, from the curves of one of them."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns), fontsize=9)
