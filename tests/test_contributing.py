"""The examples of CONTRIBUTING.md, run as they stand: a method, a metric, an edit set and a model of one's own."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kedit_lib as kedit
from kedit_lib import editing as methods
from kedit_lib.data import schemas
from kedit_lib.data.config import REPOSITORY, load_model_params
from kedit_lib.editing.second_moments import SecondMoments
from kedit_lib.lab.world import moment_texts
from kedit_lib.models import architectures as layout

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def written():
    """{name: value} of all Python blocks, in order; what they register is taken out afterwards."""
    registers = methods.METHODS, layout.LAYOUTS, schemas.SCHEMAS
    before = [dict(register) for register in registers]
    names = {"__name__": "contributing"}
    for block in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL):
        above = "\n" * TEXT[: block.start(1)].count("\n")  # a failure names its line in the document
        exec(compile(above + block[1], REPOSITORY / "CONTRIBUTING.md", "exec"), names)
    yield names
    for register, old in zip(registers, before, strict=True):
        register.clear()
        register.update(old)


def test_every_example_test_passes(written, tmp_path):
    """One for the method, the metric, the edit set and the model; each is given what it asks for by name."""
    model = kedit.load_model("lab-small")
    edits = kedit.load_edits("lab", model=model, limit=3)
    settings = load_model_params("lab-small")["memit"]
    given = {"model": model, "edits": edits, "settings": settings, "tokenizer": model.tokenizer, "tmp_path": tmp_path}
    given["moments"] = SecondMoments.estimate(model, moment_texts(model)[:100], settings["layers"])
    tests = {name: test for name, test in written.items() if name.startswith("test_")}
    assert len(tests) == 4
    for test in tests.values():
        test(**{name: given[name] for name in inspect.signature(test).parameters})


def test_imports_between_packages_run_one_way():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_plan_names_every_package():
    packages = {p.parent.name for p in (REPOSITORY / "kedit_lib").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", TEXT, flags=re.M)) == packages
