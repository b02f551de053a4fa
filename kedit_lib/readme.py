"""The README's table of claims and what else was found, written from what the default run left in figures/.

`python -m kedit_lib.readme` rewrites the block between the markers; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

from .claims import shown
from .params import REPOSITORY

BEGIN, END = "<!-- claims: written by python -m kedit_lib.readme -->", "<!-- end of claims -->"


def render(figures: Path) -> str:
    """The block for the README, markers included."""
    table = shown(figures)
    table["notebook"] = table.notebook.map(lambda n: f"[{n}](notebooks/executed/{_notebook(n)})")
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    found = [_bullets(path.read_text(encoding="utf-8").strip()) for path in sorted(figures.glob("*.md"))]
    return "\n".join([BEGIN, *lines, "", "Beyond the report's own sentences:", "", *found, END])


def _bullets(text: str) -> str:
    return text if text.startswith("- ") else f"- {text}"


def _notebook(number: str) -> str:
    return next((REPOSITORY / "notebooks").glob(f"{number}_*.ipynb")).name


def main() -> int:
    path = REPOSITORY / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(before + render(REPOSITORY / "figures") + rest.split(END)[1], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
