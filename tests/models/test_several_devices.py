"""A model whose layers lie on two devices gives what it gives on one."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas as pd
import pytest
import tiny
import torch
from library import EDITS, METHODS, moments

import kedit_lib as kedit

pytestmark = pytest.mark.slow
HOMES = [("cpu", "second:0"), ("second:0", "cpu")]
BASE = kedit.MEMIT(layers=[1, 3], v_num_grad_steps=4)
OTHERS = [
    *(kedit.method_class(name)(layers=[1, 3]) for name in ("encore", "lyaplock", "prune", "rlsedit")),
    *(kedit.method_class(name)(layers=[1, 3], nullspace_threshold=1.0) for name in ("evoedit", "betaedit")),
    *(kedit.method_class(name)(base=BASE) for name in ("simie", "sphere", "revive")),
    *(kedit.method_class(name)(layers=[3]) for name in ("grace", "gate")),
    kedit.Retrieval(),
]


@pytest.fixture(scope="module")
def apart():
    """apart(function, …): what it returns in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield lambda *given: process.submit(*given).result()


def measured(model, method):
    """The updates of an edit, and what the edited model says."""
    given = {"moments": moments() if method.needs_moments else None, "contexts": tiny.CONTEXTS}
    deltas = method.apply(model, EDITS[: 1 if method.one_by_one else 2], **given).deltas
    said = kedit.ask(model, EDITS[0])
    model.restore()
    return {name: delta.cpu() for name, delta in deltas.items()}, said


def compared(folder, home, other):
    """{method: how far the two are apart, relatively}"""
    from second_device import present, spread

    torch.set_num_threads(1)
    one = kedit.load_model(folder, dtype=torch.float64)
    with present():
        two = spread(kedit.load_model(folder, dtype=torch.float64), home, other, 2)
    assert two.device.type in home and two.weight(3).device.type in other
    far = {}
    modules = [one.weight_name(i).removesuffix(".weight") for i in (1, 3)]
    there = [m.model_copy(update={"layers": [1, 3][-len(m.layers) :]}) for m in METHODS.values()]
    for method in (*there, *OTHERS, kedit.UltraEdit(modules=modules)):
        deltas, said = measured(one, method)
        with present():
            again, also = measured(two, method)
        pd.testing.assert_frame_equal(said, also)
        apart = [float((again[name] - delta).abs().max() / delta.abs().max()) for name, delta in deltas.items()]
        far[method.name] = max(apart, default=0.0)
    return far


@pytest.mark.parametrize("home, other", HOMES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_method_edits_alike(apart, tiny_folder, kind, home, other):
    far = apart(compared, tiny_folder(kind), home, other)
    assert len(far) >= 20 and max(far.values()) < 1e-10


def lab(home, other):
    """A sequence of the lab with all that it measures, its contexts, C and a guard, on one device and on two."""
    from second_device import present, spread

    torch.set_num_threads(1)
    found = []
    for spread_out in (False, True):
        model = kedit.load_model("lab-small", dtype=torch.float64)
        method, known = kedit.method_for(model, "memit"), kedit.load_edits("lab", model=model)
        edits, texts = known[:4], [edit.text for edit in known[:500]]
        given = {"probes": kedit.lab_probes(model, edits, layers=method.layers), "guard": kedit.CollapseGuard()}
        with present():
            model = spread(model, home, other, 2) if spread_out else model
            given |= {"contexts": kedit.generate_contexts(model), "checkpoint_every": 2}
            given["moments"] = kedit.SecondMoments.estimate(model, texts, method.layers)
            run = kedit.run_stream(model, edits, method, progress=False, **given)
            found.append((given["contexts"], run.checkpoints[run.checkpoints.metric != "seconds"]))
    return found


@pytest.mark.parametrize("home, other", HOMES)
def test_all_that_a_sequence_measures_is_alike(apart, home, other):
    (contexts, checks), (also, looked) = apart(lab, home, other)
    assert contexts == also
    pd.testing.assert_frame_equal(checks.reset_index(drop=True), looked.reset_index(drop=True), rtol=1e-6)
