"""The house rules for notebook sources, and for their prose: a number in it is a constant, for whatever was measured is
computed by a cell."""

import ast
import json
import re

import pytest
from latex2mathml.converter import convert

from kedit_lib.data.config import REPOSITORY, load_profile
from kedit_lib.report.reproduce import RENAMED, parameters_of

SOURCES = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_LINES = 25  # of a cell of code
NUMBER = re.compile(r"(?<![\w.])(?:\d*\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+)(?:\s?%)?|\d+\s?%")
CONSTANTS = {
    "4.66e-08",  # the report's
    "0.09",  # its 1,000 edits over d_ff
    "0.5",  # v_lr, as printed
    "95%",  # the level of intervals
    "4.0",  # a licence, CC BY
}
BARS = {  # of predictions, in the words in which they were made
    "09": {".05", ".01"},
    "12": {"0.7", "1.5", "1.55"},
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_source_holds_short_cells_no_outputs_and_parameters_of_a_profile(source):
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        assert "id" in cell and not cell.get("outputs") and not cell.get("execution_count")
        assert cell["cell_type"] != "code" or len("".join(cell["source"]).splitlines()) <= MAX_LINES
    (given,) = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    defaults = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(given).body}
    assert list(defaults) == parameters_of(source)
    given = {RENAMED.get(name, name): value for name, value in defaults.items() if (name, value) != ("model", None)}
    load_profile(given.pop("profile"), **given)


def numbers(prose: str) -> set[str]:
    """Decimals and percentages of a Markdown text, without its formulas, code and links."""
    prose = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)", " ", prose, flags=re.S)
    return {found.replace(" ", "") for found in NUMBER.findall(prose)}


def test_measured_numbers_are_found():
    prose = "from 0.123 (12 %, 5e-09) at $p = 0.5$ in [2405.14768](https://arxiv.org/abs/2405.14768) `0.7` to 450"
    assert numbers(prose) == {"0.123", "12%", "5e-09", "2405.14768"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_cell_of_prose_holds_a_measured_number(source):
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    prose = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert numbers(prose) <= CONSTANTS | BARS.get(source.name[:2], set())


@pytest.mark.parametrize("page", [*SOURCES, *sorted((REPOSITORY / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_every_formula_is_drawn_without_a_command_left_over(page):
    text = page.read_text(encoding="utf-8")
    if page in SOURCES:
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    formulas = [a or b for a, b in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", text, flags=re.S)]
    assert not [formula for formula in formulas if "\\" in convert(formula)]
