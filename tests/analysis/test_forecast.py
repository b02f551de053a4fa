"""Collapses foretold, what notebooks measure and keep, and the named streams of a small bench."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from library import refused

import kedit_lib as kedit
from kedit_lib.analysis import forecast
from kedit_lib.data.config import groups_of
from kedit_lib.streams import bench as streams

pytestmark = pytest.mark.slow
N = 6
SMALL = {"n_edits": N, "n_single": 2, "batch_sizes": [1, N], "mass_sizes": [1, N]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return kedit.Bench("smoke", results=tmp_path_factory.mktemp("results"), progress=False, **SMALL)


def test_what_was_measured_is_found_again(bench, tmp_path, monkeypatch):
    """In results/, or, once it is committed, in figures/data; an order that is neither live nor stored is None."""
    monkeypatch.setattr(streams, "data_folder", lambda: tmp_path)
    for what, commit in (("a.parquet", False), ("b.json", True)):
        value = pd.DataFrame({"x": [1.5]}) if what == "a.parquet" else {"N": 3.0}
        asked = "memit", 0, what
        first, again = bench.measured(*asked, lambda v=value: v, commit), bench.measured(*asked)
        assert first.equals(again) if what == "a.parquet" else first == again == value
        assert len(list(tmp_path.iterdir())) == commit
    assert bench.measured("memit", 0, "c.json") is None
    assert bench.measured("memit", 7, "c.json", lambda: pytest.fail("was measured")) is None


def test_committed_measurements_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "data_folder", lambda: tmp_path)
    assert streams.committed_files("what.json") == streams.committed_runs() == []
    names = ("lab.memit@0.1.order2.0123456789abcdef.what.json", "lab.memit.order0.manifest.json", "lab.what.json")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.touch()
    assert streams.committed_files("what.json") == [("lab", "memit@0.1", 2, paths[0])]
    assert streams.committed_runs() == [("lab", "memit", 0)]


def test_a_walk_of_equal_steps_arrives_when_their_sum_does():
    assert forecast._walk(np.full(10, 0.04), theta=1.0, seed=0) in (25.0, 26.0)
    assert forecast._walk(np.full(10, 1e-9), theta=1.0, seed=0) == math.inf
    few_large = np.array([0.0] * 9 + [0.4])  # the same mean: the median walker waits for as many hits
    assert 15 < forecast._walk(few_large, theta=1.0, seed=0) < 30


def test_the_bearing_tells_the_lost_from_the_kept():
    shift = np.array([0.1, 0.3, 0.2, 2.0, 1.0, 4.0])
    assert forecast._bearing(shift, shift < 0.5) == pytest.approx(math.sqrt(0.3 * 1.0))
    noisy = np.array([True, False, True, False, False, False])
    assert 0.2 <= forecast._bearing(shift, noisy) <= 0.3
    assert forecast._bearing(shift, np.ones(6, dtype=bool)) == math.inf


def test_more_is_written_earlier_it_dies(bench):
    """Ten times λ writes less and is foretold to last longer; the weights come back."""
    edits, model = bench.edits(0), bench.model
    strangers = bench.facts.strangers(edits, 20, 0)
    told = []
    for factor in (1, 100):
        base = bench.method("memit")
        method = kedit.method_for(model, "memit", mom2_update_weight=base.mom2_update_weight * factor)
        given = {"moments": bench.moments, "contexts": bench.contexts(method)}
        told.append(kedit.foretell(model, method, edits[:3], strangers, **given))
    assert told[0]["spill"] > 10 * told[1]["spill"] > 0
    assert told[0]["N"] < told[1]["N"]
    assert all(torch.equal(model.hf.get_parameter(name), w) for name, w in model.edited.items())
    refused(lambda: kedit.foretell(model, method, [], strangers, **given), "at least one edit")
    gate = kedit.method_for(model, "gate")
    refused(lambda: kedit.foretell(model, gate, edits[:1], strangers, **given), "Gate writes no weights")


def test_every_stream_of_the_catalogue_makes_a_method(bench):
    for name in bench.streams:
        method = bench.method(name)
        assert method.layers, name
    assert bench.method("memit-anchored").norm_anchor > 0
    assert bench.method("sphere-rho2").base.v_lr == bench.method("alphaedit-rho2").v_lr
    assert bench.method("alphaedit-rank").nullspace_rank == round(7 / 8 * bench.model.d_ff)
    groups = groups_of(bench.profile)
    assert all(bench.streams[name] == stream for group in groups.values() for name, stream in group.items())
    assert all(s.brief for s in groups["causes"].values())
