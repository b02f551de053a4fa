"""Golden numbers of the newer editors, by their authors' programs: the folder $KEDIT_GOLDEN_NEWER, or `golden-newer`
beside $KEDIT_GOLDEN. Model, C and contexts are those of the first set; format and conventions too (`golden.py`)."""

import os
from pathlib import Path

import golden
import pytest
from golden import Case

FOLDER = Path(os.environ["KEDIT_GOLDEN_NEWER"]) if os.environ.get("KEDIT_GOLDEN_NEWER") else None
if FOLDER is None and golden.FOLDER is not None and (golden.FOLDER.parent / "golden-newer").is_dir():
    FOLDER = golden.FOLDER.parent / "golden-newer"
MISSING = "neither KEDIT_GOLDEN_NEWER nor KEDIT_GOLDEN names the folder of the newer editors' golden numbers"

# Relative errors of ΔW, end to end from ids. Where a null space is cut by an absolute threshold, or C is inverted in
# single precision by the authors, or P is made anew, theirs are larger.
END_TO_END = {"alphaedit": 3e-3, "evoedit": 3e-3, "rlsedit": 3e-3, "betaedit": 5e-3}
OTHERS = 2e-3
NOTHING = 1e-6  # where nothing should be written


class NewerCase(Case):
    folder = FOLDER


def each_case(*methods):
    """Parametrise a test over the cases of these methods."""
    names = sorted(path.parent.name for path in FOLDER.glob("*/case.json")) if FOLDER and golden.FOLDER else []
    chosen = [name for name in names if name.split("_")[0] in methods]
    why = f"{FOLDER.name} has no case of {methods}" if FOLDER else MISSING
    skipped = pytest.param(None, marks=pytest.mark.skip(reason=why), id="-")
    return pytest.mark.parametrize("case", [pytest.param(NewerCase(name), id=name) for name in chosen] or [skipped])


def tolerance(case):
    return next((bar for name, bar in END_TO_END.items() if name in case.method), OTHERS)
