"""The README's table of claims, what else was found and how fast the editors are, written from what `make reproduce`
and `make bench` left in figures/.

`python -m kedit_lib.readme` rewrites the blocks between the markers; tests hold the two together.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .claims import shown
from .params import REPOSITORY

BEGIN, END = "<!-- claims: written by python -m kedit_lib.readme -->", "<!-- end of claims -->"
SPEED, SPEED_END = "<!-- speed: written by python -m kedit_lib.readme -->", "<!-- end of speed -->"


def render(figures: Path) -> str:
    """The block for the README, markers included."""
    table = shown(figures)
    table["notebook"] = table.notebook.map(lambda n: f"[{n}](notebooks/executed/{_notebook(n)})")
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    found = [_bullets(path.read_text(encoding="utf-8").strip()) for path in sorted(figures.glob("*.md"))]
    return "\n".join([BEGIN, *lines, "", "Beyond the report's own sentences:", "", *found, END])


def speed(figures: Path) -> str:
    """The block on `make bench`, markers included."""
    paths, stream, moments = (pd.read_csv(figures / f"benchmarks{n}.csv") for n in ("", "_stream", "_moments"))
    paths = paths[~paths.path.str.contains("float64")]
    lines = ["| one core, lab model | s/edit | times the plain path's speed | bar | spent in optimisation steps |"]
    lines += ["|---" * 5 + "|"]
    for row in paths.itertuples(index=False):
        row = dict(zip(paths.columns, row, strict=True))
        bar = "" if pd.isna(row["bar"]) else f"{row['bar']:.0f}"
        steps = row["share: steps"] + row["share: first pass"]
        lines.append(f"| {row['path']} | {row['s/edit']:.3f} | {row['times faster']:.1f} | {bar} | {steps:.0%} |")
    short = paths[paths["times faster"] < paths.bar]
    said = [_along(name, rows) for name, rows in stream.groupby("path", sort=False)]
    ten = moments[moments["tokens / d_ff asked"] == 10].iloc[0]
    said.append(
        f"- Second moments on 10·d_ff tokens instead of all {ten['tokens of all texts']:,.0f}: C is off by "
        f"{ten['error of C']:.0%}, an update by {ten['error of an update (mean)']:.0%}."
    )
    if len(short):
        reached = short["share of roofline reached"]
        said.append(
            f"- Short of the bar: {'; '.join(short.path)}. They reach {reached.min():.0%} to {reached.max():.0%} of "
            "what this core's arithmetic and memory allow; most of a step is what an operation costs at any size, as "
            "the wider models show."
        )
    return "\n".join([SPEED, *lines, "", *said, SPEED_END])


def _along(name: str, rows: pd.DataFrame) -> str:
    seconds, memory = rows["s/edit"].to_numpy(), rows["peak MB"].to_numpy()
    return (
        f"- {name}, {rows['edits so far'].iloc[-1]:,} edits one at a time: the last hundred cost "
        f"{seconds[-1] / seconds[0]:.2f} times the first, memory {memory[-1] - memory[0]:+.0f} MB."
    )


def _bullets(text: str) -> str:
    return text if text.startswith("- ") else f"- {text}"


def _notebook(number: str) -> str:
    return next((REPOSITORY / "notebooks").glob(f"{number}_*.ipynb")).name


def main() -> int:
    path = REPOSITORY / "README.md"
    text = path.read_text(encoding="utf-8")
    for begin, end, block in ((BEGIN, END, render), (SPEED, SPEED_END, speed)):
        before, rest = text.split(begin)
        text = before + block(REPOSITORY / "figures") + rest.split(end)[1]
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
