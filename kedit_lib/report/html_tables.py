"""Tables as the report's pages show them: columns of numbers to the right, one row of headers, no looks of their own.

tidied(html)    every table in it, for readers
cleaned(html)   without anything but text, tables and links
boxed(html)     each table in a box that it can scroll in
"""

import re

TAGS = (
    "a abbr b blockquote br caption code dd div dl dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre span strong sub sup "
    "table tbody td th thead tr ul"
).split()
ATTRIBUTES = {"*": ["class", "id"], "a": ["href", "title"], "th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"]}
TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
NUMBER = re.compile(r"[<>≤≥~]?\s*[-+−]?([\d.,]+(e[-+]?\d+)?\s?%?|inf)")
NOTHING = {"", "nan", "none", "<na>", "—"}


def tidied(text: str) -> str:
    """HTML with each of its tables tidied, and without pandas' style sheets."""
    return TABLE.sub(lambda found: _tidied(found[0]), re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL))


def cleaned(text: str) -> str:
    import bleach

    return bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES)


def boxed(text: str) -> str:
    return TABLE.sub(r'<div class="wide" tabindex="0">\g<0></div>', text)


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
