"""The README's table of claims, what else was found and how fast the editors are, written from what `make reproduce`
and `make bench` left in figures/.

`kedit readme` rewrites the blocks between the markers; tests hold the two together.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError, first_line
from .claims import shown

BEGIN, END = "<!-- claims: written by kedit readme -->", "<!-- end of claims -->"
SPEED, SPEED_END = "<!-- speed: written by kedit readme -->", "<!-- end of speed -->"


def render(figures: Path) -> str:
    """The block for the README, markers included."""
    table = shown(figures)
    table["notebook"] = table.notebook.map(lambda n: f"[{n}](notebooks/executed/{_notebook(n)})")
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    answers = figures / "06_answers.md"
    why = f"Why it collapses, when, and what to do ([06](notebooks/executed/{_notebook('06')})):"
    rest = [_said(path) for path in sorted(figures.glob("*.md")) if path != answers]
    return "\n".join([BEGIN, *lines, "", why, "", _said(answers), "", "What else was measured:", "", *rest, END])


def _said(path: Path) -> str:
    return _bullets(path.read_text(encoding="utf-8").strip())


def speed(figures: Path) -> str:
    """The block on `make bench`, markers included."""
    tables = (pd.read_csv(figures / f"benchmarks{n}.csv") for n in ("", "_stream", "_moments", "_precision"))
    paths, stream, moments, digits = tables
    paths = paths[~paths.path.str.contains("float64")]
    lines = ["| one core, lab model | s/edit | times the plain path's speed | bar | in matrix products |"]
    lines += ["|---" * 5 + "|"]
    for row in paths.itertuples(index=False):
        row = dict(zip(paths.columns, row, strict=True))
        bar = "" if pd.isna(row["bar"]) else f"{row['bar']:.0f}"
        products = f"{row['in matrix products']:.0%}"
        lines.append(f"| {row['path']} | {row['s/edit']:.3f} | {row['times faster']:.1f} | {bar} | {products} |")
    short = paths[paths["times faster"] < paths.bar]
    said = [_along(name, rows) for name, rows in stream.groupby("path", sort=False)]
    ten = moments[moments["tokens / d_ff asked"] == 10].iloc[0]
    said.append(
        f"- Second moments on 10·d_ff tokens instead of all {ten['tokens of all texts']:,.0f}: C is off by "
        f"{ten['error of C']:.0%}, an update by {ten['error of an update (mean)']:.0%}."
    )
    worst = digits.loc[digits["condition of C"].idxmax()]
    said.append(
        f"- Closed forms are solved in float64: with C's condition number, here up to {worst['condition of C']:.1e}, "
        f"float32 would put C⁻¹k off by {worst['error of C⁻¹k in float32']:.1e} and (λC + KKᵀ)⁻¹K of "
        f"{worst['keys']:.0f} keys by {worst['error of (λC + KKᵀ)⁻¹K in float32']:.1e}."
    )
    if len(short):
        said.append(
            f"- Short of the bar: {'; '.join(short.path)}. Matrix products and attention are "
            f"{_range(short['in matrix products'])} of their time, small ones at that; in all they reach "
            f"{_range(short['share of roofline reached'])} of what this core's arithmetic and memory allow. The rest "
            "are many small operations, which the plain path pays for as well."
        )
    return "\n".join([SPEED, *lines, "", *said, SPEED_END])


def _along(name: str, rows: pd.DataFrame) -> str:
    seconds, memory, n = rows["s/edit"].to_numpy(), rows["peak MB"].to_numpy(), rows["edits so far"].iloc[-1]
    return (
        f"- {name}, {n:,} edits one at a time, {rows['steps'].mean():.0f} steps each: the last hundred cost "
        f"{seconds[-1] / seconds[0]:.2f} times the first ({(seconds[-1] - seconds[0]) / n:+.1e} s an edit for each "
        f"before it), memory {memory[-1] - memory[0]:+.0f} MB."
    )


def _range(shares: pd.Series) -> str:
    return f"{shares.min():.0%} to {shares.max():.0%}"


def _bullets(text: str) -> str:
    return text if text.startswith("- ") else f"- {text}"


def _notebook(number: str) -> str:
    return next((REPOSITORY / "notebooks").glob(f"{number}_*.ipynb")).name


def put(path: Path, blocks: list[str]) -> None:
    """Each block in the place of the one in the file that begins and ends with the same lines. KeditError when there
    is none."""
    text = path.read_text(encoding="utf-8")
    for block in blocks:
        begin, *_, end = block.splitlines()
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise KeditError(f"{path.name}: has no block from {begin!r} to {end!r}; put these two lines in")
        text = before + block + after
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def rewrite() -> None:
    """Write both blocks into README.md. KeditError when figures/ lacks what they are made of."""
    folder = REPOSITORY / "figures"
    try:
        blocks = [render(folder), speed(folder)]
    except (OSError, ValueError, KeyError) as error:
        raise KeditError(f"figures: cannot be read ({first_line(error)}); run make reproduce and make bench") from error
    put(REPOSITORY / "README.md", blocks)
