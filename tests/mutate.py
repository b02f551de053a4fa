"""How much the tests notice: `python tests/mutate.py` changes the library in 200 small ways, one at a time.

Each mutant is one changed operator, comparison, condition or constant of the methods, the targets or the metrics, drawn
with a fixed seed. First the tests of `TESTS` run once on the library as it is, and who runs which line is written down.
A mutant is then tried by every one of them that runs its statement, the quickest first: *killed* when one fails, it
*survives* when none does (with `--patience`: none of the first). Each runs in a copy of the package and a process of
its own. tests/mutation_report.csv is written after each; what stands in it is not run again, so a line that is deleted
is. No part of `make test`.
"""

import argparse
import ast
import contextlib
import copy
import csv
import functools
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import hypothesis  # noqa: F401, this and what follows once for all of them: each runs in a fork of this process
import pandas  # noqa: F401
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "tests" / "mutation_report.csv"
COLUMNS = ["mutant", "file", "line", "was", "became", "verdict", "seconds", "note"]  # notes are written by hand
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.MatMult: ast.Add,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
TESTS = (
    "outcomes metric_families reference metrics nullspace bad_input history hparams interventions claims probes memory "
    "families taking_back"
).split()
FIRST = {"targets.py": "reference"}  # of what they change only numbers tell
FEW = 8
PASSED, FAILED, NOT_IMPORTED = 0, 1, 2  # pytest's exit codes
VERDICTS = {PASSED: "survived", FAILED: "killed", NOT_IMPORTED: "killed", -signal.SIGXCPU: "killed, by time"}


def files() -> list[Path]:
    """The files of the library that are changed."""
    library = ROOT / "kedit_lib"
    return [
        *sorted((library / "methods").glob("*.py")),
        library / "targets.py",
        *sorted((library / "metrics").glob("*.py")),
    ]


def places(tree: ast.AST) -> list[tuple[ast.AST, str, int]]:
    """(node, field, index) of everything that can be changed; texts, annotations and hyperparameters' defaults stay."""
    found = []

    def walk(node):
        if isinstance(node, ast.AnnAssign):
            if node.value is not None and not _is_field(node.value):
                walk(node.value)
            return
        if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS and not _is_union(node):
            found.append((node, "op", 0))
        if isinstance(node, ast.Compare):
            found.extend((node, "ops", i) for i, op in enumerate(node.ops) if type(op) in SWAPS)
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            found.append((node, "test", 0))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            found.append((node, "operand", 0))
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            found.append((node, "value", 0))
        if isinstance(node, (ast.Raise, ast.JoinedStr)):  # what a message says is for its own tests
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in [*node.args.defaults, *node.args.kw_defaults, *node.body]:
                if part is not None:
                    walk(part)
            return
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree)
    return found


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Field", "field")


def _is_union(node: ast.AST) -> bool:
    return isinstance(node.op, ast.BitOr)


def mutated(tree: ast.Module, number: int) -> tuple[ast.Module, int, str, str]:
    """The tree with its number-th place changed; the line, what stood there and what stands there now."""
    tree = copy.deepcopy(tree)
    node, field, index = places(tree)[number]
    was = ast.unparse(node.test if field == "test" else node)
    if field == "op":
        node.op = SWAPS[type(node.op)]()
    elif field == "ops":
        node.ops[index] = SWAPS[type(node.ops[index])]()
    elif field == "test":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif field == "operand":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    else:
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1 if node.value != -1 else 1
    now = ast.unparse(ast.fix_missing_locations(node.test if field == "test" else node))
    return tree, node.lineno, was, now


def sample(count: int, seed: int) -> list[tuple[Path, int]]:
    """(file, place) of the mutants that are run."""
    every = [(path, i) for path in files() for i in range(len(places(ast.parse(path.read_text(encoding="utf-8")))))]
    return random.Random(seed).sample(every, min(count, len(every)))


def statement(tree: ast.Module, line: int) -> range:
    """The lines of the smallest statement around a line; of an `if`, a `for` or a `def` those before its body."""
    spans = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body, above = getattr(node, "body", None), getattr(node, "decorator_list", [])
            first = min(part.lineno for part in (node, *above))
            spans.append(range(first, body[0].lineno if body else node.end_lineno + 1))
    return min((span for span in spans if line in span), key=len)


class Watch:
    """A plugin of pytest: which test runs which line of the library, and for how long."""

    def __init__(self, folder: Path):
        self.prefix, self.seen, self.shared = str(folder / "kedit_lib"), set(), defaultdict(set)
        self.lines, self.seconds = defaultdict(set), {}

    def __call__(self, frame, event, arg):
        return self._line if frame.f_code.co_filename.startswith(self.prefix) else None

    def _line(self, frame, event, arg):
        self.seen.add((frame.f_code.co_filename[len(self.prefix) + 1 :], frame.f_lineno))
        return self._line

    def __enter__(self):
        sys.settrace(self)

    def __exit__(self, *_):
        sys.settrace(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        """What a fixture of many tests runs is run for each of them."""
        if fixturedef.scope == "function":
            return (yield)
        outside, self.seen = self.seen, self.shared[fixturedef.argname]
        try:
            return (yield)
        finally:
            self.seen = outside

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.seen, begin = self.lines[item.nodeid], time.process_time()
        done = yield
        self.seconds[item.nodeid] = time.process_time() - begin
        for name in item.fixturenames:
            self.lines[item.nodeid] |= self.shared[name]
        return done


class Chosen:
    """A plugin of pytest: these tests and no others, in this order."""

    def __init__(self, tests: list[str]):
        self.order = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def who_runs_what() -> dict:
    """Tests by time, {test: seconds}, and by line, {file: {line: [test]}}, of the library as it is."""
    with package() as folder, tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found.json"

        def watched():
            watch = Watch(folder)
            with watch:
                code = run_pytest(folder, TESTS, watch)
            lines = defaultdict(lambda: defaultdict(list))
            for test, seen in watch.lines.items():
                for file, line in seen:
                    lines[file][line].append(test)
            found.write_text(json.dumps({"seconds": watch.seconds, "lines": lines}), encoding="utf-8")
            return code

        if (code := forked(watched, 3600)) != PASSED:
            sys.exit(f"the tests do not pass with the library as it is (exit code {code})")
        return json.loads(found.read_text(encoding="utf-8"))


def chosen(known: dict, path: Path, line: int) -> list[str]:
    """The tests that run the statement of a line, a case of each function in turn, the quickest first; for what is run
    as it is imported those that run any line of the file; all of them where nothing runs it."""
    lines = known["lines"].get(str(path.relative_to(ROOT / "kedit_lib")), {})
    around = {str(i) for i in statement(ast.parse(path.read_text(encoding="utf-8")), line)}
    found = next((found for these in (around, lines) if (found := {t for i in these for t in lines.get(i, ())})), None)
    cases, order = defaultdict(int), {}
    for test in sorted(found or known["seconds"], key=known["seconds"].get):
        function = test.split("[")[0]
        order[test] = cases[function], FIRST.get(path.name) != name_of(test), known["seconds"][test]
        cases[function] += 1
    return sorted(order, key=order.get)


def name_of(test: str) -> str:
    return test.split("::")[0].removeprefix("tests/test_").removesuffix(".py")


def parts(tests: list[str], seconds: dict[str, float], patience: float) -> list[list[str]]:
    """The first few tests, which mostly will do, and then the others as far as patience goes."""
    ends = list(itertools.accumulate(seconds[test] for test in tests))
    last = next((i for i, end in enumerate(ends, 1) if end >= patience), len(tests))
    return [part for part in (tests[: min(FEW, last)], tests[FEW:last]) if part]


@contextlib.contextmanager
def package():
    """A folder with a copy of the package, and what its tests need beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, away = Path(scratch), shutil.ignore_patterns("weights")
        shutil.copytree(ROOT / "kedit_lib", folder / "kedit_lib", ignore=away)
        (folder / "kedit_lib" / "lab" / "weights").symlink_to(ROOT / "kedit_lib" / "lab" / "weights")
        for name in ("tests", "params", "pyproject.toml"):
            (folder / name).symlink_to(ROOT / name)
        yield folder


def run_pytest(folder: Path, names, plugin) -> int:
    """pytest's exit code; in a process of its own, for it imports the package that lies in the folder."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(ROOT / "tests")]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(folder)]
    code = pytest.main([*options, *(f"tests/test_{name}.py" for name in names)], plugins=[plugin])
    assert sys.modules["kedit_lib"].__file__.startswith(str(folder)), "another package was tested"
    return int(code)


def forked(work, seconds: float) -> int:
    """The exit code that `work` returns in a process of its own; −SIGXCPU after so many seconds of a processor."""
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up() -> None:
    """What transformers imports as it is used, which takes longer than most tests."""
    torch.set_num_threads(1)
    disable_progress_bar()
    for kind in ("llama", "gpt2"):
        with tempfile.TemporaryDirectory() as scratch:
            AutoModelForCausalLM.from_pretrained(tiny.save(kind, scratch))


def run(path: Path, number: int, known: dict, patience: float) -> dict:
    """The row of one mutant in the report, but for its number."""
    tree, line, was, now = mutated(ast.parse(path.read_text(encoding="utf-8")), number)
    code, begin, took = PASSED, time.monotonic(), known["seconds"]
    with package() as folder:
        (folder / path.relative_to(ROOT)).write_text(ast.unparse(tree), encoding="utf-8")
        for tests in parts(chosen(known, path, line), took, patience):
            room = 60 + 3 * sum(took[test] for test in tests)  # one that loops uses all of it
            code = forked(functools.partial(run_pytest, folder, {name_of(t) for t in tests}, Chosen(tests)), room)
            if code != PASSED:
                break
    verdict = VERDICTS.get(code, f"exit code {code}")
    texts = [" ".join(text.split())[:80] for text in (was, now)]
    seconds = f"{time.monotonic() - begin:.0f}"
    return dict(zip(COLUMNS[1:], (str(path.relative_to(ROOT)), line, *texts, verdict, seconds, ""), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--patience", type=float, default=math.inf, help="seconds of tests after which a mutant counts as survived"
    )
    args = parser.parse_args()
    warm_up()
    rows = {}
    if REPORT.exists():
        with REPORT.open(encoding="utf-8", newline="") as file:
            rows = {int(row["mutant"]): row for row in csv.DictReader(file)}
    left = {n: one for n, one in enumerate(sample(args.count, args.seed), 1) if n not in rows}
    known = who_runs_what() if left else {}
    for number, (path, place) in left.items():
        rows[number] = {"mutant": number, **run(path, place, known, args.patience)}
        with REPORT.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[i] for i in sorted(rows))
        killed = sum(row["verdict"].startswith("killed") for row in rows.values())
        print(f"{killed} of {len(rows)} killed;", *rows[number].values(), flush=True)


if __name__ == "__main__":
    main()
