"""The projection of AlphaEdit: what it cuts and keeps, who owns it, and that an edit stays inside it."""

import pytest
import tiny
import torch
from library import moments, refused

import kedit_lib as kedit

EDIT = kedit.Edit("{} plays the", "Zoë", "violin")
FAST = {"layers": [1, 2], "v_num_grad_steps": 2, "L2": 2.0}


@pytest.mark.parametrize("cut", [{"rank": 20}, {"threshold": 0.5}], ids=str)
def test_rank_and_energy(cut):
    C = {layer: c.double() for layer, c in tiny.second_moments().items()}
    nullspace = kedit.NullSpace.from_moments(kedit.SecondMoments.from_tensors(C), **cut)
    for layer, c in C.items():
        values = torch.linalg.eigvalsh(c)
        low = values[: cut["rank"]] if "rank" in cut else values[values < cut["threshold"]]
        U = nullspace.basis(layer)
        assert 0 < U.shape[1] == len(low) < tiny.D_FF == len(U)
        P = U @ U.T
        assert float(torch.trace(P @ c)) == pytest.approx(float(low.sum()), rel=1e-9)
        assert torch.allclose(U.T @ U, torch.eye(len(low), dtype=torch.float64), atol=1e-12)
        k = torch.randn(3, tiny.D_FF, dtype=torch.float64)
        assert torch.allclose(nullspace.project(layer, k), k @ P, atol=1e-12)


def test_it_is_worked_out_once_for_the_same_moments_and_cut(model, monkeypatch):
    given, calls, svd = moments(), [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **named: calls.append(1) or svd(*a, **named))
    one = kedit.AlphaEdit(**FAST, nullspace_rank=20)
    for _ in range(3):
        one.apply(model, [EDIT], moments=given, contexts=["{}"], history=kedit.EditHistory())
    assert len(calls) == 2  # the two layers
    assert kedit.NullSpace.from_moments(given, rank=20) is kedit.NullSpace.from_moments(given, rank=20)
    names = {kedit.NullSpace.from_moments(given, **cut).identity for cut in ({"rank": 20}, {"threshold": 20.0})}
    assert len(names | {kedit.NullSpace.from_moments(moments(), rank=20).identity}) == 2


def test_an_edit_stays_in_it(model):
    """Δ does nothing to what lies outside, and a given projection goes before the hyperparameters' cut."""
    given = moments()
    nullspace = kedit.NullSpace.from_moments(given, rank=20)
    by_rank = kedit.AlphaEdit(**FAST, nullspace_rank=20).apply(model, [EDIT], moments=given, contexts=["{}"])
    model.restore()
    shared = kedit.AlphaEdit(**FAST).apply(model, [EDIT], contexts=["{}"], projection=nullspace)  # C itself: not used
    assert by_rank.deltas.keys() == shared.deltas.keys()
    for layer in (1, 2):
        update, U = shared.deltas[model.weight_name(layer)], nullspace.basis(layer)
        assert torch.equal(update, by_rank.deltas[model.weight_name(layer)])
        assert float((update - update @ U @ U.T).norm()) < 1e-6 * float(update.norm())


def test_a_singular_C_has_a_null_space(model):
    C = tiny.second_moments()[2]
    C[:, 5] = C[5, :] = 0
    given = moments(tensors={2: C})
    edited = kedit.AlphaEdit(layers=[2], v_num_grad_steps=2, nullspace_threshold=1e-4)
    (update,) = edited.apply(model, [EDIT], moments=given, contexts=["{}"]).deltas.values()
    assert float(update[:, 5].norm()) == pytest.approx(float(update.norm()), rel=1e-6)


CUTS = [
    ({}, ["threshold or by rank", "exactly one"]),
    ({"threshold": 0.1, "rank": 3}, ["exactly one"]),
    ({"rank": 0}, ["rank = 0"]),
    ({"threshold": -1.0}, ["threshold = -1.0"]),
    ({"threshold": float("nan")}, ["threshold = nan"]),
]


@pytest.mark.parametrize("cut, says", CUTS)
def test_cuts(cut, says):
    refused(lambda: kedit.NullSpace.from_moments(moments(), **cut), "null space", *says)
