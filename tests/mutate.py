"""How much the tests notice: `python tests/mutate.py` changes the library in 200 small ways, one at a time.

Each mutant is one changed operator, comparison, condition or constant of the methods, the targets or the metrics, drawn
with a fixed seed. A mutant is *killed* when a test of its file fails, *survives* when none does. They run one after
the other, each in a copy of the package and a process of its own; tests/mutation_report.csv is written after each, and
what stands in it is not run again. No part of `make test`: it takes hours.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "tests" / "mutation_report.csv"
COLUMNS = "mutant,file,line,was,became,verdict,seconds"
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
# The tests of a file, the quickest first; "" is for the metrics.
TESTS = {
    "methods": ["test_reference.py", "test_bad_input.py", "test_history.py", "test_nullspace.py", "test_hparams.py"],
    "targets": ["test_reference.py", "test_bad_input.py", "test_reference_properties.py"],
    "metrics": ["test_metrics.py", "test_metric_families.py", "test_probes.py"],
}


def files() -> dict[Path, str]:
    """{file of the library: which tests are about it}."""
    library = ROOT / "kedit_lib"
    found = dict.fromkeys(sorted((library / "methods").glob("*.py")), "methods")
    found[library / "targets.py"] = "targets"
    return found | dict.fromkeys(sorted((library / "metrics").glob("*.py")), "metrics")


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


def run(path: Path, number: int, limit: float) -> tuple[int, str, str, str, float]:
    """Line, was, became, verdict, seconds of one mutant."""
    tree, line, was, now = mutated(ast.parse(path.read_text(encoding="utf-8")), number)
    begin = time.monotonic()
    code = tried(path, ast.unparse(tree), limit)
    verdict = {0: "survived", 1: "killed", 2: "killed", None: "killed, by time"}.get(code, f"exit code {code}")
    return line, was, now, verdict, time.monotonic() - begin


def tried(path: Path, source: str, limit: float) -> int | None:
    """pytest's exit code over the tests of a file with this source in its place."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(
            ROOT / "kedit_lib", folder / "kedit_lib", ignore=shutil.ignore_patterns("weights", "__pycache__")
        )
        (folder / "kedit_lib" / "lab" / "weights").symlink_to(ROOT / "kedit_lib" / "lab" / "weights")
        for name in ("tests", "params", "pyproject.toml"):
            (folder / name).symlink_to(ROOT / name)
        (folder / path.relative_to(ROOT)).write_text(source, encoding="utf-8")
        return tests(folder, TESTS[files()[path]], limit)


def tests(folder: Path, names: list[str], limit: float) -> int | None:
    """pytest's exit code over these tests with the package in `folder`; None: not done in `limit` seconds."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(ROOT / "tests")]
        import pytest

        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(folder)]
        os._exit(int(pytest.main([*options, *(str(folder / "tests" / name) for name in names)])))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def done_already() -> list[str]:
    return REPORT.read_text(encoding="utf-8").splitlines()[1:] if REPORT.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=600, help="seconds a mutant may take; one that loops is killed")
    args = parser.parse_args()
    import hypothesis  # noqa: F401, once for all of them: each runs in a fork of this process
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    lines = done_already()
    known = {line.split(",")[0] for line in lines}
    for path in {} if known else {kind: path for path, kind in files().items()}.values():
        source = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        if (code := tried(path, source, args.limit)) != 0:
            sys.exit(f"the tests of {path.name} do not pass with the library as it is (exit code {code})")
    for number, (path, place) in enumerate(sample(args.count, args.seed), 1):
        if str(number) in known:
            continue
        line, was, now, verdict, seconds = run(path, place, args.limit)
        texts = ['"' + text.replace('"', "'").replace("\n", " ")[:80] + '"' for text in (was, now)]
        lines.append(",".join([str(number), str(path.relative_to(ROOT)), str(line), *texts, verdict, f"{seconds:.0f}"]))
        REPORT.write_text("\n".join([COLUMNS, *lines]) + "\n", encoding="utf-8")
        killed = sum(",killed" in each for each in lines)
        print(f"{number}: {verdict} ({killed} of {len(lines)} killed)", lines[-1], flush=True)


if __name__ == "__main__":
    main()
