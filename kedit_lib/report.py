"""The executed notebooks as web pages: `python -m kedit_lib.report` writes report/index.html and a page for each."""

import html
import sys
from pathlib import Path

from kedit_lib.errors import KeditError
from kedit_lib.params import REPOSITORY

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>kedit: the report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 18px/1.5 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style></head>
<body><h1>Sequential knowledge editing</h1><ol start="0">
{items}
</ol></body></html>
"""


def title_of(notebook: dict) -> str:
    """The first heading of a notebook."""
    texts = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    headings = [line.lstrip("# ").strip() for text in texts for line in text.splitlines() if line.startswith("#")]
    return headings[0] if headings else "untitled"


def write_report(executed: Path, report: Path) -> Path:
    """A page for each executed notebook, and an index of them; where the index is."""
    import nbformat
    from nbconvert import HTMLExporter

    sources = sorted(executed.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise KeditError(f"{executed}: holds no executed notebook; run 'make reproduce' first")
    report.mkdir(parents=True, exist_ok=True)
    exporter, items = HTMLExporter(), []
    for source in sources:
        notebook = nbformat.read(source, as_version=4)
        page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title_of(notebook)}})
        (report / f"{source.stem}.html").write_text(page, encoding="utf-8")
        items.append(f'<li><a href="{source.stem}.html">{html.escape(title_of(notebook))}</a></li>')
    index = report / "index.html"
    index.write_text(PAGE.format(items="\n".join(items)), encoding="utf-8")
    return index


if __name__ == "__main__":
    try:
        print(write_report(REPOSITORY / "notebooks" / "executed", REPOSITORY / "report"))
    except KeditError as error:
        sys.exit(f"kedit: {error}")
