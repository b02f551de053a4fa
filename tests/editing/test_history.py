"""The memory of earlier edits: whose it is, that it costs no d_ff × d_ff matrix, and that nothing spoils it."""

import pytest
import reference
import tiny
import torch
from golden import relative
from library import EDITS, holds, refused, snapshot

import kedit_lib as kedit
from kedit_lib.editing.closed_form import grown_factor, update, with_memory

FAST = {"layers": [1, 2], "v_num_grad_steps": 2, "mom2_update_weight": 5.0}
MEMIT = kedit.MEMIT(**FAST, use_history=True)
ALPHAEDIT = kedit.AlphaEdit(layers=[1, 2], v_num_grad_steps=2, nullspace_rank=30, L2=2.0)


def apply(model, edits, moments, history, method=MEMIT):
    return method.apply(model, edits, moments=moments, contexts=tiny.CONTEXTS[:2], history=history)


def same(one, other):
    assert one.deltas.keys() == other.deltas.keys()
    return all(torch.equal(one.deltas[name], other.deltas[name]) for name in one.deltas)


@pytest.mark.parametrize("method", [MEMIT, ALPHAEDIT], ids=["MEMIT", "AlphaEdit"])
def test_an_empty_history_is_none_and_a_full_one_is_not(model, moments, tmp_path, method):
    kedit.EditHistory().save(tmp_path / "history")
    history = kedit.EditHistory.load(tmp_path / "history")
    first = apply(model, EDITS[:2], moments, history, method)
    second = apply(model, EDITS[2:3], moments, history, method)
    assert history.edits == 3
    assert history.model_checksum == model.checksum
    assert {layer: tuple(k.shape) for layer, k in history.keys.items()} == {1: (3, tiny.D_FF), 2: (3, tiny.D_FF)}
    model.restore()
    assert same(first, apply(model, EDITS[:2], moments, None, method))
    assert not same(second, apply(model, EDITS[2:3], moments, None, method))


def test_another_fixed_matrix_is_multiplied_anew(model, moments):
    """Keys are keys: what MEMIT wrote is known to AlphaEdit, and to MEMIT with other moments."""
    others = kedit.SecondMoments.from_tensors(tiny.second_moments(seed=1))
    history = kedit.EditHistory()
    apply(model, EDITS[:2], moments, history)
    weights = model.snapshot()
    for given, method in ((others, MEMIT), (moments, ALPHAEDIT), (moments, MEMIT)):
        model.load_snapshot(weights)
        fresh = kedit.EditHistory()
        fresh.remember(model, history.keys)
        expected = apply(model, EDITS[2:3], given, fresh, method)
        model.load_snapshot(weights)
        assert same(apply(model, EDITS[2:3], given, history.copy(), method), expected)


def test_a_history_belongs_to_one_model_and_its_layers(tiny_folder, model, moments):
    history = kedit.EditHistory()
    apply(model, EDITS[:1], moments, history)
    before, other = snapshot(model), kedit.load_model(tiny_folder("llama-bos"), dtype=torch.float64)
    refused(lambda: apply(other, EDITS[1:2], moments, history), "another model", "new_history", other.checksum[:12])
    wider = kedit.MEMIT(**{**FAST, "layers": [1, 2, 3]}, use_history=True)
    refused(lambda: apply(model, EDITS[1:2], moments, history, wider), "[1, 2]", "[1, 2, 3]", "EditHistory()")
    refused(lambda: apply(model, EDITS[1:2], moments, []), "MEMIT", "list", "new_history")
    refused(lambda: apply(model, EDITS[1:2], moments, history, kedit.MEMIT(**FAST)), "history=None", "use_history=True")
    assert history.edits == 1
    assert holds(model, before)


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_the_closed_form_of_a_layer_is_the_dense_one(ridge):
    """R Kᵀ (ρB⁻¹ + KKᵀ)⁻¹, with ρ = 1 unless another is given."""
    torch.manual_seed(0)
    k, r, b = torch.randn(3, 12), torch.randn(3, 5), torch.randn(12, 12, dtype=torch.float64)
    b = 0.01 * (b @ b.T + torch.eye(12))
    found, g = update(k, r, k.double() @ b, **({} if ridge is None else {"ridge": ridge}))
    K, R = k.double().T, r.double().T
    assert relative(found, R @ K.T @ torch.linalg.inv((ridge or 1) * torch.linalg.inv(b) + K @ K.T)) < 1e-11
    assert relative(g, (K.T @ b @ K).diagonal()) < 1e-12


def test_a_factor_grows_to_what_it_would_have_been_at_once():
    torch.manual_seed(0)
    k, b = torch.randn(7, 12), torch.randn(12, 12, dtype=torch.float64)
    b = b @ b.T
    bk, factor = k.double() @ b, None
    for n in (1, 3, 3, 7):
        before, factor = factor, grown_factor(factor, k[:n], bk[:n], 0.3)
        assert (factor is before) == (before is not None and len(before) == n)  # nothing new: nothing is computed
        gram = 0.3 * torch.eye(n, dtype=torch.float64) + k[:n].double() @ b @ k[:n].double().T
        assert relative(factor, torch.linalg.cholesky(gram)) < 1e-12
    other = torch.randn(2, 12, dtype=torch.float64)
    found = with_memory(other @ b / 0.3, k, bk, factor)
    expected = torch.linalg.solve(0.3 * torch.linalg.inv(b) + k.double().T @ k.double(), other.T).T
    assert relative(found, expected) < 1e-9


def test_facts_that_are_kept_weigh_as_edits_made_before(model, moments):
    """Δ = R Kᵀ (λC + K₀K₀ᵀ + KKᵀ)⁻¹ in the only layer, with K₀ the keys of the facts; they answer less to the edit."""
    method, facts = kedit.MEMIT(**FAST | {"layers": [2]}, use_history=True), EDITS[2:5]
    history = method.new_history(model, moments, keep=[facts[0], *((e.prompt, e.subject) for e in facts[1:])])
    assert history.edits == 3
    kept = reference.keys(model.hf, model.tokenizer, facts, ["{}"], 2)  # [d_ff, 3]
    assert relative(history.keys[2].T, kept) < 1e-12
    outcome = apply(model, EDITS[:1], moments, history, method)
    k, r = outcome.keys(2), outcome.targets[0].delta[None]
    b = 5.0 * moments.tensors[2].double() + kept @ kept.T + k.T @ k
    (delta,) = outcome.deltas.values()
    assert relative(delta, r.T @ k @ torch.linalg.inv(b)) < 1e-8
    model.restore()
    (free,) = apply(model, EDITS[:1], moments, None, method).deltas.values()
    assert (delta.double() @ kept).norm() < (free.double() @ kept).norm()
