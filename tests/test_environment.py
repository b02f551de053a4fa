"""pyproject.toml, constraints.txt and environment.yml say one thing, and the code imports only what they name."""

import ast
import importlib.metadata as metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from kedit_lib.data.config import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(r) for r in PROJECT["dependencies"]]
DEV = [Requirement(r) for r in PROJECT["optional-dependencies"]["dev"]]
PIN_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
PINS = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in PIN_LINES}
# Modules whose distribution is called otherwise.
DISTRIBUTION = {"markdown_it": "markdown-it-py", "ruamel": "ruamel.yaml"}
DISTRIBUTION |= {"mpl_toolkits": "matplotlib", "PIL": "pillow"}
# What only some platforms install beside torch; its exact versions are torch's own business.
WITH_TORCH = re.compile(r"nvidia-|cuda-|triton")


def test_constraints_are_exact_public_and_single():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in PIN_LINES)  # no "+cpu", no range
    assert len(PINS) == len(PIN_LINES)
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", RUNTIME + DEV, ids=lambda r: r.name)
def test_every_dependency_has_a_range_and_a_pin_inside_it(requirement):
    assert requirement.specifier, f"{requirement.name} has no range in pyproject.toml"
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin, f"{requirement.name} has no pin in constraints.txt"
    assert requirement.specifier.contains(pin), f"{requirement.name}=={pin} is outside {requirement.specifier}"


def test_environment_yml_only_points_at_the_other_two():
    environment = read_yaml(ROOT / "environment.yml")
    *conda, pip = environment["dependencies"]
    python = next(d for d in conda if d.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert [d for d in conda if d != python] == ["pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_what_is_installed_is_what_is_pinned():
    """Everything that the dependencies pull in, down to the last one, is here at its pin."""
    todo, seen = [r.name for r in RUNTIME + DEV], set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen or WITH_TORCH.match(name):
            continue
        seen.add(name)
        installed = metadata.distribution(name)
        assert name in PINS, f"{name} is installed but has no pin in constraints.txt"
        assert Version(installed.version).public == PINS[name], f"{name} is not at its pin; run 'make env'"
        needed = [Requirement(r) for r in installed.requires or []]
        todo += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(seen) > len(RUNTIME + DEV)


def imported_modules(folder: Path) -> dict[str, Path]:
    """The top-level names of all absolute imports below a folder."""
    found = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found |= {name.split(".")[0]: path for name in names}
    return found


def test_the_library_imports_only_what_is_declared():
    declared = {canonicalize_name(r.name) for r in RUNTIME}
    for module, path in imported_modules(ROOT / "kedit_lib").items():
        if module not in sys.stdlib_module_names and module != "kedit_lib":
            name = canonicalize_name(DISTRIBUTION.get(module, module))
            assert name in declared, f"{path.name} imports {module}; add it to pyproject.toml"
