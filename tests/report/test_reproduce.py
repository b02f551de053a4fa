"""`make reproduce` on tiny notebooks: what runs, what does not, and what is left when one fails."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from library import wait_for
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import kedit_lib
from kedit_lib.__main__ import main as program
from kedit_lib.data.config import REPOSITORY, dump, load_profile, read_yaml
from kedit_lib.report import claims, notebooks, reproduce, sweep

SMALL = {"model": "lab-small", "orders": [0, 1], "live_orders": [0], "batch_sizes": [1], "mass_sizes": [1]}
SMALL |= {"checkpoint_every": 2, "dense_every": 1, "untouched": 5, "workers": 2, "lambda_scales": [0.00001]}


def profile_text(name: str, n_edits: int) -> str:
    smoke = read_yaml(REPOSITORY / "params" / "profiles" / "smoke.yaml")
    return dump(smoke | SMALL | {"name": name, "n_edits": n_edits})


GOOD = """\
import os, pathlib, warnings
print("edits", n_edits, "profile", profile, "scale", lambda_scales, type(lambda_scales[0]).__name__)
print("in", os.getcwd(), "threads", os.environ["OMP_NUM_THREADS"])
warnings.warn("where the kernel lives")
pathlib.Path(os.environ["KEDIT_FIGURES"], "figure.csv").write_text("x")
"""


def write_notebook(path: Path, *code: str, parameters: str | None = None) -> None:
    """A source as an author leaves it: prose, a parameters cell, code; ids that do not change."""
    cells = [new_markdown_cell(f"# Title of {path.stem}")]
    if parameters is not None:
        cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(text) for text in code]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


def text_of(path: Path) -> str:
    """All stream output of an executed notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


class Project:
    """A repository of the test's own: notebooks, profiles, constraints."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "notebooks").mkdir(parents=True)
        (root / "params" / "profiles").mkdir(parents=True)
        (root / "constraints.txt").write_text("a==1\n")
        for name, n_edits in [("lab", 4), ("smoke", 2)]:
            (root / "params" / "profiles" / f"{name}.yaml").write_text(profile_text(name, n_edits))

    def source(self, stem: str) -> Path:
        return self.root / "notebooks" / f"{stem}.ipynb"

    def executed(self, stem: str) -> Path:
        return self.root / "notebooks" / "executed" / f"{stem}.ipynb"

    def files(self) -> set[str]:
        """Every file there is, relative to the root."""
        return {p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """The profiles that streams were asked for; the real streams take their time, the real library may be edited."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "PACKAGE", tmp_path_factory.mktemp("package"))
        patch.setattr(reproduce, "run_streams", lambda run, only: asked.append(run.profile))
        yield asked


@pytest.fixture
def project(tmp_path, monkeypatch, streams):
    monkeypatch.setenv("KEDIT_PARAMS", str(tmp_path / "params"))
    streams.clear()
    return Project(tmp_path)


def main(arguments: list[str], root: Path) -> int:
    """`kedit reproduce` in another repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "REPOSITORY", root)
        return program(["reproduce", *arguments])


@pytest.fixture(scope="module")
def story(tmp_path_factory, streams):
    """A project after its first run of three notebooks side by side; `code` and `lines` tell how that ended."""
    project = Project(tmp_path_factory.mktemp("a folder"))
    parameters = "profile = 'lab'\nn_edits = 1\nlambda_scales = [1.0]"
    write_notebook(project.source("00_good"), GOOD, parameters=parameters)
    write_notebook(project.source("01_fails"), "x = 1", "raise ValueError('first\\nlast')", parameters="seed = 0")
    write_notebook(project.source("02_dies"), "import os; os.kill(os.getpid(), 9)", "print(1)", parameters="seed = 0")
    write_notebook(project.source("03_changes"), "print('first')", parameters="n_edits = 1")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("KEDIT_PARAMS", str(project.root / "params"))
        patch.setenv("MPLBACKEND", "Agg")
        project.code = main([], project.root)
        project.lines = printed.getvalue().splitlines()
        project.made = project.files()
        yield project


@pytest.mark.slow
def test_first_run_executes_keeps_failures_aside_and_says_so(story):
    assert story.code == 1
    assert any(line.startswith("ok     00_good") for line in story.lines)
    (fails,) = [line for line in story.lines if "01_fails" in line]
    assert fails.startswith("FAILED") and "cell 4: last (kept: results/failed/01_fails.failed.ipynb)" in fails
    (dies,) = [line for line in story.lines if "02_dies" in line]
    assert dies.startswith("FAILED") and "cell 3: Kernel died (it was killed" in dies
    assert story.lines[-1].startswith("2 done, 2 failed")
    assert {"notebooks/executed/00_good.ipynb", "figures/figure.csv"} <= story.made
    assert {"results/failed/01_fails.failed.ipynb", "results/failed/02_dies.failed.ipynb"} <= story.made
    assert not [name for name in story.made if "running" in name or "executed/01" in name or "executed/02" in name]


@pytest.mark.slow
def test_executed_notebook_holds_the_profile_and_no_times_paths_or_random_ids(story):
    assert "edits 4 profile lab scale [1e-05] float" in text_of(story.executed("00_good"))
    raw = story.executed("00_good").read_text()
    assert "where the kernel lives" in raw and "in ./notebooks" in raw and "threads 1" in raw
    for banned in (str(story.root), str(Path.home()), sys.prefix, "ipykernel_", '"papermill":', "start_time"):
        assert banned not in raw
    ids = [cell.id for cell in nbformat.read(story.executed("00_good"), as_version=4).cells]
    assert ids == ["cell-0", "cell-1", "injected-parameters", "cell-2"]


@pytest.mark.slow
def test_second_run_does_nothing_and_a_forced_one_gives_the_same_file(story, streams, capsys):
    streams.clear()
    executed = story.executed("00_good")
    before, content = executed.stat().st_mtime_ns, executed.read_bytes()
    assert main(["--only", "00"], story.root) == 0
    assert "0 notebooks to run, 1 current" in capsys.readouterr().out
    assert executed.stat().st_mtime_ns == before and streams == []
    assert main(["--only", "00", "--force"], story.root) == 0
    assert executed.stat().st_mtime_ns != before and executed.read_bytes() == content


@pytest.mark.slow
def test_a_broken_edit_leaves_the_earlier_output_and_the_mended_one_replaces_it(story, streams, capsys):
    before = story.executed("03_changes").read_bytes()
    write_notebook(story.source("03_changes"), "1 / 0", parameters="n_edits = 1")
    assert main(["--only", "03"], story.root) == 1
    assert "cell 3: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert story.executed("03_changes").read_bytes() == before
    assert "results/failed/03_changes.failed.ipynb" in story.files()

    streams.clear()
    write_notebook(story.source("03_changes"), "print('mended', n_edits)", parameters="n_edits = 1")
    assert main(["--only", "03"], story.root) == 0
    assert "mended 4" in text_of(story.executed("03_changes"))
    assert "results/failed/03_changes.failed.ipynb" not in story.files()
    assert [profile.name for profile in streams] == ["lab"]


@pytest.mark.slow
def test_what_fails_or_lost_a_stream_is_never_current(story, monkeypatch, capsys):
    """A notebook that worked, and fails with nothing changed, must not count as done because it once was; nor where a
    stream was lost."""

    def lose(*_):
        raise kedit_lib.errors.KeditError("stream x: lost")

    with monkeypatch.context() as m:
        m.setattr(notebooks, "execute", lambda *_: "broken")
        assert main(["--only", "00", "--force"], story.root) == 1
        assert main(["--only", "00"], story.root) == 1
    ran = []
    monkeypatch.setattr(reproduce, "run_streams", lose)
    monkeypatch.setattr(notebooks, "execute", lambda run, source, *_: ran.append(source.stem))
    assert main(["--only", "00", "--force"], story.root) == 1
    assert "FAILED streams  stream x: lost" in capsys.readouterr().out
    assert ran == ["00_good"]
    assert main(["--only", "00"], story.root) == 1  # nothing counts as done


@pytest.mark.slow
def test_another_profile_runs_for_itself_and_touches_nothing_committed(story):
    committed = {n: (story.root / n).read_bytes() for n in story.files() if n.startswith(("notebooks", "figures"))}
    assert main(["--only", "00", "--profile", "smoke", "-p", "n_edits=3"], story.root) == 0
    (executed,) = story.root.glob("results/executed-smoke-n_edits-3-*/00_good.ipynb")
    label = executed.parent.name.removeprefix("executed-")
    assert f"edits 3 profile ../results/profiles/{label}.yaml" in text_of(executed)
    assert committed == {n: (story.root / n).read_bytes() for n in story.files() if n.startswith(("notebooks", "fig"))}


@pytest.mark.slow
@pytest.mark.crash
def test_a_stopped_run_leaves_no_process(project):
    code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(300)"
    write_notebook(project.source("00_sleeps"), code, parameters="seed = 0")
    program = (
        "import pathlib; from kedit_lib.__main__ import main; from kedit_lib.report import reproduce; "
        "reproduce.run_streams = lambda *_: None; "
        f"reproduce.REPOSITORY = pathlib.Path({str(project.root)!r}); raise SystemExit(main(['reproduce']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=project.root, stderr=subprocess.DEVNULL)
    noted = project.root / "notebooks" / "pid"
    wait_for(lambda: noted.is_file() and noted.read_text())
    children = psutil.Process(process.pid).children(recursive=True)
    assert int(noted.read_text()) in [child.pid for child in children]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert not project.executed("00_sleeps").exists()


@pytest.mark.parametrize(
    ("arguments", "parameters", "parts"),
    [
        (["-p", "n_edits"], "seed = 0", ["name=value"]),
        (["-p", "n_edits=5e-1"], "seed = 0", ["n_edits", "0.5", "integer"]),
        (["--profile", "nope"], "seed = 0", ["'nope'", "lab, smoke"]),
        (["--orders", "some"], "seed = 0", ["some", "0,1"]),
        (["--orders", "7"], "seed = 0", ["live_orders", "[7]"]),
        (["--only", "07"], "seed = 0", ["'07'", "00_ok"]),
        ([], "colour = 1", ["01_bad.ipynb", "'colour'", "no profile"]),
        ([], None, ["01_bad.ipynb", "0 cells tagged"]),
    ],
)
def test_wrong_arguments_or_parameters_of_one_notebook_stop_all_before_they_start(
    project, streams, capsys, arguments, parameters, parts
):
    write_notebook(project.source("00_ok"), "pass", parameters="seed = 0")
    write_notebook(project.source("01_bad"), "pass", parameters=parameters)
    before = project.files()
    assert main(arguments, project.root) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert all(part in printed.err for part in parts)
    assert project.files() == before and streams == []


def run_of(project: Project, name=None, **changed) -> reproduce.Run:
    return reproduce.make_run(project.root, *([name] if name else []), **changed)


def test_only_the_plain_lab_run_writes_to_the_committed_folders(project):
    executed, figures = project.root / "notebooks" / "executed", project.root / "figures"
    plain = {"fields": ["n_edits=4"]}, {"fields": ["workers=1"]}, {"orders": "all"}, {"model": "lab-small"}
    for changed in ({}, *plain):
        run = run_of(project, **changed)
        assert (run.executed, run.figures) == (executed, figures), changed
    house = run_of(project, str(project.root / "params" / "profiles" / "lab.yaml"))
    assert house.committed and house.profile_argument == "lab"
    (project.root / "elsewhere").mkdir()
    own = project.root / "elsewhere" / "lab.yaml"  # one of that name is not the lab's
    own.write_text(profile_text("lab", 3))
    for changed in ({"fields": ["n_edits=3"]}, {"model": "../x/y"}, {"name": "smoke"}, {"name": str(own)}):
        run = run_of(project, **changed)
        assert run.executed.parent == run.figures.parent == project.root / "results", changed


def test_what_the_command_line_changes_reaches_the_notebooks(project):
    """Also the fields that no notebook names: they read the whole profile from the file that they are handed."""
    (project.root / "my model").mkdir()
    run = run_of(project, model=str(project.root / "my model"), fields=["untouched=7"])
    handed = load_profile(run.sources / run.profile_argument)
    assert (handed.model, handed.untouched, handed.n_edits) == (str(project.root / "my model"), 7, 4)
    assert not Path(run.profile_argument).is_absolute()
    assert run_of(project, orders="1").profile_argument == "lab"  # how, not what
    orders = {given: run_of(project, orders=given).profile.live_orders for given in (None, "all", "1")}
    assert orders == {None: [0], "all": [0, 1], "1": [1]}


def test_the_minutes_are_said_before_anything_runs_on_ones_own_model(tmp_path, monkeypatch, capsys):
    """Also on one that has parameters."""
    monkeypatch.delenv("KEDIT_PARAMS", raising=False)
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path))
    edits = kedit_lib.load_edits("lab", model=kedit_lib.load_model("lab-small"), limit=80)
    facts = tmp_path / "facts.json"
    names = ("prompt", "subject", "target_new", "target_true")
    facts.write_text(json.dumps([{name: getattr(edit, name) for name in names} for edit in edits]))
    reproduce.prepare(reproduce.make_run(tmp_path, "cpu", "lab-small", str(facts), "self"))
    assert re.search(r"minutes, all.*\(cpu\) +(about|<) \d", capsys.readouterr().out)


def test_streams_are_run_for_the_live_orders_unless_one_notebook_is_wanted(project, monkeypatch):
    monkeypatch.setenv("KEDIT_RESULTS", "")
    monkeypatch.setattr(reproduce, "run_streams", REAL_RUN_STREAMS)
    calls = []
    monkeypatch.setattr(claims, "judge", lambda bench, figures, hold: calls.append((bench.profile.name, hold)))
    monkeypatch.setattr(sweep, "run_streams", lambda p, **how: calls.append((p.name, how, os.getenv("KEDIT_RESULTS"))))
    reproduce.run_streams(run_of(project, orders="all"), only=None)
    assert calls == [("lab", {"orders": [0, 1]}, str(project.root / "results")), ("lab", True)]
    reproduce.run_streams(run_of(project), only="03")
    assert len(calls) == 2


REAL_RUN_STREAMS = reproduce.run_streams


def test_what_an_output_depends_on(project, monkeypatch):
    """Code, parameters, pins, committed data and the weights' checksum count; results and figures do not."""
    package = project.root / "package"
    weights = package / "lab" / "weights" / "lab"
    for folder in (weights, project.root / "figures" / "data", project.root / "results"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(reproduce, "PACKAGE", package)

    def changes(path: Path) -> bool:
        before = reproduce.hash_files(reproduce.library_files(project.root))
        path.write_text("something new")
        return reproduce.hash_files(reproduce.library_files(project.root)) != before

    root = project.root
    for path in (package / "lab" / "code.py", package / "words.yaml", weights / "checksum", root / "constraints.txt"):
        assert changes(path), path
    for path in (root / "params" / "profiles" / "lab.yaml", root / "figures" / "data" / "order1.parquet"):
        assert changes(path), path
    for path in (weights / "model.safetensors", root / "figures" / "figure.csv", root / "results" / "rows.parquet"):
        assert not changes(path), path


def test_tidy_leaves_pictures_alone_and_takes_out_random_ids(tmp_path):
    picture = "A" + str(tmp_path) + "B"  # stands for base64 that happens to look like a path
    data = {"image/png": picture, "text/plain": f"{tmp_path}/x and {tmp_path}-not", "image/svg+xml": f"{tmp_path}/y"}
    cells = [new_code_cell("1", outputs=[new_output("display_data", data=data)])]
    notebook = new_notebook(cells=cells, metadata={"widgets": {"state": {"a random id": {}}}})
    notebooks.tidy(notebook, tmp_path)
    assert notebook["cells"][0]["outputs"][0]["data"] == {
        "image/png": picture,
        "text/plain": f"./x and {tmp_path}-not",
        "image/svg+xml": "./y",
    }
    assert "widgets" not in notebook["metadata"]


def test_what_shows_the_answers_of_others_is_run_when_they_have_them(project, monkeypatch):
    """In the same run after them; and again, alone, when an answer is another one."""
    order = []

    def execute(run, source, parameters):
        order.append(source.stem)
        if source.stem == "06_why":
            run.figures.mkdir(exist_ok=True)
            (run.figures / "11_foretold.csv").write_text(source.read_text())
        run.executed.mkdir(exist_ok=True)
        (run.executed / source.name).write_text(source.read_text())

    def ran(code=0):
        order.clear()
        assert main([], project.root) == code
        return list(order)

    monkeypatch.setattr(notebooks, "execute", execute)
    for stem in ("00_start_here", "01_other", "06_why"):
        write_notebook(project.source(stem), "1", parameters="seed = 0")
    assert ran()[-1] == "00_start_here"
    assert ran() == []
    write_notebook(project.source("06_why"), "2", parameters="seed = 0")
    assert ran() == ["06_why", "00_start_here"]
    (project.root / "figures" / "11_foretold.csv").write_text("by hand")
    assert ran() == ["00_start_here"]
    write_notebook(project.source("06_why"), "3", parameters="seed = 0")
    with monkeypatch.context() as m:
        m.setattr(notebooks, "execute", lambda run, source, *_: "broken")
        ran(code=1)
    assert ran() == ["06_why", "00_start_here"]
