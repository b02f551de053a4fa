"""The executed notebooks as web pages: `kedit report` writes report/index.html and a page for each.

A page needs nothing but itself: no font, no address of anything outside; its pictures are inside, and so is the one
script, which sorts tables (its content policy lets no other run). Whatever a model wrote is shown as text. A figure's
vector forms and its numbers lie beside the pages, in report/figures.
"""

import base64
import html
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from kedit_lib.data.atomic import replacing
from kedit_lib.errors import KeditError
from kedit_lib.report.html_tables import PAGES, POLICY, SCRIPT, tidied

FORMS = (".svg", ".pdf", ".csv")  # of a figure, for download
CAPTION = "**Figure.** "  # how figures.show begins the paragraph below a picture
TAGS = (
    "a abbr b blockquote br caption code dd div dl dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre span strong sub sup "
    "table tbody td th thead tr ul"
).split()
ATTRIBUTES = {"*": ["class", "id"], "a": ["href", "title"], "th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"]}


@dataclass(frozen=True)
class Page:
    """One page and its neighbors in reading order, as the template sees it."""

    stem: str
    title: str
    question: str  # the first paragraph below the title
    before: "Page | None" = None
    after: "Page | None" = None

    @property
    def file(self) -> str:
        return f"{self.stem}.html"

    @staticmethod
    def name_code(cell) -> str:
        """What is written on a folded cell."""
        lines = len(cell.source.splitlines())
        return f"code, {lines} line{'s' if lines > 1 else ''}"


def write_report(executed: Path, figures: Path, report: Path) -> Path:
    """A page for each executed notebook, and an index of them; where the index is.

    `report` is written anew, and takes the old one's place when it is whole.
    """
    import nbformat

    sources = sorted(executed.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise KeditError(f"{executed}: holds no executed notebook; run 'make reproduce' first")
    notebooks = [nbformat.read(source, as_version=4) for source in sources]
    pages = [_page(s.stem, n) for s, n in zip(sources, notebooks, strict=True)]
    with replacing(report) as partial:
        _write_pages(pages, notebooks, figures, partial)
    return report / "index.html"


def _write_pages(pages: list[Page], notebooks: list, figures: Path, folder: Path) -> None:
    (folder / "figures").mkdir(parents=True)
    exporter, known = _exporter(), {p.read_bytes(): p.stem for p in sorted(figures.glob("*.png"))}
    for before, page, after, notebook in zip([None, *pages], pages, [*pages[1:], None], notebooks, strict=False):
        for name in _prepare(notebook, known):
            for form in FORMS:
                shutil.copyfile(figures / f"{name}{form}", folder / "figures" / f"{name}{form}")
        resources = {"page": replace(page, before=before, after=after), "policy": POLICY, "script": SCRIPT}
        text, _ = exporter.from_notebook_node(notebook, resources=resources)
        (folder / page.file).write_text(_linked(text, pages), encoding="utf-8")
    (folder / "index.html").write_text(_index(pages), encoding="utf-8")


def _page(stem: str, notebook) -> Page:
    """Title and question are the first heading and the first paragraph of a notebook."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    parts = [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]
    title = next((part.lstrip("# ") for part in parts if part.startswith("#")), stem)
    question = next((part for part in parts if not part.startswith("#")), "")
    return Page(stem, title, question)


def _exporter():
    """nbconvert with the template of this package. Its filters: `tidied` is `html_tables.tidied`, `sanitise` lets
    through text, tables and links, `boxed` puts each table into a box that it can scroll in."""
    import bleach
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_template_paths=[str(PAGES)], template_file="page.html.j2")
    exporter.register_filter("tidied", tidied)
    exporter.register_filter("sanitise", lambda text: bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES))
    box = r'<div class="wide" tabindex="0">\1</div>'
    exporter.register_filter("boxed", lambda text: re.sub(r"(<table.*?</table>)", box, text, flags=re.DOTALL))
    return exporter


def _prepare(notebook, known: dict[bytes, str]) -> list[str]:
    """Join every picture with the caption below it and its files; the figures' names.

    known: {content of a figure's .png: its name}
    """
    names = []
    for cell in notebook.cells:
        kept = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if kept and data.get("text/markdown", "").startswith(CAPTION) and "image/png" in kept[-1].get("data", {}):
                kept[-1].metadata["caption"] = data["text/markdown"].removeprefix(CAPTION)
                continue
            if "image/png" in data and (name := known.get(base64.b64decode(data["image/png"]))):
                output.metadata["files"] = [f"figures/{name}{form}" for form in FORMS]
                names.append(name)
            kept.append(output)
        if "outputs" in cell:
            cell.outputs = kept
    return names


def _linked(text: str, pages: list[Page]) -> str:
    """Where the text names another notebook in code letters, a link to its page."""
    for page in pages:
        text = text.replace(f"<code>{page.stem}</code>", f'<a href="{page.file}"><code>{page.stem}</code></a>')
    return text


def _index(pages: list[Page]) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True)
    return environment.get_template("index.html.j2").render(pages=pages, plain=_plain)


def _plain(markdown: str) -> str:
    """A paragraph of Markdown as plain text."""
    return html.unescape(re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]", r"\1", markdown))
