"""The report as a web site: `kedit report` writes report/index.html, which needs no server and no network.

Sphinx makes it from the executed notebooks and docs/*.md: MyST reads the Markdown, Furo has the contents column, the
search and the dark mode, sphinx-copybutton copies code, tables.js aligns and sorts tables, `setup` writes formulas.
index.html holds the README's first lines and the verdict of each notebook.

Whatever a model wrote is shown as text: outputs are rendered and cleaned here, and reach Sphinx as finished HTML.
"""

import base64
import html
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat

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


@dataclass(frozen=True)
class Site:
    """What is shown: {name of a page: its title}, the folder of the figures, {a figure's content: its name}."""

    titles: dict[str, str]
    figures: Path
    known: dict[bytes, str]

    def linked(self, text: str, ending: str) -> str:
        """Markdown whose links lead to pages of the site; of any other link only the text stays."""

        def change(link: re.Match) -> str:
            label, target = link.groups()
            path, _, anchor = target.partition("#")
            stem, suffix = Path(path).stem, Path(path).suffix
            if re.match(r"https?:", target) or target.startswith("#"):
                return link[0]
            if suffix == ".png" and (page := self.page_of(stem)):
                return f"[{label}]({page}.html#{stem})"
            if suffix in (".ipynb", ".md") and stem in self.titles:
                return f"[{label}]({stem}{ending}{'#' + anchor if anchor else ''})"
            return label

        return LINK.sub(change, text)

    def named(self, page: str) -> str:
        """A page's title, after its number if it has one."""
        number = page.partition("_")[0]
        return f"{number} · {self.titles[page]}" if number.isdigit() else self.titles[page]

    def page_of(self, figure: str) -> str | None:
        """The page of a figure, by number: "02_collapse" stands in notebook 02."""
        return next((page for page in self.titles if page[:2].isdigit() and page[:3] == figure[:3]), None)


def write_report(executed: Path, figures: Path, report: Path, root: Path = REPOSITORY) -> Path:
    """Write the site of executed notebooks and of README.md and docs/ in `root` to `report`, atomically; its index."""
    paths = [path for path in sorted(executed.glob("*.ipynb")) if not path.stem.endswith(".running")]
    if not paths:
        raise KeditError(f"{executed}: holds no executed notebook; run 'make reproduce' first")
    sources = {path.stem: nbformat.read(path, 4) for path in paths}
    docs = {path.stem: path.read_text(encoding="utf-8") for path in sorted((root / "docs").glob("*.md"))}
    titles = {stem: _title(_markdown(notebook), stem) for stem, notebook in sources.items()}
    known = {path.read_bytes(): path.stem for path in sorted(figures.glob("*.png"))}
    site = Site(titles | {stem: _title(text, stem) for stem, text in docs.items()}, figures, known)
    with replacing(report) as partial, tempfile.TemporaryDirectory() as scratch:
        folder, extra = Path(scratch) / "source", Path(scratch) / "extra"
        folder.mkdir()
        (extra / "figures").mkdir(parents=True)
        for stem, notebook in sources.items():
            (folder / f"{stem}.md").write_text(_page(notebook, site, extra / "figures"), encoding="utf-8")
        for stem, text in docs.items():
            (folder / f"{stem}.md").write_text(site.linked(text, ".md"), encoding="utf-8")
        (folder / "index.md").write_text(_index(root, sources, docs, site, extra / "figures"), encoding="utf-8")
        _build(folder, partial, extra)
    return report / "index.html"


def _build(folder: Path, out: Path, extra: Path) -> None:
    from sphinx.application import Sphinx

    settings = {**SETTINGS, "html_extra_path": [str(extra)]}
    doctrees = folder.parent / "doctrees"
    Sphinx(folder, None, out, doctrees, "html", settings, status=None, warning=None).build()
    for left in (".buildinfo", "objects.inv"):
        (out / left).unlink(missing_ok=True)


def _title(text: str, stem: str) -> str:
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), stem)


def _markdown(notebook: dict) -> str:
    return "\n\n".join(cell.source for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def _index(root: Path, sources: dict, docs: dict, site: Site, files: Path) -> str:
    """The summary, and the order of the pages."""

    def picture(image: re.Match) -> str:
        alt, path = image.groups()
        if not (root / path).is_file():
            return ""
        shutil.copyfile(root / path, files / Path(path).name)
        return f'<img src="figures/{Path(path).name}" alt="{html.escape(alt)}">'

    readme = root / "README.md"
    first = readme.read_text(encoding="utf-8").split("\n## ")[0] if readme.exists() else "# Report"
    first = site.linked(re.sub(r"!\[([^]]*)\]\(([^)]+)\)", picture, first), ".md")
    parts = [first, "## What each notebook answers"]
    for stem, notebook in sources.items():
        said = [_outputs(cell, site) for cell in notebook["cells"] if VERDICT in tags_of(cell)]
        parts += [f"### [{site.named(stem)}]({stem}.md)", *said]
    for caption, stems in (("Notebooks", sources), ("Pages", docs)):
        names = [f"{site.named(stem)} <{stem}>" for stem in stems]
        parts.append("\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", "", *names, "```"]))
    return "\n\n".join(parts)


def _page(notebook: dict, site: Site, files: Path) -> str:
    """A notebook as MyST: its prose, its code folded, its outputs as HTML; its figures are copied to `files`."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(site.linked(cell.source, ".md"))
        elif cell["cell_type"] == "code" and (code := cell.source.strip()):
            lines = len(code.splitlines())
            top = f'<details class="code"><summary>code, {lines} line{"s" if lines > 1 else ""}</summary>'
            folded = [top, f"{FENCE}python\n{code}\n{FENCE}", "</details>"]
            shown = [_outputs(cell, site, files)]
            parts += shown + folded if VERDICT in tags_of(cell) else folded + shown
    return "\n\n".join(parts)


def _outputs(cell: dict, site: Site, files: Path | None = None) -> str:
    """What a cell printed and showed, as one raw block."""
    shown, outputs = [], [{**o, "data": _texts(o.get("data", {}))} for o in cell.get("outputs", [])]
    for output, after in zip(outputs, [*outputs[1:], {"data": {}}], strict=False):
        data = output["data"]
        if "image/png" in data:
            caption = after["data"].get("text/markdown", "")
            alt = output["metadata"].get("image/png", {}).get("alt", "")
            shown.append(_figure(data["image/png"], alt, caption.removeprefix(CAPTION), site, files))
        elif (text := data.get("text/markdown")) is not None:
            shown += [] if text.startswith(CAPTION) and shown and "<figure" in shown[-1] else [_prose(text, site)]
        elif "text/html" in data:
            shown.append(_cleaned(data["text/html"]))
        elif text := data.get("text/plain") or "".join(output.get("text", "")):
            shown.append(f'<pre class="said">{html.escape(text)}</pre>')
    kind = "verdict" if VERDICT in tags_of(cell) else "output"
    whole = re.sub(r"\n\s*\n", "\n", "\n".join(shown)).replace(FENCE, "")
    return f'{FENCE}{{raw}} html\n<div class="{kind}">\n{whole}\n</div>\n{FENCE}' if shown else ""


def _texts(data: dict) -> dict[str, str]:
    return {kind: "".join(text) for kind, text in data.items() if isinstance(text, (str, list))}


def _prose(text: str, site: Site) -> str:
    """Markdown that a run wrote, in which nothing is HTML."""
    from markdown_it import MarkdownIt

    return _boxed(MarkdownIt("commonmark", {"html": False}).enable("table").render(site.linked(text, ".html")))


def _cleaned(text: str) -> str:
    """HTML without style sheets, and without anything but text, tables and links."""
    import bleach

    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return _boxed(bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES))


def _boxed(text: str) -> str:
    """Each table in a box that it can scroll in."""
    return re.sub(r"<table.*?</table>", r'<div class="wide" tabindex="0">\g<0></div>', text, flags=re.DOTALL)


def _figure(picture: str, alt: str, caption: str, site: Site, files: Path | None) -> str:
    content, links, anchor = base64.b64decode(picture), "", ""
    source = f"data:image/png;base64,{picture.strip()}"
    if files is not None and (name := site.known.get(content)):
        for form in (".png", *FORMS):
            shutil.copyfile(site.figures / f"{name}{form}", files / f"{name}{form}")
        source, anchor = f"figures/{name}.png", f' id="{name}"'
        links = " ".join(f'<a href="figures/{name}{form}">{form[1:].upper()}</a>' for form in FORMS)
    image = f'<div class="wide" tabindex="0"><img src="{source}" alt="{html.escape(alt)}"></div>'
    below = f'{_prose(caption, site)}<p class="files">{links}</p>'
    return f"<figure{anchor}>{image}<figcaption>{below}</figcaption></figure>"


def setup(app):
    """This module as a Sphinx extension: formulas as MathML, which browsers draw without a script or a font."""
    from docutils import nodes
    from latex2mathml.converter import convert

    def inline(translator, node):
        translator.body.append(convert(node.astext()))
        raise nodes.SkipNode

    def block(translator, node):
        formula = convert(node.astext(), display="block")
        translator.body.append(f'<div class="wide math" tabindex="0">{formula}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
