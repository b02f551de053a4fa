"""A line search writes as little of an update as its targets need."""

import pytest
import torch

import kedit_lib as kedit
from kedit_lib.editing.compute_k import context_mean, keys_at
from kedit_lib.editing.engine import requests_of
from kedit_lib.editing.spread import HALVINGS, LONGEST, says


@pytest.fixture(scope="module")
def bench():
    return kedit.Bench("smoke", progress=False)


def memit(bench, **settings):
    return kedit.method_for(bench.model, "memit", use_history=True, **settings)


def applied(bench, edits, **settings) -> kedit.Outcome:
    with bench.model.temporarily():
        return memit(bench, **settings).apply(bench.model, edits, **bench.inputs(memit(bench)))


def said(bench, edits, outcome, share: float = 1.0) -> bool:
    requests = requests_of(bench.model.tokenizer, edits, bench.inputs(memit(bench))["contexts"])
    with bench.model.temporarily():
        bench.model.add({name: share * delta for name, delta in outcome.deltas.items()})
        return says(bench.model, requests)


def ratio(one, other) -> float:
    name = next(iter(other.deltas))
    alpha = (one.deltas[name].norm() / other.deltas[name].norm()).item()
    for name, delta in one.deltas.items():
        torch.testing.assert_close(delta, alpha * other.deltas[name], rtol=1e-4, atol=1e-7)
    return alpha


def test_as_little_is_written_as_the_targets_need(bench):
    light = {"mom2_update_weight": memit(bench).mom2_update_weight / 20}
    for edits in (bench.edits(0)[:1], bench.edits(0)[1:4]):
        whole, least = applied(bench, edits, **light), applied(bench, edits, line_search=1.0, **light)
        alpha, step = ratio(least, whole), 2**-HALVINGS
        assert 0 < alpha < 1 and alpha / step == pytest.approx(round(alpha / step))
        assert said(bench, edits, whole) and said(bench, edits, least)
        assert not said(bench, edits, whole, alpha - step)
        assert ratio(applied(bench, edits, line_search=1.25, **light), least) == pytest.approx(1.25)
        assert whole.written and not least.written
        assert "line_search" in least.hyperparameters and "line_search" not in whole.hyperparameters


def test_an_update_that_is_too_short_is_lengthened_and_a_useless_one_is_not(bench):
    edits = bench.edits(0)[:1]
    heavy = {"mom2_update_weight": 20 * memit(bench).mom2_update_weight}
    short, longer = applied(bench, edits, **heavy), applied(bench, edits, line_search=1.0, **heavy)
    assert not said(bench, edits, short) and said(bench, edits, longer) and 1 < ratio(longer, short) <= LONGEST
    useless = {"v_num_grad_steps": 2, "v_lr": 1e-3}
    assert ratio(applied(bench, edits, line_search=1.0, **useless), applied(bench, edits, **useless)) == 1


def test_the_history_gets_the_keys_on_the_weights_that_were_written(bench):
    edits, model = bench.edits(0)[:1], bench.model
    light = {"layers": [0, 1], "mom2_update_weight": memit(bench).mom2_update_weight / 20}
    method = memit(bench, line_search=1.0, **light)
    history, given = method.new_history(model), bench.inputs(method)
    with model.temporarily():
        method.apply(model, edits, history=history, **given)
        (request,) = requests_of(model.tokenizer, edits, given["contexts"])
        for layer, keys in keys_at(model, request.prompts, method.layers).items():
            assert torch.equal(history.keys[layer], context_mean(keys, len(request.prompts), grouped=True))
