"""The web pages in a real browser: quiet, complete, and readable on a phone."""

import re
import shutil

import nbformat
import pandas as pd
import pytest
from library import refused
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import sync_playwright

from kedit_lib.data.config import REPOSITORY
from kedit_lib.report import site as report

pytestmark = pytest.mark.slow
PHONE = 390  # pixels
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"><b>bold</b>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "quic background-networking component-update sync gpu".split()
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]


def needs_browser(test):
    no_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
    return pytest.mark.browser(no_chromium(test))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report of the committed notebooks."""
    where = tmp_path_factory.mktemp("site") / "report"
    return report.write_report(REPOSITORY / "notebooks" / "executed", REPOSITORY / "figures", where).parent


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's Chromium without a window, with a profile of its own."""
    profile = tmp_path_factory.mktemp("browser")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def open_page(browser):
    """`open_page(path, width)`: a tab with that page; its .errors are what the console said and what was thrown, its
    .requests every address that it asked for."""
    tabs = []

    def opened(path, width=1200):
        tab = browser.new_page()
        tabs.append(tab)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.errors, tab.requests = [], []
        tab.on("pageerror", lambda thrown: tab.errors.append(thrown))
        tab.on("console", lambda said: tab.errors.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("request", lambda asked: tab.requests.append(asked.url))
        tab.goto(path if isinstance(path, str) else path.as_uri())
        return tab

    yield opened
    for tab in tabs:
        tab.close()


def test_the_site_is_small_and_asks_the_network_for_nothing(site):
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) < 15_000_000
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:link|script|img|iframe|object)\b[^>]*?\s(?:src|href|data)=\"([^\"]*)\"", text)
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == [], page.name


def test_the_index_names_every_page_and_says_each_verdict(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for notebook in (REPOSITORY / "notebooks" / "executed").glob("*.ipynb"):
        assert f'href="{notebook.stem}.html"' in index
        cells = nbformat.read(notebook, as_version=4).cells
        assert not any("verdict" in c.metadata.get("tags", []) for c in cells) or 'class="verdict"' in index
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f'href="{page.stem}.html"' in index


def test_every_figure_stands_above_its_caption_with_its_files(site):
    shown = 0
    for page in site.glob("[0-9]*.html"):
        for figure in re.findall(r"<figure[ >].*?</figure>", page.read_text(encoding="utf-8"), re.DOTALL):
            shown += 1
            assert re.search(r'alt="[^"]{20,}"', figure)
            caption = figure.split("<figcaption>")[1]
            assert len(re.sub("<[^>]*>", "", caption)) > 40
            assert all((site / file).stat().st_size for file in re.findall(r'href="(figures/[^"]+)"', caption))
            assert len(re.findall(r'href="figures/', caption)) == len(report.FORMS)
    assert shown == len(list((REPOSITORY / "figures").glob("*.png")))


@needs_browser
def test_pages_are_quiet_described_linked_and_fit_a_phone(site, open_page):
    for page in sorted(site.glob("*.html")):
        for width in (PHONE, 1200):
            tab = open_page(page, width=width)
            assert tab.errors == [], page.name
            assert [r for r in tab.requests if not r.startswith(("file:", "data:"))] == [], page.name
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, page.name
            assert tab.evaluate("[...document.images].every(i => i.alt.length > 20 && i.naturalWidth > 0)"), page.name
            links = tab.evaluate("[...document.links].map(a => a.getAttribute('href'))")
        inside = [link.partition("#") for link in links if not link.startswith(("https://", "#"))]
        assert [path for path, *_ in inside if not (site / path).is_file()] == [], page.name
        ids = set(re.findall(r'\sid="([^"]+)"', page.read_text(encoding="utf-8")))
        assert [link for link in links if link.startswith("#") and link[1:] and link[1:] not in ids] == [], page.name


@needs_browser
def test_tables_wider_than_a_phone_scroll_inside_their_box(tmp_path, open_page):
    wide = pd.DataFrame({f"a long name {i}": ["a long value"] for i in range(12)})
    tab = open_page(table_site(tmp_path, wide.to_html()), width=PHONE)
    assert tab.evaluate("document.querySelector('article table').scrollWidth > innerWidth")
    assert tab.evaluate("[...document.querySelectorAll('div.wide')].every(d => d.clientWidth <= innerWidth)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE


@needs_browser
def test_formulas_are_drawn(tmp_path, open_page):
    formula = "# Formula\n\n$$\\Delta = R K^\\top (\\lambda C + K K^\\top)^{-1}$$\n\nwith $K$."
    tab = open_page(page_of(tmp_path, new_markdown_cell(formula)))
    heights = tab.evaluate("[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)")
    assert len(heights) == 2 and min(heights) > 5


def page_of(folder, *cells):
    """The page of a notebook of these cells, in a report of its own."""
    (folder / "executed").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), folder / "executed" / "00_page.ipynb")
    return report.write_report(folder / "executed", folder, folder / "report", folder).parent / "00_page.html"


def table_site(folder, table: str):
    """A page that shows this table."""
    cell = new_code_cell("1", outputs=[new_output("display_data", {"text/html": table, "text/plain": "t"})])
    return page_of(folder, new_markdown_cell("# Table"), cell)


@needs_browser
def test_a_click_on_a_header_sorts_and_another_turns_round(tmp_path, open_page):
    table = pd.DataFrame(
        {
            "name": ["layer 10", "layer 9", "Äpfel", "zebra", "b"],
            "number": ["1,200", "9", "-3.5", "1e-05", "nan"],
            "share": ["100%", "9 %", "0.5", "12%", ""],
            "range": ["> 450", "231 (195–259)", "35", "0.4 to 0.6", "None"],
        },
        index=pd.Index([3, 1, 2, 5, 4], name="row"),
    )
    tab = open_page(table_site(tmp_path, table.to_html()))
    shown = "[...document.querySelectorAll('article tbody tr')].map(r => +r.cells[0].textContent)"
    head = "document.querySelectorAll('thead tr:last-child th')[{}]"
    assert tab.evaluate(shown) == [3, 1, 2, 5, 4]
    up = {0: [1, 2, 3, 4, 5], 1: [2, 4, 1, 3, 5], 2: [2, 5, 1, 3, 4], 3: [1, 5, 2, 3, 4], 4: [5, 2, 1, 3, 4]}
    missing = {2: [4], 3: [4], 4: [4]}  # by column: always below
    for column, rows in up.items():
        tab.evaluate(f"{head.format(column)}.querySelector('button').click()")
        assert tab.evaluate(shown) == rows
        assert tab.evaluate(f"{head.format(column)}.ariaSort") == "ascending"
        tab.evaluate(f"{head.format(column)}.querySelector('button').click()")
        below = missing.get(column, [])
        assert tab.evaluate(shown) == [r for r in rows[::-1] if r not in below] + below
        assert tab.evaluate("[...document.querySelectorAll('[aria-sort]')].map(h => h.ariaSort)") == ["descending"]


@needs_browser
def test_a_column_is_of_numbers_if_every_value_is_and_the_index_is_named_beside_the_others(tmp_path, open_page):
    table = {"share": ["12%", "-0.5", "1e-05", "1,000"], "missing": [1.5, None, 2.0, float("inf")]}
    table |= {"mixed": ["0.3", "0.1 to 0.2", "0.4", "1"], "bound": ["> 450", "231", "35", "1"], "empty": [None] * 4}
    table = pd.DataFrame(table, index=pd.Index(list("abcd"), name="what"))
    for given, first in ((table.to_html(), ["what"]), (table.style.hide(axis="index").to_html(), [])):
        tab = open_page(table_site(tmp_path, given))
        heads = "[...document.querySelectorAll('thead th{}')].map(h => h.textContent.trim())"
        assert tab.evaluate(heads.format("")) == [*first, *table]
        assert tab.evaluate(heads.format(".number")) == ["share", "missing", "bound"]
        assert tab.evaluate("document.querySelectorAll('td.number').length") == 3 * len(table)


@needs_browser
def test_headers_are_reached_and_pressed_from_the_keyboard(tmp_path, open_page):
    tab = open_page(table_site(tmp_path, pd.DataFrame({"a": [2, 1], "b": [1, 2]}).to_html()))
    tab.evaluate("document.querySelector('thead th:nth-child(3) button').focus()")
    assert tab.evaluate("document.activeElement.tagName") == "BUTTON"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelector('thead th:nth-child(3)').ariaSort") == "ascending"


def test_a_report_that_fails_leaves_the_old_one_whole(tmp_path, monkeypatch):
    page = table_site(tmp_path, "<table><tbody><tr><td>1</td></tr></tbody></table>")
    before = {p.name: p.read_bytes() for p in page.parent.rglob("*") if p.is_file()}

    def no_index(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(report, "Sphinx", no_index)
    with pytest.raises(ZeroDivisionError):
        table_site(tmp_path, "<table><tbody><tr><td>2</td></tr></tbody></table>")
    assert {p.name: p.read_bytes() for p in page.parent.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["executed", "report"]


@needs_browser
def test_what_a_model_wrote_is_text_and_nothing_else(tmp_path, open_page):
    """Every kind of output, with markup that a model might have written."""
    table = pd.DataFrame({"says": [ATTACK]})
    outputs = [
        new_output("stream", name="stdout", text=ATTACK),
        new_output("execute_result", {"text/html": table.to_html(), "text/plain": "t"}),
        new_output("execute_result", {"text/html": table.style.to_html(), "text/plain": "t"}),  # escapes nothing
        new_output("execute_result", {"text/plain": ATTACK}),
        new_output("display_data", {"text/markdown": ATTACK, "text/plain": "t"}),
        new_output("display_data", {"application/javascript": "document.title = 'taken'", "text/plain": "t"}),
    ]
    tab = open_page(page_of(tmp_path, new_markdown_cell("# Safe"), new_code_cell("1", outputs=outputs)))
    assert tab.evaluate("document.title").startswith("Safe")
    assert tab.evaluate("document.querySelectorAll('article script, article img').length") == 0
    assert tab.evaluate("document.body.innerText.split('<script>').length - 1") >= 4  # read as written
    assert tab.errors == []


def test_without_executed_notebooks_there_is_one_line_and_no_report(tmp_path):
    refused(lambda: report.write_report(tmp_path, tmp_path, tmp_path / "report"), "run 'make reproduce' first")
    assert not (tmp_path / "report").exists()
