"""One notebook: its parameters, the rules for its source, the clean form of its output, what went wrong in it.

A source holds no outputs, exactly one cell tagged `parameters`, and short cells (`faults_of_source`). An executed
notebook must be the same file for the same numbers, so `tidy` takes out what changes from run to run (times, random
ids, process numbers) and what belongs to one machine (absolute paths).

Notebooks are read as JSON: importing nbformat takes longer than everything else here.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from ..data.config import load_profile
from ..errors import KeditError

MAX_LINES = 25
VERDICT = "verdict"  # tag of the cell that makes the box a notebook opens with
MARKER = "papermill-error-cell-tag"  # papermill adds such cells to a failed notebook
RENAMED = {"data": "edits"}  # parameters that a profile calls otherwise
OWN = {"data", "texts"}  # parameters of the notebook on the reader's own model
INJECTED = "injected-parameters"  # and this one, after the parameters cell, to every notebook it runs


def read(path: Path) -> dict[str, Any]:
    """A notebook as it is stored."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(notebook: dict[str, Any], path: Path) -> None:
    """Store a notebook in the form that Jupyter gives it."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])  # stored as one text or as lines


def tags_of(cell: dict[str, Any]) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def parameters_of(path: Path) -> dict[str, Any]:
    """{name: default} of the notebook's one `parameters` cell, which may only assign plain values to names."""
    try:
        cells = [cell for cell in read(path)["cells"] if "parameters" in tags_of(cell)]
        texts = [source_of(cell) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeditError(f"{path.name}: is not a notebook; save it again with JupyterLab") from None
    if len(cells) != 1:
        raise KeditError(f"{path.name}: has {len(cells)} cells tagged 'parameters'; tag exactly one")
    defaults = {}
    try:
        for statement in ast.parse(texts[0]).body:
            (target,) = statement.targets if isinstance(statement, ast.Assign) else (statement.target,)
            defaults[target.id] = ast.literal_eval(statement.value)
    except (SyntaxError, AttributeError, ValueError, TypeError, MemoryError, RecursionError):
        raise KeditError(
            f"{path.name}: the parameters cell does more than 'name = plain value' lines; move the rest below it"
        ) from None
    return defaults


def faults_of_source(path: Path) -> list[str]:
    """The rules that a notebook's source breaks, one line each."""
    faults = []
    for number, cell in enumerate(read(path)["cells"], start=1):
        text, where = source_of(cell), f"{path.name}: cell {number}"
        if "id" not in cell:
            faults.append(f"{where}: has no id; save the notebook once with JupyterLab (notebook format 4.5)")
        if cell["cell_type"] != "code":
            continue
        if cell.get("outputs") or cell.get("execution_count"):
            faults.append(f"{where}: holds outputs; clear them, the executed copies are elsewhere")
        if len(text.splitlines()) > MAX_LINES:
            faults.append(f"{where}: has more than {MAX_LINES} lines; split it")
    try:  # the defaults must be a profile's: known fields, of the right type
        defaults = parameters_of(path)
        fields = {RENAMED.get(name, name): value for name, value in defaults.items()}
        load_profile(fields.pop("profile", "lab"), **fields)
    except KeditError as error:
        faults.append(str(error) if str(error).startswith(path.name) else f"{path.name}: parameters: {error}")
    return faults


def tidy(notebook: dict[str, Any], root: Path) -> None:
    """Reduce an executed notebook to its author's text and its numbers."""
    for key in ("papermill", "widgets"):  # live cells are one sentence here
        notebook["metadata"].pop(key, None)
    notebook["metadata"].get("language_info", {}).pop("version", None)
    cells = notebook["cells"]
    for cell in [cell for cell in cells if VERDICT in tags_of(cell)]:  # the answer first: after the title
        cells.remove(cell)
        cells.insert(1, cell)
        cell["metadata"]["jupyter"] = {"source_hidden": True}
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):  # times, and papermill's own absolute paths
            cell["metadata"].pop(key, None)
        if INJECTED in tags_of(cell):
            cell["id"] = INJECTED  # papermill draws a random one
        _map_text(cell.get("outputs", []), lambda text: _without_paths(text, root))


def _map_text(node: Any, change: Any) -> Any:
    """Apply `change` to every text below `node` in place, pictures left alone (base64 may look like a path)."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, value in items:
        if isinstance(value, str) and not (str(key).startswith("image/") and key != "image/svg+xml"):
            node[key] = change(value)
        else:
            _map_text(value, change)


def _without_paths(text: str, root: Path) -> str:
    """The text with this machine's folders replaced by what they stand for."""
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)  # where the kernel says that a warning came from
    folders = [(root, "."), (sys.prefix, "<env>"), (sys.base_prefix, "<python>"), (Path.home(), "~")]
    for folder, name in sorted(folders, key=lambda pair: -len(str(pair[0]))):
        if len(Path(folder).parts) > 1:  # never "/" itself
            text = re.sub(re.escape(str(folder)) + r"(?![\w.-])", name, text)
    return text


def was_started(notebook: dict[str, Any]) -> bool:
    """Whether papermill got as far as handing the first cell to a kernel."""
    return any(cell["metadata"].get("papermill", {}).get("start_time") for cell in notebook["cells"])


def failure_of(notebook: dict[str, Any]) -> str:
    """Where and why papermill stopped, in one line; cells are counted as in the source."""
    cells = [cell for cell in notebook["cells"] if not {MARKER, INJECTED} & tags_of(cell)]
    last = 0  # the last cell that was started
    for number, cell in enumerate(cells, start=1):
        run = cell["metadata"].get("papermill", {})
        last = number if run.get("start_time") else last
        if run.get("exception"):
            errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
            message = f"{errors[-1]['ename']}: {errors[-1]['evalue']}" if errors else "an exception without a message"
            return f"cell {number}: {message.strip().splitlines()[-1]}"
    return f"cell {last}: the kernel died (killed, out of memory, or a crash in native code)"
