"""What an outcome says of its edits, worked out by hand; what is warned of; help and repr."""

import math
import pydoc
import warnings

import pytest
import tiny
import torch
from library import EDITS, holds, refused, snapshot
from pydantic import ValidationError

import kedit_lib as kedit
from kedit_lib.editing.compute_z import MOST_BYTES, Doubtful, Target
from kedit_lib.editing.engine import Plain, Request, Site, Suffix
from kedit_lib.models.tokenization import Prompt

LAYER, C = 2, tiny.second_moments()


def some_z(n, seed=0):
    return list(torch.randn(n, tiny.D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def apply(method, model, edits, **options):
    given = {"moments": kedit.SecondMoments.from_tensors(C), "contexts": ["{}"], "targets": some_z(len(edits))}
    return method.apply(model, edits, **{**given, **options})


def keys_and_residuals(outcome):
    """[d_ff, N] and [d_model, N] of an edit of one layer."""
    keys = torch.stack([target.key_per_layer[LAYER] for target in outcome.targets], 1)
    return keys, torch.stack([target.delta for target in outcome.targets], 1)


def test_given_targets_took_no_steps_and_are_not_called_known(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Doubtful)
        outcome = apply(kedit.MEMIT(layers=[1, LAYER]), model, EDITS[:2])
    said = [(t.steps, t.clamped, t.already, t.probabilities) for t in outcome.targets]
    assert said == [(0, False, False, [])] * 2
    assert outcome.layers(model) == [1, LAYER]
    for target, z in zip(outcome.targets, some_z(2), strict=True):
        assert torch.equal(target.z, z)
        assert target.v0_norm == pytest.approx(float((z - target.delta).norm()))


def test_the_ridge_of_emmet_is_for_batches_and_its_shift_in_units_of_C(model):
    """One edit is written exactly; of two, Δ = R (KᵀC′⁻¹K + ρI)⁻¹ KᵀC′⁻¹ is left short of it by ρ. C′ = λC + ηI."""
    method = kedit.EMMET(layers=[LAYER], emmet_lambda=0.3, mom2_update_weight=4.0, update_norm_lambda=2.0)
    alone = apply(method, model, EDITS[:1])
    k, r = keys_and_residuals(alone)
    assert torch.allclose(alone.deltas[model.weight_name(LAYER)] @ k, r, rtol=1e-9)
    model.restore()
    both = apply(method, model, EDITS[:2])
    k, r = keys_and_residuals(both)
    ck = torch.linalg.solve(4 * C[LAYER].double() + 2 * torch.eye(tiny.D_FF, dtype=torch.float64), k)
    expected = r @ torch.linalg.solve(k.T @ ck + 0.3 * torch.eye(2, dtype=torch.float64), ck.T)
    assert torch.allclose(both.deltas[model.weight_name(LAYER)], expected, rtol=1e-9)
    assert both.s[LAYER].tolist() == pytest.approx((4 * k * ck).sum(0).tolist(), rel=1e-9)


def test_a_fact_given_twice_is_one_line_where_it_cannot_be_solved(model):
    """Its equalities are one; a ridge makes them solvable, and both of one fact write what it asks for."""
    before, given = snapshot(model), {"targets": some_z(1) * 2}
    hard, soft = (kedit.EMMET(layers=[LAYER], emmet_lambda=ridge) for ridge in (0.0, 1e-6))
    refused(lambda: apply(hard, model, EDITS[:1] * 2, **given), "a fact is given twice", "emmet_lambda > 0")
    assert holds(model, before)
    twice = apply(soft, model, EDITS[:1] * 2, **given)
    k, r = keys_and_residuals(twice)
    assert torch.allclose(twice.deltas[model.weight_name(LAYER)] @ k, r, rtol=1e-4)


def test_the_written_fraction_of_alphaedit(model):
    """Alone an edit is written to g / (1 + g) of its residual, g = kᵀPk/L2."""
    alphaedit = apply(kedit.AlphaEdit(layers=[LAYER], nullspace_rank=30, L2=2.0), model, EDITS[:1])
    k, r = keys_and_residuals(alphaedit)
    U = torch.linalg.eigh(C[LAYER].double())[1][:, :30]
    g = float((U.T @ k).square().sum()) / 2
    assert float(alphaedit.written[LAYER]) == pytest.approx(g / (1 + g), rel=1e-4)  # the cut is made in float32
    assert torch.allclose(alphaedit.deltas[model.weight_name(LAYER)] @ k, r * g / (1 + g), rtol=1e-3)


def test_fine_tuning_that_overflows_names_the_first_edit_and_what_it_taught_was_not_known_before(model):
    method = kedit.FT(layers=[LAYER], lr=1e300, batch_size=2)
    refused(lambda: method.apply(model, EDITS[:2]), repr(EDITS[0].subject), "fine-tuning gave NaN or inf", "lower lr")
    assert not model.edited
    method = kedit.FT(layers=[LAYER], lr=0.1, num_steps=2, objective_optimization="target_new")
    edit = kedit.Edit("You read of {}", "Zoë", "English")  # a target of one token
    (target,) = method.apply(model, [edit]).targets
    assert target.probabilities[0] < 0.1 and target.probabilities[1] > 0.5
    assert not target.already
    with pytest.warns(Doubtful, match="'Zoë'.*already answers 'English'"):
        (target,) = method.apply(model, [edit]).targets
    assert target.already


@pytest.mark.parametrize(
    "probabilities, v0_norm, frozen",
    [
        ([1e-8, 1e-8, 1e-8], 40.0, True),
        ([1e-8, 1e-6, 1.05e-8], 40.0, True),
        ([1e-8, 1.2e-8], 40.0, False),
        ([0.0, 0.0], 40.0, True),
        ([0.0, 1e-30], 40.0, False),
        ([0.9, 0.9], 40.0, False),  # there from the first
        ([1e-8], 40.0, False),  # nothing was tried
        ([1e-8, 1e-8], math.nan, False),  # fine-tuning adds nothing to a state
    ],
)
def test_an_optimisation_that_did_nothing_is_frozen(probabilities, v0_norm, frozen):
    target = Target(None, None, [1.0] * len(probabilities), probabilities, v0_norm, clamped=False, already=False)
    assert target.frozen == frozen


def test_a_frozen_optimisation_is_told(model):
    hyper = {"v_num_grad_steps": 5, "v_weight_decay": 0.0, "clamp_norm_factor": 100.0, "mom2_adjustment": False}
    with pytest.warns(Doubtful, match=f"{EDITS[0].subject!r}: 5 steps left .*too small for it"):
        kedit.ROME(layers=[LAYER], v_lr=1e-9, **hyper).apply(model, EDITS[:1], contexts=["{}"])
    model.restore()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Doubtful)
        kedit.ROME(layers=[LAYER], v_lr=1.0, **hyper).apply(model, EDITS[:1], contexts=["{}"])


def test_help_of_a_method_is_two_screens_and_tells_of_kedit_only():
    for cls in (kedit.MEMIT, kedit.FT, kedit.AlphaEdit):
        page = pydoc.plain(pydoc.render_doc(cls))
        assert len(page.splitlines()) <= 60 and "pydantic_" not in page and "Annotated" not in page
        assert all(f"{name}=" in page or f" {name}," in page for name in cls.model_fields)
        assert "moments      SecondMoments of this model" in page and "hyperparameters" in page
    with pytest.raises(ValidationError, match="frozen"):
        kedit.MEMIT(layers=[1]).mom2_update_weight = 1.0


def test_each_thing_that_is_made_says_in_one_line_what_it_is(model):
    """Model, moments, history and outcome; a run's own line is with the streams."""
    moments, history = kedit.SecondMoments.from_tensors({LAYER: C[LAYER]}), kedit.EditHistory()
    assert repr(model) == (
        f"EditableModel({model.name}: llama, {model.n_layers} layers, d_model {tiny.D_MODEL}, d_ff {tiny.D_FF}, "
        "float64 on cpu, unedited)"
    )
    assert repr(moments) == f"SecondMoments(C of layers [{LAYER}], {tiny.D_FF} × {tiny.D_FF}, given as tensors)"
    assert repr(history) == "EditHistory(keys: 0 edits, 0 MiB)"
    method = kedit.MEMIT(layers=[LAYER], use_history=True)
    outcome = apply(method, model, EDITS[:2], moments=moments, history=history)
    assert repr(model).endswith("float64 on cpu, edit calls: 1)")
    assert repr(history).startswith("EditHistory(keys: 2 edits, 0.00")
    assert repr(outcome).startswith("Outcome(MEMIT, 2 edits, ‖Δ‖ ") and "\n" not in repr(outcome)
    model.add(outcome.deltas)
    assert repr(model).endswith("changed by hand)")
    measured = kedit.SecondMoments.estimate(model, ["Zoë plays the violin."], [LAYER])
    assert repr(measured).endswith(f"of {measured.about['tokens']} tokens)")


@pytest.mark.parametrize(
    "method", [kedit.MEMIT(layers=[1, LAYER], v_num_grad_steps=6), kedit.ROME(layers=[LAYER], v_num_grad_steps=6)]
)
def test_again_is_the_same_and_another_order_of_the_sums_moves_the_last_digits_only(tiny_folder, method):
    """In float32: a GPU takes its sums in any order, here the contexts' stands for that."""
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    orders = (tiny.CONTEXTS, tiny.CONTEXTS, [tiny.CONTEXTS[i] for i in (0, 2, 1)])
    made = []
    for contexts in orders:
        outcomes = [apply(method, model, [edit], contexts=contexts, targets=None) for edit in EDITS[:3]]
        made.append([outcome.deltas[model.weight_name(LAYER)] for outcome in outcomes])
        model.restore()
    for first, again, other in zip(*made, strict=True):
        assert torch.equal(again, first)
        assert float((other - first).norm() / first.norm()) < 1e-4


def test_what_a_step_is_taken_to_need(model):
    """Two contexts with tails of 5 and 3 tokens behind at most 8, a target of 3: a grid of 3 rows, 5 + 3 − 1 tokens."""
    prompts = (Prompt(tuple(range(7)), 2), Prompt(tuple(range(9)), 6))
    one = Request(prompts, Prompt(tuple(range(10)), 8), (1, 2, 3))
    assert Suffix.shape(one) == (7, 8) and Plain.shape(one) == (11, 0)  # whole prompts, and nothing in front of them
    # Four layers run. Of each token eight vectors of 32 and three of 48; of the 3 · (8 + 7) that are attended to four
    # vectors of 32; eight bytes each. Logits: four times four bytes at each of 3 · 3 + 1 places.
    site = Site(1, 4, (), model.mlp_out(1))
    layers = 4 * (21 * (8 * 32 + 3 * 48) + 45 * 4 * 32) * 8
    assert Suffix.needs(model, site, one) == (3 * 7, layers + 10 * model.hf.config.vocab_size * 4 * 4)
    assert Plain.needs(model, site, one)[0] == 3 * 11
    assert MOST_BYTES == 2.5 * 2**30
