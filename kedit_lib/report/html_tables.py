"""Tables as the report's pages show them: columns of numbers to the right, one row of headers, no looks of their own.

tidied(html)     every table in it, for readers
SCRIPT, POLICY   what lets them sort it by a click, and the content policy under which only that script runs
"""

import base64
import hashlib
import re
from pathlib import Path

PAGES = Path(__file__).resolve().parent / "pages"
SCRIPT = (PAGES / "sort.js").read_text(encoding="utf-8")
_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"

TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
NUMBER = re.compile(r"[<>≤≥~]?\s*[-+−]?([\d.,]+(e[-+]?\d+)?\s?%?|inf)")
NOTHING = {"", "nan", "none", "<na>", "—"}


def tidied(text: str) -> str:
    """HTML with each of its tables tidied, and without pandas' style sheets."""
    return TABLE.sub(lambda found: _tidied(found[0]), re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL))


def _tidied(table: str) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(table, "html.parser")
    for tag in soup.find_all(["table", "thead", "tbody", "tr", "th", "td"]):
        tag.attrs = {name: value for name, value in tag.attrs.items() if name in ("colspan", "rowspan")}
    heads = [_cells(row) for row in soup.select("thead tr")]
    if len(heads) > 1:
        _join_names(*heads[-2:])
    _mark_numbers(soup.select("thead tr")[-1:], soup.select("tbody tr"))
    return str(soup)


def _cells(row) -> list:
    return row.find_all(["th", "td"])


def _join_names(columns: list, names: list) -> None:
    """pandas writes an index's name into a row of its own below the columns' names: put it beside them."""
    pairs = [(column.text.strip(), name.text.strip()) for column, name in zip(columns, names, strict=False)]
    if len(columns) != len(names) or any(column and name for column, name in pairs):
        return
    for head, (column, name) in zip(columns, pairs, strict=True):
        head.string = column or name
    names[0].parent.decompose()


def _mark_numbers(heads: list, rows: list) -> None:
    """class="number" for columns that hold numbers and nothing else, and for their headers."""
    columns = zip(*map(_cells, [*heads, *rows]), strict=False)
    for head, *cells in columns if heads and rows else []:
        texts = [text for cell in cells if (text := cell.text.strip().lower()) not in NOTHING]
        if cells[0].name == "td" and texts and all(NUMBER.fullmatch(text) for text in texts):
            for cell in (head, *cells):
                cell["class"] = "number"
