"""One notebook: papermill injects its parameters, nbclient executes it."""

import os
import re
import sys
from pathlib import Path
from subprocess import DEVNULL

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ..data.atomic import replacing
from ..data.config import params_folder
from .reproduce import Run

VERDICT = "verdict"  # tag of the cell that makes the box a notebook opens with
BOX = "# The answer first: what the run below printed. Run again, it stands where it is computed."
INJECTED = "injected-parameters"  # and of the one that papermill adds


def tags_of(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def execute(run: Run, source: Path, parameters: dict) -> str | None:
    """Run one notebook; None if it is in place, else where (counted as in the source) and why it stopped."""
    output, failed = run.executed / source.name, run.results / "failed" / f"{source.stem}.failed.ipynb"
    failed.unlink(missing_ok=True)
    run.figures.mkdir(parents=True, exist_ok=True)
    notebook, begun = parameterize_notebook(load_notebook_node(str(source)), parameters), [0]
    options = {"kernel_name": "python3", "startup_timeout": 180, "timeout": None, "record_timing": False}
    options |= {"resources": {"metadata": {"path": str(run.sources)}}}
    client = NotebookClient(notebook, on_cell_start=lambda cell, cell_index: begun.append(cell_index), **options)
    try:
        client.execute(env=environment(run), stdout=DEVNULL, stderr=DEVNULL)
    except (CellExecutionError, RuntimeError) as error:
        failed.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, failed)
        if isinstance(error, CellExecutionError):
            why = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
        else:
            why = f"{error} (it was killed, ran out of memory, or crashed in native code)"
        number = sum(INJECTED not in tags_of(cell) for cell in notebook.cells[: begun[-1] + 1])
        return f"cell {number}: {why} (kept: {failed.relative_to(run.root)})"
    tidy(notebook, run.root)
    with replacing(output) as partial:
        nbformat.write(notebook, partial)
    return None


def environment(run: Run) -> dict[str, str]:
    """The environment of a notebook's kernel: where outputs go, and nothing of the user's own set-up."""
    threads = str(run.profile.threads)
    inherited = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # figures must go inline
    return inherited | {
        "KEDIT_PARAMS": str(params_folder()),
        "KEDIT_RESULTS": str(run.results),
        "KEDIT_FIGURES": str(run.figures),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",  # sets print in the same order each time
        "TQDM_DISABLE": "1",  # progress bars would put times into the output
        "KEDIT_STATIC": "1",  # nobody is there to press the knobs of live cells
        "IPYTHONDIR": str(run.results / "ipython"),  # no start-up files, no shared history
    }


def tidy(notebook, root: Path) -> None:
    """Make an executed notebook the same file for the same numbers: no times, no random ids, no paths of a machine."""
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
        hidden = {"tags": [VERDICT], "jupyter": {"source_hidden": True}}
        box = nbformat.v4.new_code_cell(BOX, id=VERDICT, outputs=cell.outputs, metadata=hidden)
        cell.outputs, cell.metadata.tags = [], [tag for tag in cell.metadata.tags if tag != VERDICT]
        notebook.cells.insert(1, box)


def _without_paths(text: str, root: Path) -> str:
    """The text with this machine's folders replaced by what they stand for."""
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)  # where the kernel says that a warning came from
    folders = {str(root): ".", sys.prefix: "<env>", sys.base_prefix: "<python>", str(Path.home()): "~"}
    for folder in sorted(folders, key=len, reverse=True):
        if len(Path(folder).parts) > 1:  # never "/" itself
            text = re.sub(re.escape(folder) + r"(?![\w.-])", folders[folder], text)
    return text
