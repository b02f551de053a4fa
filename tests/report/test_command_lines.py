"""Command lines that are wrong: a line on stderr that says what to do, an exit code, no traceback, nothing written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lab_model
import psutil
import pytest
from library import wait_for

from kedit_lib.__main__ import main
from kedit_lib.errors import KeditError, program
from kedit_lib.report import reproduce

ROOT = Path(__file__).resolve().parents[2]
SMOKE, BEYOND = ["reproduce", "--profile", "smoke", "-p"], "9" * 23  # which no generator takes
PLAN = ["sweep", "--profile", "smoke", "--plan", "--orders"]
TABLE = [
    (["sweep", "--profile", "smok"], ["'smok'", "did you mean smoke"]),
    (["sweep", "--profil", "smoke"], ["--profil", "--profile"]),
    (["sweep", "--profile", "smoke", "--streams", "memet"], ["'memet'", "did you mean memit; there are memit"]),
    (["sweep", "--profile", "smoke", "--orders", "one"], ["--orders one", "1,2"]),
    (["sweep", "--profile", "smoke", "--orders=-1"], ["--orders -1"]),
    (["reproduce", "-p", "n_edit=5"], ["n_edit = 5", "did you mean n_edits"]),
    (["reproduce", "--only"], ["--only"]),
    (["check-model", "smolm2"], ["'smolm2'", "did you mean smollm2"]),
    (["edit", "lab-small", "--prompt", "no place", "--subject", "x", "--to", "y"], ["exactly one"]),
    (["edit", "lab-small", "--prompt", "{} is"], ["--subject"]),
    (["edit", "lab-small", "--prompt", "{} is", "--subject", "x", "--to", "y", "--method", "rmoe"], ["mean rome"]),
    (["edit", "lab-small", "--prompt", "{} is", "--subjct", "x", "--to", "y"], ["--subjct", "--subject"]),
    (["stream", "lab-small", "--edits", "missing.json"], ["missing.json"]),
    (["stream", "lab-small", "--edits", "lab", "--guard", "hope"], ["--guard"]),
    (["evaluate", "lab-small"], ["kedit_edits.json"]),
    (["evaluate", "lab-small", "--limit", "-1"], ["--limit", "greater than or equal to 1"]),
    (["strem", "lab-small"], ["'strem'", "Did you mean 'stream'"]),
    ([*SMOKE, f"seed={BEYOND}"], ["seed"]),
    ([*SMOKE, "seed=1000001"], ["seed"]),
    ([*SMOKE, "orders=[0,1000]"], ["orders"]),
    ([*PLAN, BEYOND], ["the last order is 999"]),
    ([*PLAN, "0,1000"], ["the last order is 999"]),
    (["bench/lab_model.py", "--steps", "0"], ["0 steps", "at least 1"]),
    (["bench/lab_model.py", "--device", "abacus"], ["'abacus'", "give one that is there"]),
    (["bench/lab_model.py", "--out", "README.md/folder"], ["README.md/folder", "cannot be written"]),
]


@pytest.mark.parametrize(("arguments", "says"), TABLE, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_wrong_command_line(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no folder")
    code = lab_model.main(arguments[1:]) if arguments[0] == "bench/lab_model.py" else main(arguments)
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert code in (1, 2)
    assert line.startswith("kedit: ") and "Traceback" not in printed.out
    for part in says:
        assert part in line
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_program_ends_with_one_line_and_a_code(monkeypatch, capsys):
    def raises(error):
        raise error

    assert program(lambda: 0)() == 0
    assert program(raises)(KeditError("a\nb")) == 1
    assert capsys.readouterr().err == "kedit: a b\n"
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: raises(KeyboardInterrupt()))
    assert main(["reproduce", "--profile", "smoke"]) == program(raises)(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.count("the same command goes on") == 2
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not hidden
        program(raises)(ZeroDivisionError())


SLOW = """
import signal, sys, time
from kedit_lib.__main__ import main
from kedit_lib.report import sweep
from kedit_lib.streams.interrupts import postponed

def work(bench, name, order):
    with postponed() as stop:
        open(f"begun-{order}", "w").close()
        end = time.monotonic() + 60
        while not stop() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(10)
        open(f"saved-{order}", "w").close()
    raise KeyboardInterrupt

sweep.Bench.run = work
"""


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("to", [os.killpg, os.kill])
def test_a_sweep_that_is_interrupted_begins_nothing_more(tmp_path, to):
    """Ctrl-C reaches the program and its workers, as it does from a terminal, or the program alone. Workers finish
    their edits and end."""
    program = SLOW + (
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background process lacks
        "    sys.exit(main(['sweep', '--profile', 'smoke', '--streams', 'memit', '--orders', '0,1,2,3,4,5']))\n"
    )
    (tmp_path / "slow.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "slow.py"], cwd=tmp_path, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: len(list(tmp_path.glob("begun-*"))) >= 2, 240)
    workers = psutil.Process(process.pid).children(recursive=True)
    to(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "kedit: stopped" in printed and "stopping after this edit" in printed and "Traceback" not in printed
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    begun = {p.name.split("-")[1] for p in tmp_path.glob("begun-*")}
    assert {p.name.split("-")[1] for p in tmp_path.glob("saved-*")} == begun
    assert len(begun) == 2
