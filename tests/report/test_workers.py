"""Workers that die, a scheduler that is lost, Ctrl-C: streams go on from their last checkpoint, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from library import assert_same_runs, assert_same_weights, refused, wait_for

import kedit_lib as kedit
from kedit_lib.data.config import load_profile
from kedit_lib.report import sweep
from kedit_lib.report.sweep import in_workers

pytestmark = [pytest.mark.slow, pytest.mark.crash]
PROFILE = load_profile("smoke", workers=3)
EDITS, HELD_AT = 12, 6


@dataclass
class Held:
    """After HELD_AT edits, given a file `hold`: writes its process id to `held` and waits until that is gone."""

    folder: Path
    identity = "held"

    def __call__(self, model, done) -> list[dict]:
        hold, held = self.folder / "hold", self.folder / "held"
        if len(done) == HELD_AT and hold.exists():
            hold.unlink()
            held.write_text(str(os.getpid()))
            while held.exists():
                time.sleep(0.05)
        return []


def stream(bench, store) -> kedit.Run:
    """A stream with a checkpoint at every second edit."""
    method = kedit.ROME(layers=[1], v_num_grad_steps=3, mom2_adjustment=False)
    options = {"contexts": ["{}"], "probes": [Held(store.parent)], "checkpoint_every": 2, "progress": False}
    return kedit.run_stream(bench.model, bench.edits(0, EDITS), method, store=store, dense_every=2, **options)


def noted(bench, folder) -> str:
    """Leaves a file each time it is called."""
    time.sleep(3)
    (Path(folder) / str(time.time_ns())).touch()
    return "done"


def meanwhile(folder: Path, act) -> list[str]:
    """In a thread: call `act` with the number of the process that waits in the middle of a stream (see Held), and let
    it go on a little later; [when that stream was begun]."""
    seen, held = [], folder / "held"
    (folder / "hold").touch()

    def watch() -> None:
        wait_for(lambda: held.exists() and held.read_text(), 240)
        states = sorted(folder.glob("store/*/at-*/state.json"))
        seen.append(json.loads(states[0].read_text())["started"])
        act(int(held.read_text()))
        time.sleep(3)  # until the others have noticed
        held.unlink()

    threading.Thread(target=watch, daemon=True).start()
    return seen


def assert_resumed(store: Path, started: list[str], tmp_path: Path) -> None:
    """The stream in the store was not begun again, and is the one that nothing happened to."""
    bench = kedit.Bench(PROFILE, progress=False)
    run, whole = stream(bench, store), stream(bench, tmp_path / "whole")
    assert started == [run.manifest["started"]] != [whole.manifest["started"]]
    assert_same_runs(run, whole)
    assert_same_weights(run.final_weights(), whole.final_weights())


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_stream_whose_worker_is_killed_goes_on_on_another(tmp_path, capfd):
    started = meanwhile(tmp_path, lambda pid: os.kill(pid, signal.SIGKILL))
    (run,) = in_workers({"stream": (stream, PROFILE, tmp_path / "store")}, PROFILE)
    assert len(run.edits) == EDITS
    assert_resumed(tmp_path / "store", started, tmp_path)
    assert not children()
    printed = capfd.readouterr()
    assert "3 workers: tcp://127.0.0.1:" in printed.out and "[1/1, " in printed.out
    assert "Traceback" not in printed.err and "distributed" not in printed.err


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A scheduler and two workers, each in a process and a folder of its own; SCHEDULER names it."""
    about, processes = tmp_path / "scheduler.json", []

    def start(name: str, *arguments: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        here = {"KEDIT_RESULTS": str(folder / "results"), "OMP_NUM_THREADS": "1"}
        here["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-m", f"distributed.cli.dask_{arguments[0]}", *arguments[1:]]
        log = (folder / "log").open("w")
        processes.append(
            subprocess.Popen([*command, "--scheduler-file", str(about)], cwd=folder, env=os.environ | here, stderr=log)
        )

    start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    for name in ("one", "two"):
        start(name, "worker", "--nthreads", "1", "--no-dashboard")
    wait_for(about.exists)
    monkeypatch.setenv("SCHEDULER", json.loads(about.read_text())["address"])
    yield processes
    for process in reversed(processes):
        process.terminate()
        process.wait(timeout=30)


def test_workers_of_a_scheduler_hand_back_what_they_made(cluster, tmp_path, monkeypatch, capsys):
    """From results folders of their own. A task that two ask for is run once."""
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path / "ours"))
    monkeypatch.setattr("kedit_lib.streams.bench.data_folder", lambda: tmp_path / "data")
    profile = load_profile("smoke", n_edits=2, batch_sizes=[1], mass_sizes=[1], untouched=5)
    sweep.run_streams(profile, [0], ["memit-sum", "why-clamp"], commit=True)
    made = tmp_path.glob("*/results/streams/*/edits.parquet")
    made = {path.parents[3].name: path.parent.name for path in made}
    assert made.keys() == {"one", "two"}
    assert {path.name for path in (tmp_path / "ours" / "streams").iterdir()} == set(made.values())
    bench = kedit.Bench(profile, progress=False)
    for worker, folder in made.items():
        kept = [root / folder for root in (tmp_path / worker / "results" / "streams", tmp_path / "ours" / "streams")]
        for name in ("edits.parquet", "checkpoints.parquet", "manifest.json"):
            assert (kept[0] / name).read_bytes() == (kept[1] / name).read_bytes()
    assert len(bench.committed("memit-sum", 0).edits) == len(bench.committed("why-clamp", 0).edits) == 2

    (tmp_path / "calls").mkdir()
    ask = {"noted": (noted, PROFILE, tmp_path / "calls")}
    asking = [threading.Thread(target=in_workers, args=(ask, PROFILE)) for _ in range(2)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(list((tmp_path / "calls").iterdir())) == 1
    assert capsys.readouterr().out.count("noted: done") == 2


def test_a_lost_scheduler_leaves_streams_that_resume(cluster, tmp_path, capfd):
    scheduler, *workers = cluster
    started = meanwhile(tmp_path, lambda _: scheduler.kill())
    with pytest.raises(kedit.KeditError, match="scheduler tcp://.* is lost; the same command goes on"):
        in_workers({"stream": (stream, PROFILE, tmp_path / "store")}, PROFILE)
    for worker in workers:
        worker.wait(timeout=60)
    assert not list((tmp_path / "store").glob("*/manifest.json"))
    assert_resumed(tmp_path / "store", started, tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("SCHEDULER", "tcp://127.0.0.1:1")
    says = "scheduler 'tcp://127.0.0.1:1': cannot be reached", "dask scheduler"
    refused(lambda: in_workers({"noted": (noted, PROFILE, ".")}, PROFILE), *says)
