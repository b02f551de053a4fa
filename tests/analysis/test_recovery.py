"""How far an optimisation's steps reach, by hand; and what is tried along a stream, on the small lab model."""

import pandas as pd
import pytest
import torch

import kedit_lib as kedit
from kedit_lib.analysis import recovery as lifting
from kedit_lib.streams.named_streams import COLLAPSING

METHOD = kedit.MEMIT(layers=[1], v_lr=0.5, v_num_grad_steps=25, clamp_norm_factor=4.0)


def test_reach_is_all_steps_against_the_state_and_no_more_than_the_clamp():
    assert lifting.reach(METHOD, 64, 960.0) == pytest.approx(0.5 * 8 * 24 / 960)
    assert lifting.reach(METHOD, 64, 3.0) == 4.0
    found = lifting.reach(METHOD, 64, pd.Series([960.0, 3.0]))
    assert found.tolist() == pytest.approx([0.1, 4.0])


def test_steps_do_not_go_further_than_they_reach(monkeypatch):
    """Adam's updates of the lab's small model: ‖δ‖ stays within the reach, and comes near it where nothing stops it."""
    model = kedit.load_model("lab-small")
    edit = kedit.load_edits("lab", model=model, limit=1)[0]
    hyper = {"v_lr": 0.05, "v_num_grad_steps": 8, "v_weight_decay": 0.0, "kl_factor": 0.0}
    method = kedit.ROME(layers=[0], mom2_adjustment=False, clamp_norm_factor=100.0, **hyper)
    target = method.apply(model, [edit]).targets[0]
    far = lifting.reach(method, model.d_model, target.v0_norm) * target.v0_norm
    assert target.steps == 8
    assert 0.4 * far < target.delta.norm().item() < 1.05 * far


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return kedit.Bench("smoke", results=tmp_path_factory.mktemp("results"), progress=False)


@pytest.mark.slow
def test_what_is_tried_along_a_stream(smoke):
    before = smoke.model.snapshot()
    found = lifting.measure(smoke, COLLAPSING, at=(0, 3), sample=2)
    assert all(torch.equal(w, before[name]) for name, w in smoke.model.snapshot().items())
    assert list(found.edits_done.unique()) == [0, 3]
    tried = [lifting.AS_IS, lifting.MORE_STEPS, lifting.LONGER_STEPS, *lifting.HEALED]
    assert list(found.budget.unique()) == tried
    edited = {e.subject for e in smoke.edits(0, 3)}
    assert not edited & set(found.subject)
    assert found.subject.nunique() == 2
    start = found[found.edits_done == 0].set_index(["budget", "subject"])
    own = start.loc[lifting.AS_IS]
    for budget in (lifting.LONGER_STEPS, *lifting.HEALED):  # nothing has grown, and nothing is to be healed
        assert start.loc[budget].p_last.tolist() == pytest.approx(own.p_last.tolist(), rel=1e-3)
    moved = found[(found.edits_done == 3) & (found.budget == lifting.AS_IS)].set_index("subject")
    assert (moved.v0 != own.v0).all()

    method = smoke.method(COLLAPSING)
    more, longer = (lifting.budgets(smoke, COLLAPSING, 3.0)[b] for b in (lifting.MORE_STEPS, lifting.LONGER_STEPS))
    assert more.v_num_grad_steps == lifting.STEPS * method.v_num_grad_steps and more.v_lr == method.v_lr
    assert longer.v_lr == 3 * method.v_lr and longer.v_num_grad_steps == method.v_num_grad_steps
    assert lifting.budgets(smoke, "why-pmet-left", 1.0)[lifting.UNBUGGED].name == "PMET"


def test_medians_by_what_was_tried():
    last = [(i, done, b) for done in (0, 9) for b in "ab" for i in (1, 2, 9)]
    rows = [(done, b, f"p{i}", 1e-4, 1e-4 * i, 50.0, 2.0, float(i == 1)) for i, done, b in last]
    names = ["edits_done", "budget", "subject", "p_first", "p_last", "v0", "reach", "said"]
    found = lifting.lifting_table({("s", order): pd.DataFrame(rows, columns=names) for order in (0, 1)})
    assert len(found) == 8
    assert found.p_last.tolist() == pytest.approx([2e-4] * 8)
    assert found.frozen.tolist() == pytest.approx([1 / 3] * 8)
    assert found.said.tolist() == pytest.approx([1 / 3] * 8)
