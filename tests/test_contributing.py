"""The examples of CONTRIBUTING.md, run as they stand there: a method, a metric and a model of one's own."""

import inspect
import re

import pytest

import kedit_lib as kedit
from kedit_lib import layout, methods
from kedit_lib.lab.single import moment_texts
from kedit_lib.moments import SecondMoments
from kedit_lib.params import REPOSITORY, load_model_params

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def written():
    """{name: value} of all Python blocks, in order; what they register is taken out afterwards."""
    registers = methods.METHODS, layout.LAYOUTS
    before = [dict(register) for register in registers]
    names = {"__name__": "contributing"}
    for block in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL):
        above = "\n" * TEXT[: block.start(1)].count("\n")  # a failure names its line in the document
        exec(compile(above + block[1], REPOSITORY / "CONTRIBUTING.md", "exec"), names)
    yield names
    for register, old in zip(registers, before, strict=True):
        register.clear()
        register.update(old)


def test_every_example_test_passes(written):
    """One for the method, one for the metric, one for the model; each is handed what it asks for by name."""
    model = kedit.load_model("lab-small")
    edits = kedit.load_edits("lab", model=model, limit=3)
    settings = load_model_params("lab-small")["memit"]
    given = {"model": model, "edits": edits, "settings": settings, "tokenizer": model.tokenizer}
    given["moments"] = SecondMoments.estimate(model, moment_texts(model)[:100], settings["layers"])
    tests = {name: test for name, test in written.items() if name.startswith("test_")}
    assert len(tests) == 3
    for test in tests.values():
        test(**{name: given[name] for name in inspect.signature(test).parameters})


def test_the_house_plan_names_files_that_are_there():
    named = re.findall(r"`(\w+(?:\.py|/))`", TEXT)
    assert len(named) > 20
    assert [name for name in named if not (REPOSITORY / "kedit_lib" / name).exists()] == []
