"""Edit sequences decomposed, and collapses foretold: identities that hold exactly, and what bends them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from library import refused

import kedit_lib as kedit
from kedit_lib.analysis import decomposition, forecast, measured
from kedit_lib.editing.compute_k import keys_at, outputs_at
from kedit_lib.models.tokenization import encode_prompt
from kedit_lib.streams.named_streams import every_stream, groups_of

pytestmark = pytest.mark.slow
N = 6
SMALL = {"n_edits": N, "n_single": 2, "batch_sizes": [1, N], "mass_sizes": [1, N]}
ONE, SEVERAL = "memit", "memit-layers"  # layers


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return kedit.Bench("smoke", results=tmp_path_factory.mktemp("results"), progress=False, **SMALL)


@pytest.fixture(scope="module")
def tables(bench):
    return {name: decomposition.measure(bench, name, facts=12) for name in (ONE, SEVERAL)}


def by_hand(bench, name):
    """(‖D‖², ‖D⁰‖², Σ_j s_j, h(W₀)) of the first five facts after all edits: these made again, the weights added."""
    model, method, edits = bench.model, bench.method(name), bench.edits(0)
    given = {"moments": bench.moments, "contexts": bench.contexts(method)}
    facts = bench.facts.strangers(edits, 12, 0)[:5]
    prompts = [encode_prompt(model.tokenizer, "{}", p, s) for p, s, _ in facts]

    def state():
        return outputs_at(model, prompts, model.layers[max(method.layers)]).double()

    start, alone, effects = state(), {}, 0
    for edit in edits:
        deltas = method.apply(model, [edit], **given).deltas
        effects = effects + state() - start
        model.restore()
        alone = {n: alone.get(n, 0) + d for n, d in deltas.items()}
    model.add(alone)
    summed = (state() - start).square().sum(1)
    model.restore()
    for edit in edits:
        method.apply(model, [edit], **given)
    whole = (state() - start).square().sum(1)
    model.restore()
    return whole, summed, effects, start


@pytest.mark.parametrize("name", [ONE, SEVERAL])
def test_the_four_terms_are_the_squared_shift(bench, tables, name):
    whole, summed, effects, start = by_hand(bench, name)
    last, size = tables[name].query("edits == @N").head(5), start.square().sum(1).numpy()
    total = last[list(decomposition.TERMS)].sum(axis=1).to_numpy()
    assert total * size == pytest.approx(whole.numpy(), rel=1e-3)
    straight = (last.side_effects + last.alignment).to_numpy()
    assert straight * size == pytest.approx(effects.square().sum(1).numpy(), rel=1e-3)
    assert (straight + last.layers.to_numpy()) * size == pytest.approx(summed.numpy(), rel=1e-3)
    assert (last.side_effects > 0).all()


def test_one_layer_passes_nothing_on_and_its_side_effects_are_products_with_the_key(bench, tables):
    """Behind a single edited layer s_j = Δ⁰_j k exactly; behind several an update meets keys that the others moved."""
    one, several = (tables[name].query("edits == @N") for name in (ONE, SEVERAL))
    assert one.layers.abs().max() < 1e-3 * one.side_effects.min()
    assert several.layers.abs().max() > 1e-3 * several.side_effects.max()
    model, method, edits = bench.model, bench.method(ONE), bench.edits(0)
    (layer,), facts = method.layers, bench.facts.strangers(edits, 12, 0)[:5]
    prompts = [encode_prompt(model.tokenizer, "{}", p, s) for p, s, _ in facts]
    k = keys_at(model, prompts, [layer])[layer].double()
    size = outputs_at(model, prompts, model.layers[layer]).double().square().sum(1)
    squares = 0
    for edit in edits:
        outcome = method.apply(model, [edit], moments=bench.moments, contexts=bench.contexts(method))
        model.restore()
        squares = squares + (k @ outcome.deltas[model.weight_name(layer)].double().T).square().sum(1)
    assert one.side_effects.to_numpy()[:5] == pytest.approx((squares / size).numpy(), rel=1e-3)


@pytest.mark.parametrize("name", [ONE, SEVERAL])
def test_the_first_edit_answers_to_nobody(tables, name):
    first = tables[name].query("edits == 1")
    assert first[["alignment", "layers", "response"]].abs().max(axis=None) < 1e-3 * first.side_effects.max()
    assert tables[name].query("edits == @N").response.abs().max() > 1e-3


def test_shares_of_the_mean_shift_and_an_unedited_model(bench, tables):
    assert all(torch.equal(bench.model.hf.get_parameter(name), w) for name, w in bench.model.edited.items())
    found = decomposition.shares(tables[SEVERAL])
    assert found[list(decomposition.TERMS)].sum(axis=1).tolist() == pytest.approx([1] * len(found))
    assert found.edits.iloc[-1] == N and found["shift"].is_monotonic_increasing


def test_a_batch_is_not_decomposed(bench):
    refused(lambda: decomposition.measure(bench, "memit-mass"), "single edits")
    refused(lambda: decomposition.decompose(bench.model, bench.method(ONE), [], []), "at least one edit")


def test_what_was_kept_is_found_again(bench, tables, tmp_path):
    make = {"made": lambda: tables[ONE], "again": lambda: pytest.fail("was measured again")}
    for times in make:
        measured.keep(bench, ONE, 0, decomposition.WHAT, make[times], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    pd.testing.assert_frame_equal(decomposition.decomposition(bench, ONE), tables[ONE])
    assert decomposition.decomposition(bench, ONE, order=7) is None  # neither live nor stored


def test_committed_measurements_are_found_by_model(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "data_folder", lambda: tmp_path)
    (tmp_path / "lab.memit@0.1.order2.0123456789abcdef.what.json").write_text('{"N": Infinity}')
    assert measured.committed("what.json", ["lab"]) == [("lab", "memit@0.1", 2, {"N": math.inf})]
    assert measured.committed("what.json", ["smollm2"]) == measured.committed("else.json", ["lab"]) == []


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


def test_every_stream_of_the_catalogue_makes_a_method(bench):
    for name in every_stream(bench.profile):
        method = bench.method(name)
        assert method.layers, name
    assert bench.method("memit-anchored").norm_anchor > 0
    assert bench.method("alphaedit-rank").nullspace_rank == round(7 / 8 * bench.model.d_ff)
    every = every_stream(bench.profile)
    assert all(every[name] == stream for group in groups_of(bench.profile).values() for name, stream in group.items())
    assert all(s.brief for s in groups_of(bench.profile)["causes"].values())


def test_a_pruned_stream_is_the_stream_with_its_end_measured_again(bench):
    plain, pruned = bench.run("memit"), bench.run("memit-pruned")
    assert pruned.edits.equals(plain.edits) and pruned.manifest["after"] == "prune"
    assert sorted(pruned.checkpoints.edits_done.unique()) == [0, N]
    start = [run.curve("accuracy", "untouched")[0] for run in (plain, pruned)]
    assert start[0] == start[1]
    largest = "largest singular", f"layer {bench.method('memit').layers[-1]}"
    assert pruned.curve(*largest).iloc[-1] <= plain.curve(*largest).iloc[-1]
