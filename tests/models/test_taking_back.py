"""Whatever happens to a model, `restore` gives the loaded weights bit for bit: random sequences of edits by every
method, failures in their middle and changes of other kinds, on every architecture and in both precisions. The newer
methods, built of the same parts, have tests of their own."""

import contextlib

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library import EDITS, METHODS, holds, moments, parameters, refused, snapshot

import kedit_lib as kedit

MOMENTS = moments()


NEWER = set("BetaEdit ENCORE EvoEdit LyapLock PRUNE REVIVE RLSEdit SPHERE SimIE UltraEdit".split())


def test_every_method_is_here():
    assert {method.name for method in METHODS.values()} | NEWER == set(kedit.METHODS)


class Stop(BaseException):
    """As Ctrl-C: no error that anything catches."""


@contextlib.contextmanager
def failing(after: int, error: BaseException):
    """From the `after`-th write on every write fails, once before it is done and once after."""
    add, calls = kedit.EditableModel.add, []

    def fails(self, deltas):
        calls.append(deltas)
        if len(calls) == after:
            raise error
        add(self, deltas)
        if len(calls) == after + 1:
            raise error

    kedit.EditableModel.add = fails
    try:
        yield
    finally:
        kedit.EditableModel.add = add


edits = st.lists(st.sampled_from(EDITS), min_size=1, max_size=2, unique_by=lambda e: e.subject)
steps = st.one_of(
    st.tuples(st.just("apply"), st.sampled_from(list(METHODS)), edits),
    st.tuples(st.just("fail"), st.sampled_from(list(METHODS)), edits, st.integers(1, 2), st.booleans()),
    st.tuples(st.just("bad delta"), st.sampled_from([float("nan"), float("inf"), 1e300])),
    st.tuples(st.just("temporarily"), st.booleans()),
    st.tuples(st.just("prune")),
    st.tuples(st.just("rewind")),
)


@pytest.fixture(scope="module")
def models(tiny_folder):
    return {
        (kind, dtype): kedit.load_model(tiny_folder(kind), dtype=dtype)
        for kind in tiny.KINDS
        for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", tiny.KINDS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(steps, min_size=2, max_size=6))
def test_restore_after_anything(models, kind, dtype, sequence):
    model = models[kind, dtype]
    original, history, last, mark = snapshot(model), {}, None, None
    for what, *how in sequence:
        before, edited = snapshot(model), set(model.edited)
        if what == "apply":
            last = apply(model, history, *how)
            assert set(model.edited) >= edited | set(last.deltas)
        elif what == "fail":
            name, chosen, after, catchable = how
            error = RuntimeError("in the middle") if catchable else Stop()
            keys = {n: h.identity for n, h in history.items()}
            with failing(after, error), contextlib.suppress(RuntimeError, Stop):
                apply(model, history, name, chosen)
                before = None  # it wrote less often than that
            if before is not None:
                assert keys == {n: h.identity for n, h in history.items() if n in keys}
                assert set(model.edited) == edited
        elif what == "bad delta":
            bad = torch.zeros_like(model.weight(1), dtype=torch.float64)
            bad[0, 0] = how[0]
            deltas = {model.weight_name(2): torch.ones_like(model.weight(2)), model.weight_name(1): bad}
            refused(lambda deltas=deltas: model.add(deltas), "nothing was written")
        elif what == "temporarily":
            with contextlib.suppress(ZeroDivisionError), model.temporarily():
                if last is not None:
                    model.apply_deltas(last)
                model.add({model.weight_name(4): torch.ones_like(model.weight(4))})
                1 / (1 - how[0])  # left by an exception or not
        elif what == "prune" and model.edited:
            kedit.prune(model)
            before = None
        elif what == "rewind":
            if mark is not None:
                model.load_snapshot(mark[0])
                before = mark[1]
            mark = model.snapshot(), snapshot(model)
        if what != "apply" and before is not None:
            assert holds(model, before), what
    model.restore()
    assert holds(model, original)
    assert not model.edited


def apply(model, history, name, chosen):
    method = METHODS[name]
    memory = history.setdefault(name, kedit.EditHistory()) if method.keeps_history else None
    return method.apply(model, chosen, moments=MOMENTS, contexts=tiny.CONTEXTS[:2], history=memory)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_half_precision_weights_are_the_sum_of_all_deltas_rounded_once(tiny_folder, kind, dtype):
    """However many there were, and however small each of them is; also when the stream goes on from a snapshot."""
    model = kedit.load_model(tiny_folder(kind), dtype=dtype)
    original = snapshot(model)
    total = {model.weight_name(i): model.weight(i).double() for i in (1, 2)}
    generator = torch.Generator().manual_seed(0)
    for i in range(100):
        deltas = {n: torch.randn(w.shape, generator=generator) * 2e-4 for n, w in total.items()}
        model.add(deltas)
        for name, delta in deltas.items():
            total[name] += delta.double()
        if i == 50:
            model.load_snapshot(model.snapshot())
    moved = 0
    for name, exact in total.items():
        weight = parameters(model)[name]
        assert weight.dtype == dtype
        half_a_step = (exact.abs().log2().floor().exp2() * torch.finfo(dtype).eps / 2).clamp(min=2.0**-25)
        assert ((weight.double() - exact).abs() <= half_a_step * 1.001).all()
        moved += int((weight != original[name]).sum())
    assert moved > 0
    model.restore()
    assert holds(model, original)
    assert not model._sums
