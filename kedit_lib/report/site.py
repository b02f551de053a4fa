"""The report as a web site, read without a server or a network: `kedit report` writes report/index.html and a page for
each executed notebook and each of docs/*.md, by Sphinx with MyST and Furo (site.yaml). Whatever a model wrote is shown
as text: outputs are rendered and cleaned here (templates/), and reach Sphinx as finished HTML.
"""

import base64
import functools
import re
import shutil
import tempfile
from pathlib import Path

import bleach
import nbformat
from docutils.nodes import SkipNode
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from sphinx.application import Sphinx

from ..data.atomic import replacing
from ..data.config import REPOSITORY, read_yaml
from ..errors import KeditError

PAGES = Path(__file__).resolve().parent / "pages"
FORMS = (".svg", ".pdf", ".csv")  # of a figure, for download
LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)\s]+)\)")  # of Markdown, no picture
FENCE = "`" * 12  # longer than any that a text has
TAGS = "a b br caption code div em i p pre span strong sub sup table tbody td th thead tr".split()  # no other HTML
ATTRIBUTES = {"*": ["id"], "a": ["href", "title"], "th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"]}
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")  # of what a run wrote: nothing in it is HTML


def write_report(executed: Path, figures: Path, report: Path, root: Path = REPOSITORY) -> Path:
    """Write the site of executed notebooks and of README.md and docs/ in `root` to `report`, atomically; its index."""
    notebooks = {path.stem: nbformat.read(path, 4).cells for path in sorted(executed.glob("*.ipynb"))}
    if not notebooks:
        raise KeditError(f"{executed}: holds no executed notebook; run 'make reproduce' first")
    docs = {path.stem: path.read_text(encoding="utf-8") for path in sorted((root / "docs").glob("*.md"))}
    readme = (root / "README.md").read_text(encoding="utf-8") if (root / "README.md").exists() else "# Report"
    known = {path.read_bytes(): path.stem for path in sorted(figures.glob("*.png"))}
    with replacing(report) as partial, tempfile.TemporaryDirectory() as scratch:
        folder, extra = Path(scratch) / "source", Path(scratch) / "extra"
        folder.mkdir()
        (folder / "figures").symlink_to((root / "figures").resolve())  # for the README's picture
        (extra / "figures").mkdir(parents=True)
        for path in figures.glob("*"):
            if path.stem in known.values() and path.suffix in (".png", *FORMS):
                shutil.copy(path, extra / "figures")
        for stem, text in _pages(notebooks, docs, readme, known).items():
            (folder / f"{stem}.md").write_text(text, encoding="utf-8")
        settings = read_yaml(PAGES.parent / "site.yaml")
        settings |= {"html_static_path": [str(PAGES)], "html_extra_path": [str(extra)]}
        Sphinx(folder, None, partial, Path(scratch) / "doctrees", "html", settings, status=None, warning=None).build()
        for left in (".buildinfo", "objects.inv"):
            (partial / left).unlink(missing_ok=True)
    return report / "index.html"


def _pages(notebooks: dict[str, list], docs: dict[str, str], readme: str, known: dict[bytes, str]) -> dict[str, str]:
    """{name: MyST} of every page. known: {a figure's content: its name}."""
    prose = {stem: "\n".join(c.source for c in cells if c.cell_type == "markdown") for stem, cells in notebooks.items()}
    titles = {stem: _title(stem, text) for stem, text in (prose | docs).items()}
    linked = functools.partial(_linked, titles=titles)
    templates = Environment(loader=FileSystemLoader(PAGES.parent / "templates"), undefined=ChainableUndefined)
    templates.globals |= {"titles": titles, "forms": FORMS, "fence": FENCE}
    templates.filters |= {"linked": linked, "cleaned": _cleaned}
    templates.filters["prose"] = lambda text: _boxed(MARKDOWN.render(linked(text)))
    templates.filters["figure_name"] = lambda picture: known.get(base64.b64decode(picture))
    index, notebook = (templates.get_template(f"{name}.md.j2") for name in ("index", "notebook"))
    pages = {"index": index.render(first=readme.split("\n## ")[0], notebooks=notebooks, docs=docs)}
    pages |= {stem: notebook.render(cells=cells) for stem, cells in notebooks.items()}
    return pages | {stem: linked(text) for stem, text in docs.items()}


def _title(stem: str, text: str) -> str:
    title = re.search(r"^# (.*)", text, re.MULTILINE)
    number = f"{stem[:2]} · " if stem[:2].isdigit() else ""
    return number + (title[1].strip() if title else stem)


def _linked(text: str, titles: dict[str, str]) -> str:
    """Markdown whose links lead to pages of the site, a figure's to that of its number; of others the text stays."""

    def change(link: re.Match) -> str:
        label, (path, hash_, anchor) = link[1], link[2].partition("#")
        stem, suffix = Path(path).stem, Path(path).suffix
        if not path or path.startswith(("http:", "https:")):
            return link[0]
        if suffix == ".png":
            page = next((page for page in titles if page[:3] == stem[:3] and stem[:2].isdigit()), None)
            return f"[{label}]({page}.html#{stem})" if page else label
        return f"[{label}]({stem}.html{hash_}{anchor})" if stem in titles else label

    return LINK.sub(change, text)


def _cleaned(text: str) -> str:
    """HTML without style sheets, and without anything but text, tables and links."""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return _boxed(bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES))


def _boxed(text: str) -> str:
    """Each table in a box that it can scroll in."""
    return re.sub(r"<table.*?</table>", r'<div class="wide" tabindex="0">\g<0></div>', text, flags=re.DOTALL)


def setup(app):
    """This module as a Sphinx extension: formulas as MathML, which browsers draw without a script or a font."""

    def renderer(template: str, **options):
        def draw(translator, node):
            translator.body.append(template.format(convert(node.astext(), **options)))
            raise SkipNode

        return draw, None

    block = renderer('<div class="wide math" tabindex="0">{}</div>', display="block")
    app.add_html_math_renderer("mathml", renderer("{}"), block)
    return {"parallel_read_safe": True}
