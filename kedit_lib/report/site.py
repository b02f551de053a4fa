"""The report as a web site: `kedit report` writes report/index.html, which needs no server and no network.

Sphinx makes it from the executed notebooks and docs/*.md: MyST reads the Markdown, Furo has the contents column, the
search and the dark mode, sphinx-copybutton copies code, tables.js aligns and sorts tables, `setup` writes formulas.
index.html holds the README's first lines and the verdict of each notebook.

Whatever a model wrote is shown as text: outputs are rendered and cleaned here, and reach Sphinx as finished HTML.
"""

import base64
import re
import shutil
import tempfile
from html import escape
from pathlib import Path

import bleach
import nbformat
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from sphinx.application import Sphinx

from ..data.atomic import replacing
from ..data.config import REPOSITORY
from ..errors import KeditError
from .notebooks import VERDICT, tags_of

PAGES = Path(__file__).resolve().parent / "pages"
FORMS = (".svg", ".pdf", ".csv")  # of a figure, for download
CAPTION = "**Figure.** "  # how figures.show begins the paragraph below a picture
LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)\s]+)\)")  # of Markdown, no picture
FENCE = "`" * 12  # longer than any that a text has
TAGS = (  # of what pandas writes; nothing else of HTML is let through
    "a abbr b blockquote br caption code dd div dl dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre span strong sub sup "
    "table tbody td th thead tr ul"
).split()
ATTRIBUTES = {"*": ["id"], "a": ["href", "title"], "th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"]}
SETTINGS = {
    "project": "kedit",
    "extensions": ["myst_parser", "sphinx_copybutton", __name__],
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "myst_all_links_external": True,  # `linked` has resolved them
    "html_theme": "furo",
    "html_title": "Sequential knowledge editing",
    "html_static_path": [str(PAGES)],
    "html_css_files": ["report.css"],
    "html_js_files": [("tables.js", {"defer": "defer"})],
    "html_math_renderer": "mathml",
    "html_show_search_summary": False,  # a page that lies in a folder may not read the others
    "html_copy_source": False,
    "html_use_index": False,
    "html_show_copyright": False,
    "smartquotes": False,
}


def write_report(executed: Path, figures: Path, report: Path, root: Path = REPOSITORY) -> Path:
    """Write the site of executed notebooks and of README.md and docs/ in `root` to `report`, atomically; its index."""
    paths = sorted(executed.glob("*.ipynb"))
    if not paths:
        raise KeditError(f"{executed}: holds no executed notebook; run 'make reproduce' first")
    cells = {path.stem: nbformat.read(path, 4).cells for path in paths}
    docs = {path.stem: path.read_text(encoding="utf-8") for path in sorted((root / "docs").glob("*.md"))}
    texts = {stem: "\n".join(c.source for c in some if c.cell_type == "markdown") for stem, some in cells.items()}
    site = Site(texts | docs, {path.read_bytes(): path.stem for path in sorted(figures.glob("*.png"))})
    pages = {stem: site.page(some) for stem, some in cells.items()}
    pages |= {stem: site.linked(text) for stem, text in docs.items()}
    pages["index"] = site.index(root / "README.md", cells, docs)
    with replacing(report) as partial, tempfile.TemporaryDirectory() as scratch:
        folder, extra = Path(scratch) / "source", Path(scratch) / "extra"
        folder.mkdir()
        (folder / "figures").symlink_to((root / "figures").resolve())  # for the README's picture
        (extra / "figures").mkdir(parents=True)
        for name in site.shown:
            for form in (".png", *FORMS):
                shutil.copy(figures / f"{name}{form}", extra / "figures")
        for stem, text in pages.items():
            (folder / f"{stem}.md").write_text(text, encoding="utf-8")
        _build(folder, partial, extra)
    return report / "index.html"


def _build(folder: Path, out: Path, extra: Path) -> None:
    settings, doctrees = {**SETTINGS, "html_extra_path": [str(extra)]}, folder.parent / "doctrees"
    Sphinx(folder, None, out, doctrees, "html", settings, status=None, warning=None).build()
    for left in (".buildinfo", "objects.inv"):
        (out / left).unlink(missing_ok=True)


class Site:
    """Pages as MyST, from {name of a page: its Markdown} and {a figure's content: its name}; `shown`: the figures'
    names that stand on them."""

    def __init__(self, texts: dict[str, str], figures: dict[bytes, str]):
        self.figures, self.shown, self.titles = figures, set(), {}
        for stem, text in texts.items():
            title = re.search(r"^# (.*)", text, re.MULTILINE)
            number = f"{stem[:2]} · " if stem[:2].isdigit() else ""
            self.titles[stem] = number + (title[1].strip() if title else stem)

    def linked(self, text: str) -> str:
        """Markdown whose links lead to pages of the site, a figure's to the page of its number; of any other link only
        the text stays."""

        def change(link: re.Match) -> str:
            label, (path, hash_, anchor) = link[1], link[2].partition("#")
            stem, suffix = Path(path).stem, Path(path).suffix
            if not path or path.startswith(("http:", "https:")):
                return link[0]
            if suffix == ".png":
                page = next((page for page in self.titles if page[:3] == stem[:3] and stem[:2].isdigit()), None)
                return f"[{label}]({page}.html#{stem})" if page else label
            return f"[{label}]({stem}.html{hash_}{anchor})" if stem in self.titles else label

        return LINK.sub(change, text)

    def index(self, readme: Path, cells: dict[str, list], docs: dict) -> str:
        """The README's first lines, the verdicts, and the order of the pages."""
        first = readme.read_text(encoding="utf-8").split("\n## ")[0] if readme.exists() else "# Report"
        parts = [self.linked(first), "## What each notebook answers"]
        for stem, some in cells.items():
            verdicts = [self.outputs(cell) for cell in some if VERDICT in tags_of(cell)]
            parts += [f"### [{self.titles[stem]}]({stem}.html)", *verdicts]
        for caption, stems in (("Notebooks", cells), ("Pages", docs)):
            names = [f"{self.titles[stem]} <{stem}>" for stem in stems]
            parts.append("\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", "", *names, "```"]))
        return "\n\n".join(parts)

    def page(self, cells: list) -> str:
        """A notebook: its prose, its code folded, its outputs as HTML."""
        parts = []
        for cell in cells:
            if cell.cell_type == "markdown":
                parts.append(self.linked(cell.source))
            elif cell.cell_type == "code" and (code := cell.source.strip()):
                lines = len(code.splitlines())
                top = f'<details class="code"><summary>code, {lines} line{"s" if lines > 1 else ""}</summary>'
                folded = f"{top}\n\n{FENCE}python\n{code}\n{FENCE}\n\n</details>"
                shown = self.outputs(cell)
                parts += [shown, folded] if VERDICT in tags_of(cell) else [folded, shown]
        return "\n\n".join(parts)

    def outputs(self, cell) -> str:
        """What a cell printed and showed, as one raw block."""
        shown = []
        for output in cell.outputs:
            data = output.get("data") or {"text/plain": output.get("text", "")}
            markdown = data.get("text/markdown", "")
            if "image/png" in data:
                shown.append(self.figure(data["image/png"], output.metadata.get("image/png", {}).get("alt", "")))
            elif markdown.startswith(CAPTION) and shown and "<figcaption>" in shown[-1]:
                caption = self.prose(markdown.removeprefix(CAPTION))
                shown[-1] = shown[-1].replace("<figcaption>", f"<figcaption>{caption}")
            elif markdown:
                shown.append(self.prose(markdown))
            elif "text/html" in data:
                shown.append(cleaned(data["text/html"]))
            elif text := data.get("text/plain"):
                shown.append(f'<pre class="said">{escape(text)}</pre>')
        kind, whole = "verdict" if VERDICT in tags_of(cell) else "output", "\n".join(shown).replace(FENCE, "")
        return f'{FENCE}{{raw}} html\n<div class="{kind}">\n{whole}\n</div>\n{FENCE}' if shown else ""

    def prose(self, text: str) -> str:
        """Markdown that a run wrote, in which nothing is HTML."""
        return boxed(MarkdownIt("commonmark", {"html": False}).enable("table").render(self.linked(text)))

    def figure(self, picture: str, alt: str) -> str:
        """A picture; one of figures/ comes with its other forms, and can be linked to by its name."""
        source, links, anchor = f"data:image/png;base64,{picture.strip()}", "", ""
        if name := self.figures.get(base64.b64decode(picture)):
            self.shown.add(name)
            source, anchor = f"figures/{name}.png", f' id="{name}"'
            links = " ".join(f'<a href="figures/{name}{form}">{form[1:].upper()}</a>' for form in FORMS)
        image = f'<div class="wide" tabindex="0"><img src="{source}" alt="{escape(alt)}"></div>'
        return f'<figure{anchor}>{image}<figcaption><p class="files">{links}</p></figcaption></figure>'


def cleaned(text: str) -> str:
    """HTML without style sheets, and without anything but text, tables and links."""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return boxed(bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES))


def boxed(text: str) -> str:
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
