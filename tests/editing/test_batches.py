"""Each of the newer editors, and GRACE, takes a batch of a hundred, on a trained model."""

from functools import cache
from math import isfinite

import pytest

import kedit_lib as kedit
from kedit_lib.evaluation.protocol import EditProbe
from kedit_lib.lab.edits import lab_edits
from kedit_lib.lab.world import moment_texts, world_of

NEWER = "ENCORE EvoEdit BetaEdit LyapLock RLSEdit SimIE SPHERE REVIVE UltraEdit Gate Retrieval GRACE".split()
NEWER += ["memit NAS", "compensated RECT", "compensated PRUNE"]
# At its published step; as the lab model does not read its prompt; as its bound takes most of so large an update.
UNMOVED = {"UltraEdit", "Retrieval", "compensated PRUNE"}


@cache
def asked():
    model = kedit.load_model("lab-small")
    world = world_of(model)
    moments = kedit.SecondMoments.estimate(model, moment_texts(model), range(model.n_layers))
    return model, lab_edits(world, 100, people=world.people), moments


def method_of(name, model, edits):
    """A method by name; "<base> NAS": with the anchor of the first twenty edits."""
    if name.endswith(" NAS"):
        plain = kedit.method_for(model, base := name.removesuffix(" NAS"))
        return kedit.method_for(model, base, norm_anchor=kedit.anchor_norm(model, plain, edits[:20]))
    compensated = {"compensation": True} if name.startswith("compensated ") else {}
    return kedit.method_for(model, name.split()[-1], **compensated)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEWER)
def test_a_batch_of_a_hundred(name):
    model, edits, moments = asked()
    method = method_of(name, model, edits)
    run = kedit.run_stream(
        model,
        edits,
        method,
        batch_size=100,
        moments=moments if method.needs_moments else None,
        probes=[EditProbe(each=False)],
        progress=False,
    )
    p = run.curve("probability", "edits")
    assert len(run.edits) == 100 and set(run.edits.batch) == {100}
    assert isfinite(p[100]) and (name in UNMOVED or p[100] > 0.1)
