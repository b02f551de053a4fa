"""A stream of edits: what its tables say, that its batches are the method's own, and that nothing is lost or mixed up
when it is stored, found again, interrupted or damaged. What kills do is in test_resume.py."""

import json
import math
from importlib import import_module

import pandas as pd
import pytest
import tiny
import torch
from library import SEQUENCE, assert_same_runs, assert_same_weights, holds, moments, parameters, refused, snapshot

import kedit_lib as kedit

EDITS = SEQUENCE[:13]
FAST = {"layers": [1, 2], "v_num_grad_steps": 2, "mom2_update_weight": 5.0}
MODEL = "llama", torch.float32


class Panel:
    """A probe with given accuracies on untouched facts, {edits done: value}. It keeps count of when it was asked, and
    fails after `fails_at` edits."""

    def __init__(self, untouched=None, fails_at=None):
        self.untouched, self.fails_at = untouched or {0: 1.0}, fails_at
        self.identity, self.asked = f"panel-{sorted(self.untouched.items())}", []

    def __call__(self, model, done):
        if len(done) == self.fails_at:
            raise RuntimeError("in the middle")
        self.asked.append(len(done))
        value = self.untouched[max(at for at in self.untouched if at <= len(done))]
        weight = model.weight(1).double()
        return [
            {"metric": "accuracy", "cohort": "untouched", "value": value, "n": 10},
            {"metric": "weight", "cohort": "all", "value": weight.sum().item(), "n": weight.numel()},
        ]


def stream(model, edits=EDITS[:5], method=None, **options):
    options = {"moments": moments(), "contexts": tiny.CONTEXTS[:2], "probes": [Panel()], "progress": False, **options}
    return kedit.run_stream(model, edits, method or kedit.MEMIT(**FAST), **options)


WITH_HISTORY = [
    kedit.MEMIT(**FAST, use_history=True),
    kedit.AlphaEdit(layers=[1, 2], v_num_grad_steps=2, nullspace_rank=30, L2=2.0),
]


@pytest.mark.parametrize(
    "method", [kedit.MEMIT(**FAST), kedit.PMET(**FAST), kedit.ROME(layers=[2], v_num_grad_steps=2)]
)
def test_rows_are_the_methods_outcomes_and_the_norms_of_the_weights(tiny_folder, model, method):
    edits, sizes = EDITS[:5], [2, 2, 1]
    run = stream(model, edits, method, batch_size=2)
    assert run.edits.edit.tolist() == [1, 2, 3, 4, 5]
    assert run.edits.batch.tolist() == [2, 2, 2, 2, 1]
    for column in ("id", "subject", "relation", "target_new"):
        assert run.edits[column].tolist() == [getattr(e, column) for e in edits]
    assert (run.edits.seconds > 0).all()
    assert run.edits.seconds[0] == run.edits.seconds[1]  # a batch's time is shared

    by_hand, rows = kedit.load_model(tiny_folder("llama"), dtype=torch.float32), iter(run.edits.to_dict("records"))
    unedited = snapshot(by_hand)
    C = {layer: c.double() for layer, c in tiny.second_moments().items()}
    for size, begin in zip(sizes, (0, 2, 4), strict=True):
        before = snapshot(by_hand)
        outcome = method.apply(by_hand, edits[begin : begin + size], moments=moments(), contexts=tiny.CONTEXTS[:2])
        after = parameters(by_hand)
        written = {name: value.double() - unedited[name].double() for name, value in before.items()}
        for target, row in zip(outcome.targets, rows, strict=False):
            assert row["probability_first"] == target.probabilities[0]
            assert row["probability_last"] == target.probabilities[-1]
            assert row["loss_last"] == target.losses[-1]
            assert row["steps"] == target.steps == 2
            ratio = float(target.delta.norm() / (target.z - target.delta).norm())
            assert row["delta_ratio"] == pytest.approx(ratio, rel=1e-5)
            for layer in method.layers:
                name = f"model.layers.{layer}.mlp.down_proj.weight"
                moved = float((after[name].double() - before[name].double()).norm())
                assert row[f"dW_{layer}"] == pytest.approx(moved, rel=1e-4)
                if begin == 0:
                    assert math.isnan(row[f"along_{layer}"])
                else:
                    a, b = written[name].flatten(), (after[name].double() - before[name].double()).flatten()
                    assert row[f"along_{layer}"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-3)
                assert row[f"W_{layer}"] == pytest.approx(float(after[name].double().norm()), rel=1e-9)
                if method.name != "ROME":  # what an edit alone would write: s/(λ+s), s = kᵀC⁻¹k
                    k = target.key_per_layer[layer].double()
                    s = float(k @ torch.linalg.solve(C[layer], k))
                    assert row[f"s_{layer}"] == pytest.approx(s, rel=1e-6)
                    assert row[f"written_{layer}"] == pytest.approx(s / (5.0 + s), rel=1e-6)
    assert next(rows, None) is None


@pytest.mark.parametrize("method", WITH_HISTORY, ids=lambda m: m.name)
def test_a_stream_has_one_history(tiny_folder, model, tmp_path, method):
    """Each batch knows the keys of those before it; a history that is given is where it starts, and stays as it is."""
    run = stream(model, method=method, batch_size=2, store=tmp_path)
    by_hand, history = kedit.load_model(tiny_folder("llama"), dtype=torch.float32), kedit.EditHistory()
    given = {"moments": moments(), "contexts": tiny.CONTEXTS[:2], "history": history}
    written = []
    for batch in (EDITS[:2], EDITS[2:4], EDITS[4:5]):
        written += method.apply(by_hand, batch, **given).written[2].tolist()
    assert run.edits.written_2.tolist() == written
    for name, value in run.final_weights().items():
        assert torch.equal(value, parameters(by_hand)[name])
    assert ("s_2" in run.edits) == (method.name == "MEMIT")

    identity = history.identity
    later = stream(model, method=method, batch_size=2, store=tmp_path, history=history)
    assert later.path != run.path
    assert later.edits.written_2[0] < run.edits.written_2[0]  # its key has been written before
    assert (history.edits, history.identity) == (5, identity)
    empty = stream(model, method=method, batch_size=2, store=tmp_path, history=kedit.EditHistory())
    assert empty.path == run.path


def test_a_stream_without_targets_or_moments(model):
    """FT has no δ: its rows say what its loss reached, and leave out what there is not."""
    method = kedit.FT(layers=[2], num_steps=3, norm_constraint=1e-3, lr=0.01)
    run = stream(model, method=method, moments=None, contexts=None, batch_size=2, dense_every=5)
    assert run.manifest["contexts"] == ["{}"]
    assert run.edits.steps.tolist() == [4] * 5  # three steps, and what they reached
    assert (run.edits.probability_last > run.edits.probability_first).all()
    assert run.edits.delta_ratio.isna().all()
    assert run.edits.clamped.all()
    assert run.edits.dW_2.max() <= 1e-3 * (tiny.D_MODEL * tiny.D_FF) ** 0.5 * 1.001
    assert not {"s_2", "written_2"} & set(run.edits)


def test_the_model_comes_back_as_it_was_and_a_stream_starts_from_the_unedited_weights(model):
    original = snapshot(model)
    clean = stream(model, contexts=None)
    assert holds(model, original)
    with pytest.raises(RuntimeError, match="in the middle"):
        stream(model, probes=[Panel(fails_at=5)])
    assert holds(model, original)
    kedit.MEMIT(**FAST).apply(model, EDITS[7:8], moments=moments(), contexts=["{}"])
    edited = snapshot(model)
    assert_same_runs(clean, stream(model, contexts=None))
    assert holds(model, edited)


EVERY = {"dense_every": 2, "checkpoint_every": 5}


@pytest.mark.parametrize(
    "untouched, options, expected",
    [
        ({0: 1.0}, EVERY, [0, 2, 4, 6, 8, 10, 12, 13]),
        ({0: 1.0, 4: 0.49}, EVERY, [0, 2, 4, 9, 13]),
        ({0: 1.0, 4: 0.5}, EVERY, [0, 2, 4, 6, 8, 10, 12, 13]),  # at the boundary
        ({0: 1.0, 4: 0.4, 8: 1.0}, EVERY, [0, 2, 4, 9, 13]),  # dead stays dead
        ({0: 1.0, 3: 0.1}, {**EVERY, "batch_size": 3}, [0, 3, 9, 13]),
        ({0: 1.0}, {"batch_size": 13}, [0, 13]),
        ({0: 1.0}, {}, [0, 10, 13]),
    ],
)
def test_when_probes_are_asked(model, untouched, options, expected):
    panel = Panel(untouched)
    method = kedit.ROME(layers=[1], v_num_grad_steps=1, mom2_adjustment=False)
    run = stream(model, EDITS, method, moments=None, contexts=["{}"], probes=[panel], **options)
    assert panel.asked == expected
    assert run.curve("accuracy", "untouched").index.tolist() == expected
    assert (run.curve("seconds", "probes") >= 0).all()


class Seldom(Panel):
    every = 5

    def __init__(self):
        super().__init__({0: 0.9})
        self.briefly = []

    def brief(self, model, done):
        self.briefly.append(len(done))
        return []


def test_a_costly_probe_is_asked_after_every_so_many_edits(model, tmp_path):
    """At the first checkpoint at or past each multiple, at 0 and at the end, and briefly in between; also when the run
    was cut in between."""
    options = {"edits": EDITS, "dense_every": 3, "method": kedit.ROME(layers=[1], v_num_grad_steps=1)}
    panel, seldom = Panel(), Seldom()
    whole = stream(model, **options, probes=[panel, seldom])
    assert (panel.asked, seldom.asked, seldom.briefly) == ([0, 3, 6, 9, 12, 13], [0, 6, 12, 13], [3, 9])
    with pytest.raises(RuntimeError, match="in the middle"):
        stream(model, **options, probes=[Panel(fails_at=12), Seldom()], store=tmp_path)
    cut = stream(model, **options, probes=[Panel(), seldom := Seldom()], store=tmp_path)
    assert seldom.asked == [12, 13]
    assert_same_runs(whole, cut)


def test_where_a_stream_turns(model, tmp_path, monkeypatch):
    """At 0, at the first checkpoints behind either collapse point, and at the end; also when the run was cut there."""

    def point(run, kind):
        p = run.edits.probability_last
        return collapse_point(run, kind) if kind == "model" else 7 if len(p) >= 7 else None

    collapse_point = kedit.collapse_point
    monkeypatch.setattr("kedit_lib.streams.runner.collapse_point", point)
    options = {"edits": EDITS, "dense_every": 2, "checkpoint_every": 2}
    options["method"] = kedit.ROME(layers=[1], v_num_grad_steps=1)
    Turns = type("Turns", (Panel,), {"every": None})
    panel, turns = {0: 1.0, 4: 0.4, 6: 0.9}, Turns()
    stream(model, **options, probes=[Panel(panel), turns])
    assert turns.asked == [0, 4, 8, 13]
    with pytest.raises(RuntimeError, match="in the middle"):
        stream(model, **options, probes=[Panel(panel), Turns(fails_at=4)], store=tmp_path)
    stream(model, **options, probes=[Panel(panel), turns := Turns()], store=tmp_path)
    assert turns.asked == [4, 8, 13]


def test_streams_that_keep_what_is_known_ask_the_unedited_model_once(model, tiny_folder, tmp_path):
    first, second, elsewhere, damaged = Panel(), Panel(), Panel(), Panel()
    known = tmp_path / "known"
    runs = [stream(model, EDITS[:3], probes=[first], known=known)]
    runs.append(stream(model, EDITS[:3], probes=[second], known=known))
    assert first.asked == [0, 3] and second.asked == [3]
    assert_same_runs(*runs)
    other = kedit.load_model(tiny_folder("gpt2"), dtype=torch.float32)
    stream(other, EDITS[:1], probes=[elsewhere], known=known)
    assert elsewhere.asked == [0, 1]  # of another model
    for file in known.iterdir():
        file.write_text(file.read_text()[:-5])
    runs.append(stream(model, EDITS[:3], probes=[damaged], known=known))
    assert damaged.asked == [0, 3]
    assert_same_runs(runs[0], runs[2])


def no_apply(monkeypatch, allowed=0):
    """From here on a method may edit `allowed` times; returns the list of calls' numbers of edits."""
    calls, apply = [], kedit.Method.apply_prepared

    def counted(self, call):
        calls.append(len(call.edits))
        assert len(calls) <= allowed, "the stream ran again"
        return apply(self, call)

    monkeypatch.setattr(kedit.Method, "apply_prepared", counted)
    return calls


def test_the_manifest_says_what_decided_the_numbers(model, tmp_path):
    run = stream(model, batch_size=2, store=tmp_path)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest == run.manifest
    assert manifest["model"] == model.checksum
    assert (manifest["method"], manifest["batch_size"], manifest["n_edits"]) == ("MEMIT", 2, 5)
    assert (manifest["dtype"], manifest["device"]) == ("torch.float32", "cpu")
    assert manifest["hyperparameters"]["mom2_update_weight"] == 5.0
    assert manifest["contexts"] == tiny.CONTEXTS[:2]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["started"] <= manifest["finished"]
    assert run.path.name.endswith(manifest["key"])
    asked = run.checkpoints["edits_done"].nunique()
    assert repr(run) == f"Run(MEMIT: 5 edits in batches of 2, {asked} checkpoints, {run.path})"


CHANGES = {
    "hyperparameter": {"method": kedit.MEMIT(**{**FAST, "v_lr": 0.4})},
    "history": {"method": kedit.MEMIT(**FAST, use_history=True)},
    "norm anchoring": {"method": kedit.MEMIT(**FAST, norm_anchor=3.0)},
    "layers": {"method": kedit.MEMIT(**{**FAST, "layers": [1, 3]})},
    "method": {"method": kedit.PMET(**FAST)},
    "fewer edits": {"edits": EDITS[:1]},
    "order": {"edits": EDITS[1::-1]},
    "target": {"edits": [EDITS[0], kedit.Edit(EDITS[1].prompt, EDITS[1].subject, "Graz")]},
    "contexts": {"contexts": ["{}", "I read. {}"]},
    "batch size": {"batch_size": 2},
    "moments": {"moments": kedit.SecondMoments.from_tensors(tiny.second_moments(seed=1))},
    "probe": {"probes": [Panel({0: 0.9})]},
    "checkpoints": {"checkpoint_every": 24},
    "dense checkpoints": {"dense_every": 9},
    "dtype": {"dtype": torch.float64},
    "model": {"kind": "llama-bos"},
}


def test_other_algorithms_or_another_kind_of_device_do_not_find_a_run(model, tmp_path, monkeypatch):
    first = stream(model, EDITS[:2], store=tmp_path)
    experiments = import_module("kedit_lib.streams.runner")
    with monkeypatch.context() as m:
        m.setattr(experiments, "ALGORITHMS", experiments.ALGORITHMS + 1)
        assert stream(model, EDITS[:2], store=tmp_path).path != first.path
    asked, key_of = [], experiments.key_of
    monkeypatch.setattr(experiments, "key_of", lambda **parts: asked.append(parts) or key_of(**parts))
    assert stream(model, EDITS[:2], store=tmp_path).path == first.path
    assert asked[0]["device"] == "cpu"
    assert key_of(**{**asked[0], "device": "cuda"}) != first.manifest["key"]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_is_not_found_when_anything_changes(tiny_folder, tmp_path, change):
    change = {"kind": "llama", "dtype": torch.float32, **change}
    kind, dtype = change.pop("kind"), change.pop("dtype")
    first = stream(kedit.load_model(tiny_folder("llama"), dtype=torch.float32), EDITS[:2], store=tmp_path)
    model = kedit.load_model(tiny_folder(kind), dtype=dtype)
    other = stream(model, **{"edits": EDITS[:2], "store": tmp_path, **change})
    assert other.manifest["key"] != first.manifest["key"]
    assert len({first.path, other.path, *tmp_path.iterdir()}) == 2


def test_what_does_not_change_the_numbers_does_not_change_the_key(tiny_folder, model, tmp_path, monkeypatch):
    """The same call again finds the finished run. An option that is off is no part of the key: runs from before there
    was such an option are found."""
    first, again = stream(model, EDITS[:2], store=tmp_path), kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    assert not {"use_history", "norm_anchor"} & set(first.manifest["hyperparameters"])
    assert first.manifest["hyperparameters"]["v_loss_layer"] is None
    no_apply(monkeypatch)
    given = {"contexts": tuple(tiny.CONTEXTS[:2]), "progress": True, "probes": [panel := Panel()]}
    given["store"] = str(tmp_path)
    for found in (stream(model, iter(EDITS[:2]), **given), stream(again, EDITS[:2], store=tmp_path)):
        assert_same_runs(first, found, but=())
        assert (found.manifest, found.path, panel.asked) == (first.manifest, first.path, [])
    off = stream(model, EDITS[:2], kedit.MEMIT(**FAST, use_history=False, norm_anchor=None), store=tmp_path)
    assert off.path == first.path


@pytest.mark.parametrize(
    "method, batch_size, untouched",
    [
        (kedit.MEMIT(**FAST), 1, {0: 1.0}),
        pytest.param(kedit.MEMIT(**FAST), 2, {0: 1.0, 2: 0.1}, marks=pytest.mark.slow),
        (WITH_HISTORY[0], 2, {0: 1.0}),
        pytest.param(WITH_HISTORY[1], 1, {0: 1.0, 2: 0.1}, marks=pytest.mark.slow),
    ],
    ids=["MEMIT", "MEMIT in batches, dead", "with history, in batches", "AlphaEdit, dead"],
)
def test_an_interrupted_run_goes_on_with_the_same_numbers(model, tmp_path, monkeypatch, method, batch_size, untouched):
    options = {"edits": EDITS[:9], "batch_size": batch_size, "dense_every": 2, "checkpoint_every": 3, "method": method}
    whole = stream(model, **options, probes=[Panel(untouched)], store=tmp_path / "whole")
    stops = whole.checkpoints.edits_done.unique().tolist()
    with pytest.raises(RuntimeError, match="in the middle"):
        stream(model, **options, probes=[Panel(untouched, fails_at=stops[-2])], store=tmp_path / "cut")
    left = options["edits"][stops[-3] :]
    calls = no_apply(monkeypatch, allowed=-(-len(left) // batch_size))
    cut = stream(model, **options, probes=[panel := Panel(untouched)], store=tmp_path / "cut")
    assert sum(calls) == len(left)
    assert panel.asked == stops[-2:]
    assert_same_runs(whole, cut)
    found = stream(model, **options, probes=[Panel(untouched)], store=tmp_path / "cut")  # from disk
    assert_same_runs(cut, found, but=())
    assert_same_weights(whole.final_weights(), cut.final_weights())


@pytest.mark.parametrize(
    "options, says",
    [
        ({"edits": []}, "no edits"),
        ({"edits": [EDITS[0], "Zoë"]}, "edit 1 is of type str"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0"),
        ({"checkpoint_every": "a"}, "checkpoint_every = 'a'; must be a whole number"),
        ({"stop_below": "a"}, "stop_below = 'a'; must be a probability"),
        ({"stop_below": -1}, "stop_below = -1; must be a probability"),
        ({"method": "memit"}, "method is of type str; give one, such as kedit.method_for"),
        ({"method": kedit.MEMIT}, "method is of type _Listed; give one, such as kedit.method_for"),
        ({"moments": None}, "needs second moments"),
        ({"history": kedit.EditHistory()}, "MEMIT: keeps no memory"),
    ],
)
def test_a_stream_that_cannot_run_leaves_no_trace(model, tmp_path, options, says):
    original, panel = snapshot(model), Panel()
    refused(lambda: stream(model, store=tmp_path / "store", probes=[panel], **options), says)
    assert panel.asked == [] and holds(model, original)
    assert not (tmp_path / "store").exists()


def run_of(probabilities=(), untouched=()):
    rows = [{"edits_done": at, "metric": "accuracy", "cohort": "untouched", "value": v} for at, v in untouched]
    rows += [{"edits_done": 1, "metric": "accuracy", "cohort": "edits", "value": 0.0}]
    rows += [{"edits_done": 1, "metric": "perplexity", "cohort": "untouched", "value": 0.1}]
    return kedit.Run(pd.DataFrame({"probability_last": probabilities}), pd.DataFrame(rows), {})


@pytest.mark.parametrize(
    "probabilities, expected",
    [
        ([0.8] * 25 + [0.39] * 40, 38),  # 13 low ones are the majority of 25
        ([0.8] * 25 + [0.39] * 12, None),  # 12 are not
        ([0.8] * 25 + [0.4] * 40, None),  # exactly half is not below half
        ([0.8] * 25 + [0.4] * 40 + [0.399] * 13, 78),
        ([0.8] * 25 + [0.1] * 13 + [0.8] * 50, 38),  # the first time counts
        ([0.8] * 25 + [0.1, 0.9, 0.9] * 30, None),  # the median, not single edits or the mean
        ([0.8] * 12 + [0.2] * 13 + [0.09] * 60, 38),
        ([0.9], None),
    ],
)
def test_collapse_of_the_optimisation(probabilities, expected):
    assert kedit.collapse_point(run_of(probabilities), "optimisation") == expected
    assert kedit.collapse_point(run_of(probabilities)) == expected


@pytest.mark.parametrize(
    "untouched, expected",
    [
        ([(0, 1.0), (10, 0.6), (20, 0.49), (30, 0.7)], 20),
        ([(0, 1.0), (10, 0.5), (20, 0.5)], None),  # exactly half is not below half
        ([(30, 0.1), (20, 0.2), (10, 0.8)], 20),  # by edits done, not by row
        ([], None),  # never measured; other cohorts and metrics do not count
    ],
)
def test_collapse_of_the_model(untouched, expected):
    assert kedit.collapse_point(run_of([0.9], untouched), "model") == expected
    refused(lambda: kedit.collapse_point(run_of([0.9], untouched), "models"), "'models'; use 'optimisation' or 'model'")


def test_a_stream_ends_once_its_probability_has_sunk(model, monkeypatch):
    """After the window and the aftermath; the edits until then are those of the whole stream."""
    runner = import_module("kedit_lib.streams.runner")
    monkeypatch.setattr(runner, "WINDOW", 3)
    monkeypatch.setattr(runner, "AFTERMATH", 2)
    short, whole = stream(model, EDITS, stop_below=1.1), stream(model, EDITS, stop_below=1e-30)
    assert (len(short.edits), short.checkpoints.edits_done.max(), len(whole.edits)) == (5, 5, len(EDITS))
    same = [run.edits[:5].drop(columns="seconds") for run in (short, whole)]
    pd.testing.assert_frame_equal(*same)
