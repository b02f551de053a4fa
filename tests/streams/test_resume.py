"""Runs that are killed, interrupted, damaged or run twice: what is found on disk afterwards is the uninterrupted run.

Processes are real: they are forked from one that has torch and a model in memory already, and killed with SIGKILL.
"""

import errno
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import psutil
import pytest
import tiny
import torch
from library import SEQUENCE, FailsAt, assert_same_runs, assert_same_weights, holds, moments, refused, snapshot

import kedit_lib as kedit
from kedit_lib.data import atomic as durable
from kedit_lib.evaluation import teacher_forced
from kedit_lib.streams.store import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
METHOD = kedit.MEMIT(layers=[1, 2], v_num_grad_steps=2, mom2_update_weight=5.0, use_history=True)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return kedit.load_model(tiny_folder("llama"), dtype=torch.float32)


class FirstEdits:
    """What the model says of two edits, and its weights: a probe that is quick, and differs after every edit."""

    identity = "first edits"

    def __call__(self, model, done):
        asked = SEQUENCE[:2]
        p = teacher_forced(model, [e.text for e in asked], [e.target_new for e in asked]).probability
        rows = [("probability", p.mean().item()), ("weight", model.weight(1).double().sum().item())]
        return [{"metric": metric, "cohort": "first", "value": value, "n": 2} for metric, value in rows]


def stream(model, store, n=None, **options):
    options = {"contexts": tiny.CONTEXTS[:2], "dense_every": 2, "checkpoint_every": 2, "progress": False, **options}
    options = {"probes": [FirstEdits()], **options}
    return kedit.run_stream(model, SEQUENCE[:n], METHOD, moments=moments(), store=store, **options)


def forked(work) -> int:
    """`work()` in a process of its own; its id. The exit code is 0, or 1 after an exception, which is printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside the test runner's threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a process, −9 for a killed one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def assert_same(one, other):
    """Rows and weights bit for bit, none missing or doubled."""
    assert_same_runs(one, other)
    assert_same_weights(one.final_weights(), other.final_weights())


@pytest.mark.crash
@pytest.mark.slow
def test_a_stream_that_is_killed_twenty_times(model, tmp_path):
    """At random moments, in edits, probes and writes. How long a process may live follows from how far the ones before
    it came, on any machine: about every third writes a checkpoint."""
    assert ended(forked(lambda: stream(model, tmp_path / "whole"))) == 0
    rng, longest, states = random.Random(0), 0.2, [()]
    for _ in range(21):
        pid = forked(lambda: stream(model, tmp_path / "killed"))
        process, life = psutil.Process(pid), rng.uniform(0, longest)
        while sum(process.cpu_times()[:2]) < life and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        states.append(tuple(sorted(p.name for p in (tmp_path / "killed").glob("*/at-*"))))
        longest *= 0.7 if states[-1] != states[-2] else 1.15
    assert not list((tmp_path / "killed").glob("*/manifest.json"))  # all of them in the one stream
    assert len(set(states)) >= 3  # and not all before the first checkpoint
    assert_same(stream(model, tmp_path / "whole"), stream(model, tmp_path / "killed"))


def dies_at(point: int, store: Path) -> None:
    """Kill this process before it changes the store's files for the `point`-th time."""
    seen, fsync = [], os.fsync

    def count(event, args):
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") or (
            event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        )
        if writes and str(store) in str(args[0]) or event == "kedit.fsync":
            seen.append(event)
            if len(seen) == point:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(file):
        sys.audit("kedit.fsync", file)
        fsync(file)

    sys.addaudithook(count)
    os.fsync = counted


@pytest.mark.crash
@pytest.mark.slow
def test_a_kill_at_each_write_point(model, tmp_path):
    """Before each folder that is made, each file that is opened, synced, renamed or removed. A process that dies there
    leaves a store whose newest checkpoint is whole; the next one dies one step later, until one gets past a checkpoint
    (then the steps to the next begin) and at last to the end."""
    options = {"n": 3, "dense_every": 1, "checkpoint_every": 1, "contexts": ["{}"]}
    whole, store, point, before, kills = stream(model, tmp_path / "whole", **options), tmp_path / "store", 1, 0, 0

    def work():
        dies_at(point, store)
        stream(model, store, **options)

    while (code := ended(forked(work))) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what a kill leaves is never damaged
            found = [RunFolder(folder).newest_checkpoint() for folder in store.glob("*")]
        done = max((checkpoint.done for checkpoint in found if checkpoint), default=0)
        assert done >= before
        point, before = (1, done) if done > before else (point + 1, done)
    assert kills > 60
    assert_same(whole, stream(model, store, **options))
    (folder,) = store.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == sorted([".lock", "at-000003", *TABLES])


TABLES = ("edits.parquet", "checkpoints.parquet", "manifest.json")


def test_a_checkpoint_holds_the_edited_layers_alone_and_two_are_kept(model, tmp_path):
    class Watch:
        identity, seen = "watch", []

        def __call__(self, model, done):
            self.seen.append(sorted(p.name for p in tmp_path.glob("*/at-*")))
            return []

    run = stream(model, tmp_path, 8, probes=[Watch()])
    expected = [[], [], ["at-000002"], ["at-000002", "at-000004"], ["at-000004", "at-000006"]]
    assert Watch.seen == expected
    edited = sum(model.weight(layer).numel() * 4 for layer in METHOD.layers)
    assert (run.path / "at-000008" / "weights.safetensors").stat().st_size < edited + 1000
    assert set(run.final_weights()) == {model.weight_name(layer) for layer in METHOD.layers}


PARTS = ("weights.safetensors", "history.safetensors", "edits.parquet", "checkpoints.parquet", "state.json")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def moved(path):
    path.parent.rename(path.parent.with_name("at-000006"))


DAMAGED = [(cut_off, part) for part in (*PARTS, "checksums.json")]
DAMAGED += [(flipped, PARTS[0]), (flipped, PARTS[2]), (Path.unlink, PARTS[1]), (Path.unlink, "checksums.json")]
QUICK = [(cut_off, PARTS[0]), (flipped, PARTS[2]), (Path.unlink, PARTS[1])]
DAMAGED = [pytest.param(*how, marks=() if how in QUICK else pytest.mark.slow) for how in DAMAGED]


@pytest.mark.parametrize("damage, part", [*DAMAGED, (moved, PARTS[0])])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(model, halfway, tmp_path, damage, part):
    whole, store = halfway(tmp_path)
    (folder,) = store.iterdir()
    damage(folder / "at-000004" / part)
    with pytest.warns(UserWarning, match="at-00000[46]: is damaged .*; at-000002 is used instead"):
        assert_same(whole, stream(model, store, 7))


@pytest.fixture(scope="module")
def halfway(model, tmp_path_factory):
    """`halfway(folder)`: a stream of seven edits, whole, and a store where it was stopped after four."""
    whole, stopped = stream(model, tmp_path_factory.mktemp("whole"), 7), tmp_path_factory.mktemp("stopped")
    with pytest.raises(RuntimeError, match="in the middle"):
        stream(model, stopped, 7, probes=[FirstEdits(), FailsAt(6)])
    (folder,) = stopped.iterdir()
    folder.rename(stopped / whole.path.name)  # the failing probe is not part of what is resumed
    for state in stopped.glob("*/at-*/state.json"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "key": whole.manifest["key"]}))
        sums = {**json.loads((state.parent / "checksums.json").read_text()), "state.json": durable.checksum(state)}
        (state.parent / "checksums.json").write_text(json.dumps(sums))
    return lambda folder: (whole, Path(shutil.copytree(stopped, folder / "store")))


@pytest.mark.parametrize("table", TABLES[:2])
def test_a_damaged_table_of_a_finished_run_is_an_error(model, tmp_path, table):
    run = stream(model, tmp_path, 2)
    flipped(run.path / table)
    refused(lambda: stream(model, tmp_path, 2), f"{table} is not what was written", "run again")


def test_final_weights_are_those_of_the_end_or_none(model, tmp_path):
    """Never an earlier checkpoint's, which a kill between the manifest and the cleaning up leaves beside the last."""
    run = stream(model, tmp_path, 4)
    before = run.final_weights()
    flipped(run.path / "at-000004" / "weights.safetensors")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(kedit.KeditError, match="final weights missing"):
        run.final_weights()
    flipped(run.path / "at-000004" / "weights.safetensors")
    assert_same_weights(before, run.final_weights())
    (run.path / "at-000004").rename(run.path / "at-000003")
    with pytest.warns(UserWarning, match="moved"), pytest.raises(kedit.KeditError, match="final weights missing"):
        run.final_weights()


def test_a_resumed_stream_says_when_it_goes_on_elsewhere(model, halfway, tmp_path):
    _, store = halfway(tmp_path)
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match="was begun with threads 1, now 2; the last digits may differ"):
            stream(model, store, 7)
    finally:
        torch.set_num_threads(1)


@pytest.mark.crash
def test_of_two_processes_on_one_run_one_works_and_one_waits(model, tmp_path):
    """And says so. Both return the same run; every edit was made once."""

    def work(name):
        made, apply = [], kedit.Method.apply_prepared

        def counted(self, call):
            made.extend(call.edits)
            return apply(self, call)

        kedit.Method.apply_prepared = counted
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run = stream(model, tmp_path / "store", 20)
        waited = any("another process is running this stream; waiting" in str(w.message) for w in said)
        (tmp_path / name).write_text(json.dumps([len(made), waited, run.manifest["finished"], str(run.path)]))

    pids = [forked(lambda name=name: work(name)) for name in ("one", "other")]
    assert [ended(pid) for pid in pids] == [0, 0]
    found = sorted(json.loads((tmp_path / name).read_text()) for name in ("one", "other"))
    assert [(made, waited) for made, waited, *_ in found] == [(0, True), (20, False)]
    assert found[0][2:] == found[1][2:]


@pytest.fixture
def heeding():
    """A process that heeds Ctrl-C: one in the background of a shell script does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class CtrlC(FailsAt):
    """A probe that is interrupted in the middle: as if the key was pressed right there."""

    def __call__(self, model, done):
        if len(done) == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return []


@pytest.mark.usefixtures("heeding")
def test_ctrl_c_finishes_the_edit_and_writes_a_checkpoint(model, tmp_path, monkeypatch, capsys):
    """In the middle of the third edit: three are kept, and the run that goes on is the uninterrupted one."""
    before, apply, calls = snapshot(model), kedit.MEMIT._apply, []

    def interrupted(self, call):
        calls.append(len(call.edits))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return apply(self, call)

    with monkeypatch.context() as m:
        m.setattr(kedit.MEMIT, "_apply", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped after 3 of 7 edits"):
            stream(model, tmp_path / "cut", 7)
    assert "stopping after this edit" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.glob("cut/*/at-*")) == ["at-000002", "at-000003"]
    assert holds(model, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(stream(model, tmp_path / "whole", 7), stream(model, tmp_path / "cut", 7))


@pytest.mark.usefixtures("heeding")
@pytest.mark.parametrize("at", [0, 4, 7])
def test_ctrl_c_in_a_probe_finishes_the_probe(model, tmp_path, at):
    whole = stream(model, tmp_path / "whole", 7, probes=[FirstEdits(), CtrlC(None)])
    with pytest.raises(KeyboardInterrupt):
        stream(model, tmp_path / "cut", 7, probes=[FirstEdits(), CtrlC(at)])
    assert [p.name for p in tmp_path.glob(f"cut/*/at-{at:06d}")] == [f"at-{at:06d}"] * (at > 0)
    assert_same(whole, stream(model, tmp_path / "cut", 7, probes=[FirstEdits(), CtrlC(None)]))


@pytest.mark.usefixtures("heeding")
def test_a_second_ctrl_c_stops_at_once(model, tmp_path):
    before = snapshot(model)

    class Impatient(CtrlC):
        def __call__(self, model, done):
            super().__call__(model, done)
            return super().__call__(model, done)

    with pytest.raises(KeyboardInterrupt):
        stream(model, tmp_path, 7, probes=[Impatient(2)])
    assert not list(tmp_path.glob("*/at-*"))
    assert holds(model, before)


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_disk_that_fills_up_while_a_checkpoint_is_synced(model, tmp_path, monkeypatch, at):
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == 9 + at:  # in the second checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(file)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        refused(lambda: stream(model, tmp_path, 5), "No space left on device", "was stored before is intact")
    assert not list(tmp_path.glob("*/.at*"))
    assert_same(stream(model, tmp_path, 5), stream(model, tmp_path.parent / f"{tmp_path.name}-whole", 5))


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(model, tmp_path):
    (tmp_path / "file").touch()
    says = "file", ": cannot be written", "choose another folder"
    refused(lambda: stream(model, tmp_path / "file", 3, probes=[FailsAt(0)]), *says)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_results_folder_is_refused_and_its_finished_runs_are_read(model, tmp_path):
    finished = stream(model, tmp_path, 2)
    for folder in (finished.path, tmp_path):
        folder.chmod(0o500)
    assert_same(finished, stream(model, tmp_path, 2))
    refused(lambda: stream(model, tmp_path, 3), "cannot be written", "Permission denied")


OUT_OF_MEMORY = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")]
OUT_OF_MEMORY += [RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("failure", [*OUT_OF_MEMORY, float("nan")], ids=lambda f: type(f).__name__)
def test_an_edit_that_cannot_be_solved_stops_before_the_write(model, tmp_path, monkeypatch, failure):
    """With one line that names the edit, of NaN the layer, and the last checkpoint; from there it goes on."""
    before, solve, calls, of_numbers = snapshot(model), kedit.SecondMoments.solve, [], failure != failure

    def fails_later(self, layer, k, shift):
        calls.append(layer)
        if len(calls) == 13 and not of_numbers:  # in the fourth edit: the second layer's new key
            raise failure
        return solve(self, layer, k, shift) * (failure if len(calls) == 13 else 1)

    says = [SEQUENCE[3].subject, "layer 2: ", "NaN or inf"] if of_numbers else ["out of memory"]
    with monkeypatch.context() as m:
        m.setattr(kedit.SecondMoments, "solve", fails_later)
        refused(lambda: stream(model, tmp_path, 7), "edit 4 of 7 ", *says, "at-000002")
    assert holds(model, before)
    if of_numbers:
        assert_same(stream(model, tmp_path / "whole", 7), stream(model, tmp_path, 7))


@pytest.mark.slow
def test_a_long_stream_takes_flat_memory_and_bounded_disk(model, tmp_path):
    """What grows is a row of numbers an edit: forty more edits leave no tensor behind, and the store holds two
    checkpoints of one matrix."""

    class Alive(FirstEdits):
        def __call__(self, model, done):
            gc.collect()
            count = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
            size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
            return [{"metric": m, "cohort": "all", "value": n, "n": 1} for m, n in (("alive", count), ("disk", size))]

    method = kedit.ROME(layers=[1], v_num_grad_steps=1, mom2_adjustment=False)
    options = {"contexts": ["{}"], "probes": [Alive()], "progress": False, "store": tmp_path}
    run = kedit.run_stream(model, SEQUENCE, method, **options, dense_every=20, checkpoint_every=20)
    alive, disk = run.curve("alive", "all"), run.curve("disk", "all")
    assert alive[60] - alive[20] < 5
    assert disk.max() < 2 * (model.weight(1).numel() * 4 + 60 * 1000)


@pytest.mark.slow
def test_the_same_stream_in_another_process_gives_the_same_bits(model, tiny_folder, tmp_path):
    """Same seed, same machine: loaded, sampled contexts and all, a second time."""
    code = (
        "import test_resume as t, kedit_lib as kedit, torch; torch.set_num_threads(1); "
        f"m = kedit.load_model({str(tiny_folder('llama'))!r}, dtype=torch.float32); "
        f"t.stream(m, {str(tmp_path / 'other')!r}, 4, contexts=None)"
    )
    here = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (here, here / "streams", here.parent)))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=True)
    one, store = stream(model, tmp_path / "one", 4, contexts=None), tmp_path / "other"
    (stored,) = store.iterdir()
    assert stored.name == one.path.name
    assert_same(one, stream(model, store, 4, contexts=None))
