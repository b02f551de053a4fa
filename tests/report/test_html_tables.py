"""Tables of the pages: what is a column of numbers, and where headers stand."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from kedit_lib.report.html_tables import tidied


def parsed(html: str):
    return BeautifulSoup(tidied(html), "html.parser")


def marked(html: str) -> list[str]:
    """Headers of the columns that are marked as numbers, in each cell."""
    soup = parsed(html)
    rows = soup.select("thead tr")[-1:] + soup.select("tbody tr")
    looks = {tuple("number" in (c.get("class") or []) for c in row.find_all(["th", "td"])) for row in rows}
    (look,) = looks  # a column is marked as a whole
    return [c.text for c, is_number in zip(rows[0].find_all(["th", "td"]), look, strict=True) if is_number]


def test_a_column_is_of_numbers_if_every_value_is():
    table = pd.DataFrame(
        {
            "share": ["12%", "-0.5", "1e-05", "1,000"],
            "missing": [1.5, None, 2.0, float("inf")],
            "mixed": ["0.3", "0.1 to 0.2", "0.4", "1"],
            "bound": ["> 450", "231", "35", "1"],
            "empty": [None] * 4,
        }
    )
    assert marked(table.to_html()) == ["share", "missing", "bound"]
    assert marked(table.style.hide(axis="index").to_html()) == ["share", "missing", "bound"]


def test_the_name_of_an_index_stands_beside_the_other_headers():
    table = pd.DataFrame({"value": [1, 2]}, index=pd.Index(["a", "b"], name="what"))
    rows = [[c.text for c in row.find_all("th")] for row in parsed(table.to_html()).select("thead tr")]
    assert rows == [["what", "value"]]


@pytest.mark.parametrize("html", ["<p>no table</p>", "<table></table>", "<table><tbody></tbody></table>"])
def test_what_is_no_table_of_pandas_stays(html):
    assert tidied(html) == html
