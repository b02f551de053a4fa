"""Micro-batches: sized by what memory is free, halved where it runs out, and the same numbers however they fall."""

from contextlib import nullcontext

import pytest
import tiny
import torch
from library import EDITS, holds, moments, refused, snapshot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kedit_lib as kedit
from kedit_lib.editing import compute_z as targets
from kedit_lib.models.memory import free_memory, in_parts, ran_out

HYPER = {"layers": [1, 2], "v_num_grad_steps": 4, "v_loss_layer": tiny.N_LAYERS - 1, "clamp_norm_factor": 4.0}
MANY = EDITS * 3
GIVEN = {"moments": moments(), "contexts": tiny.CONTEXTS}


class NoTensorAbove(TorchDispatchMode):
    """An allocator with a limit: whatever operation makes a tensor above it is told, as CUDA tells, that it cannot."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.refusals = numbers, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if any(isinstance(x, torch.Tensor) and x.numel() > self.numbers for x in tree_leaves(made)):
            self.refusals += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return made


def edited(folder, method, limit=None):
    """What the method makes of MANY in float64, where no tensor may hold more than `limit` numbers."""
    model = kedit.load_model(folder, dtype=torch.float64)
    assert model.checksum  # read before: it looks at whole weights, as bytes, and makes nothing
    with nullcontext() if limit is None else limit:
        return method.apply(model, MANY, **GIVEN)


def assert_same(outcome, expected):
    for name, delta in expected.deltas.items():
        assert torch.allclose(outcome.deltas[name], delta, rtol=0, atol=1e-9 * float(delta.abs().max())), name
    for ours, theirs in zip(outcome.targets, expected.targets, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-9)
        assert torch.allclose(ours.z, theirs.z, rtol=1e-9)
        assert sorted(ours.key_per_layer) == sorted(theirs.key_per_layer)


@pytest.mark.parametrize(
    "kind, method", [pytest.param("llama-bos", kedit.PMET, marks=pytest.mark.slow), ("gpt2", kedit.MEMIT)]
)
def test_the_same_numbers_whatever_the_micro_batch(tiny_folder, monkeypatch, kind, method):
    made = []
    for tokens in (1, 70, 10**6):  # one edit at a time, a few, all
        monkeypatch.setattr(targets, "MOST_TOKENS", tokens)
        made.append(edited(tiny_folder(kind), method(**HYPER)))
    assert_same(made[0], made[2])
    assert_same(made[1], made[2])


def test_little_free_memory_makes_small_batches(tiny_folder, monkeypatch):
    sizes, compute_z = [], targets.compute_z
    monkeypatch.setattr(targets, "compute_z", lambda e, hp: sizes.append(len(e.requests)) or compute_z(e, hp))
    all_together = edited(tiny_folder("llama"), kedit.MEMIT(**HYPER))
    monkeypatch.setattr(targets, "free_memory", lambda device: 4_000_000)
    apart = edited(tiny_folder("llama"), kedit.MEMIT(**HYPER))
    assert sizes[0] == len(MANY) == sum(sizes[1:])
    assert 1 <= max(sizes[1:]) < len(MANY)
    assert_same(apart, all_together)


@pytest.mark.parametrize("method", [kedit.MEMIT, pytest.param(kedit.PMET, marks=pytest.mark.slow)])
def test_a_batch_that_does_not_fit_is_halved(tiny_folder, method):
    expected, allocator = edited(tiny_folder("llama"), method(**HYPER)), NoTensorAbove(40_000)
    outcome = edited(tiny_folder("llama"), method(**HYPER), limit=allocator)
    assert allocator.refusals
    assert_same(outcome, expected)


def test_an_edit_that_does_not_fit_at_all_is_refused_and_nothing_is_written(model):
    before = snapshot(model)
    with NoTensorAbove(tiny.D_FF**2):  # C fits
        refused(lambda: kedit.MEMIT(**HYPER).apply(model, MANY, **GIVEN), "one alone does not fit into memory")
    assert holds(model, before)


def test_what_torch_itself_says_is_understood_and_other_errors_come_through():
    def fails(begin, end):
        raise RuntimeError("no memory at fault")

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(caught.value) and ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes do not match"))
    assert free_memory(torch.device("cpu")) > 0
    with pytest.raises(RuntimeError, match="no memory at fault"):
        in_parts(fails, [1.0] * 4, 2.0, "work")


def test_parts_follow_the_costs_and_shrink():
    tried = []

    def work(begin, end):
        tried.append((begin, end))
        if end - begin > 2:
            raise torch.OutOfMemoryError("too much")
        return list(range(begin, end))

    assert sum(in_parts(work, [1.0] * 8, 5.0, "work"), []) == list(range(8))
    assert tried == [(0, 5), (0, 2), (2, 4), (4, 6), (6, 8)]
    tried.clear()
    assert len(in_parts(work, [3.0, 1.0, 1.0, 9.0], 2.0, "work")) == 3
    assert tried == [(0, 1), (1, 3), (3, 4)]
