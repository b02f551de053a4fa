"""What many test files ask of the library."""

import time

import pandas as pd
import pytest
import tiny
import torch

import kedit_lib as kedit
from kedit_lib.evaluation.teacher_forcing import teacher_forced

EDITS = [kedit.Edit(*each) for each in tiny.EDITS]
NAMES = [f"{first} {last}" for first in ("Ana", "Zoë", "Léon", "Toko", "Old") for last in ("Brown", "Blum", "Müller")]
SEQUENCE = [  # the first fifteen of different subjects
    kedit.Edit(prompt, subject, target, target_true="German", relation=f"relation {i % 5}", id=f"edit-{i}")
    for i, (subject, (prompt, _, target)) in enumerate(zip(NAMES * 4, tiny.EDITS * 12, strict=True))
]
ONE, SOME = ({"layers": layers, "v_num_grad_steps": 4} for layers in ([2], [1, 2]))
TUNED = {"layers": [1, 2], "num_steps": 4, "lr": 0.01}
METHODS = {  # those whose edits are taken one batch after the other, quickly
    "ROME": kedit.ROME(**ONE),
    "RROME": kedit.RROME(**ONE),
    "PROME": kedit.PROME(**ONE, mom2_adjustment=False),
    "MEMIT": kedit.MEMIT(**SOME, mom2_update_weight=5.0),
    "MEMIT with history": kedit.MEMIT(**SOME, mom2_update_weight=5.0, use_history=True),
    "PMET": kedit.PMET(**SOME, mom2_update_weight=5.0),
    "EMMET": kedit.EMMET(**SOME),
    "AlphaEdit": kedit.AlphaEdit(**SOME, nullspace_threshold=1.0, L2=2.0),
    "RECT": kedit.RECT(**SOME, mom2_update_weight=5.0),
    "FT-L": kedit.FT(**TUNED, norm_constraint=0.02),
    "FT-M": kedit.FT(**TUNED, objective_optimization="target_new"),
}


def method(name, values):
    """The method with those of the values that it has."""
    made = kedit.method_class(name)
    return made(**{field: value for field, value in values.items() if field in made.model_fields})


def load(tiny_folder, kind="llama", dtype=torch.float32):
    return kedit.load_model(tiny_folder(kind), dtype=dtype)


def apply(model, method, *edits):
    """The edits by the method, with the clean context and another."""
    return method.apply(model, list(edits), moments=moments(), contexts=tiny.CONTEXTS[:2])


def parameters(model):
    """{name: parameter} of the transformers model inside the library's."""
    return dict(model.hf.named_parameters())


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in parameters(model).items()}


def holds(model, weights):
    """Whether the model's parameters are these, bit for bit."""
    return all(torch.equal(value, weights[name]) for name, value in parameters(model).items())


def probability(model, edits):
    """Of each edit's target behind its prompt: what a method's optimisation says it has reached."""
    return teacher_forced(model, [e.text for e in edits], [e.target_new for e in edits]).probability


def assert_same_runs(one, other, but=("seconds",)):
    """Rows bit for bit, column types included; without what is named, times if nothing is."""
    pd.testing.assert_frame_equal(*(r.edits.drop(columns=list(but)) for r in (one, other)), check_exact=True)
    checks = [r.checkpoints[~r.checkpoints.metric.isin(but)].reset_index(drop=True) for r in (one, other)]
    pd.testing.assert_frame_equal(*checks, check_exact=True)


def assert_same_weights(one, other):
    """Two dictionaries of tensors, bit for bit."""
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class FailsAt:
    """A probe that fails after so many edits."""

    def __init__(self, at):
        self.at, self.identity = at, "fails"

    def __call__(self, model, done):
        if len(done) == self.at:
            raise RuntimeError("in the middle")
        return []


def moments(tensors=None, seed=0, **owner):
    """Full-rank second moments for the tiny models, some layers' replaced by `tensors`."""
    return kedit.SecondMoments.from_tensors({**tiny.second_moments(seed=seed), **(tensors or {})}, **owner)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def refused(call, *says):
    """`call()` raises KeditError: one line that holds every one of `says`."""
    with pytest.raises(kedit.KeditError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message
    assert isinstance(caught.value, ValueError)
