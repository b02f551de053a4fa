"""Runs one notebook, in a process of its own: `python -m kedit_lib.report.notebooks ROOT '{"input_path": …, …}'`.

An executed notebook must be the same file for the same numbers, so `tidy` takes out what changes from run to run
(times, random ids, process numbers) and what belongs to one machine (absolute paths).
"""

import json
import re
import sys
from pathlib import Path

VERDICT = "verdict"  # tag of the cell that makes the box a notebook opens with
INJECTED = "injected-parameters"
ADDED = {INJECTED, "papermill-error-cell-tag"}  # tags of the cells that papermill adds


def tags_of(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def main(root: str, arguments: str) -> None:
    """Execute and tidy a notebook. `arguments`: those of papermill.execute_notebook, as JSON. Where it fails, the last
    line that is printed names the cell, counted as in the source, and the error."""
    sys.modules["rfc3987_syntax"] = None  # an optional check of web addresses that takes 2 seconds to import
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    asked = json.loads(arguments)
    try:
        papermill.execute_notebook(**asked, kernel_name="python3", start_timeout=180, progress_bar=False)
    except Exception as error:
        cells = [cell for cell in nbformat.read(asked["output_path"], 4).cells if not ADDED & tags_of(cell)]
        started = [n for n, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
        if not started:
            raise
        why = str(error).strip().splitlines()[-1]
        if isinstance(error, DeadKernelError):
            why = "the kernel died (killed, out of memory, or a crash in native code)"
        sys.exit(f"cell {started[-1]}: {why}")
    notebook = nbformat.read(asked["output_path"], 4)
    tidy(notebook, Path(root))
    nbformat.write(notebook, asked["output_path"])


def tidy(notebook, root: Path) -> None:
    """Reduce an executed notebook to its author's text and its numbers."""
    for key in ("papermill", "widgets"):  # live cells are one sentence here
        notebook.metadata.pop(key, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):  # times, and papermill's own absolute paths
            cell.metadata.pop(key, None)
        if INJECTED in tags_of(cell):
            cell.id = INJECTED  # papermill draws a random one
        for output in cell.get("outputs", []):
            for texts in (output, output.get("data", {})):
                told = {kind: text for kind, text in texts.items() if isinstance(text, str) and kind != "image/png"}
                texts.update({kind: _without_paths(text, root) for kind, text in told.items()})
    for cell in [cell for cell in notebook.cells if VERDICT in tags_of(cell)]:  # the answer first: after the title
        notebook.cells.remove(cell)
        notebook.cells.insert(1, cell)
        cell.metadata["jupyter"] = {"source_hidden": True}


def _without_paths(text: str, root: Path) -> str:
    """The text with this machine's folders replaced by what they stand for."""
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)  # where the kernel says that a warning came from
    folders = {str(root): ".", sys.prefix: "<env>", sys.base_prefix: "<python>", str(Path.home()): "~"}
    for folder in sorted(folders, key=len, reverse=True):
        if len(Path(folder).parts) > 1:  # never "/" itself
            text = re.sub(re.escape(folder) + r"(?![\w.-])", folders[folder], text)
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
