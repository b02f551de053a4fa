"""Why the optimised probability falls, and whether an optimisation can lift it again.

δ is a sum of Adam's steps, each about v_lr long in every coordinate on any model, and the norms of the layers above
see only the direction of v₀ + δ. So an optimisation may depend on how far its steps reach against the state that they
are added to, within the clamp:

    reach = min(v_lr · √d_model · (v_num_grad_steps − 1) / ‖v₀‖,  clamp_norm_factor)

`measure` tests whether the reach is the cause: along a stream it optimises targets of other people with a larger
budget, or with part of the prompt unedited.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pandas as pd

from ..editing import method_class
from ..editing.compute_z import Doubtful, did_nothing
from ..editing.interventions import changed
from ..evaluation import generation_accuracy
from ..streams.bench import Bench
from ..streams.named_streams import COLLAPSING
from . import measured

STREAMS = (COLLAPSING, "why-pmet-left")  # where the optimised probability falls: as it may, and by the padding bug
AT = (0, 150, 300, 450)  # edits made before targets are looked for
SAMPLE = 25  # of people whom the stream does not edit
WHAT = f"lifting-{'-'.join(map(str, AT))}x{SAMPLE}.parquet"
STEPS = 10  # times as many as in the stream
AS_IS, MORE_STEPS = "as in the stream", f"{STEPS} times as many steps"
LONGER_STEPS, UNBUGGED = "steps longer as the state has grown", "prompts padded behind"
HEALED = {"tokens before the subject unedited": "healed before", "tokens behind it unedited": "healed behind"}
BUGGED = ("left padded", "both bugs")  # changes that look prompts up at the wrong places


def reach(method, d_model: int, v0_norm):
    """How far the steps of a target's optimisation go at most, as a multiple of ‖v₀‖ (a number or a series); > 0."""
    steps = method.v_lr * d_model**0.5 * (method.v_num_grad_steps - 1)
    return np.minimum(steps / v0_norm, method.clamp_norm_factor)


def lift(bench: Bench, name: str, order: int = 0) -> pd.DataFrame | None:
    """`measure` of a stream: the committed table, or one from results/. None: an order that was not measured."""
    return measured.found(bench, name, order, WHAT)


def measure(bench: Bench, name: str, order: int = 0, at=AT, sample: int = SAMPLE) -> pd.DataFrame:
    """Go along a stream and, after each of `at` edits (0 first), look for the targets of `sample` people whom it does
    not edit, as the stream does and as `budgets` says; nothing of these is left in the model.

    One row per number of edits, budget and person: p_first, p_last, v0 (‖v₀‖), reach, said (1 if the model says the
    new object once that edit alone has been written, else 0).
    """
    model, method, rows, n = bench.model, bench.method(name), [], max(at)
    everyone, given, at_first = bench.edits(order, n + sample), bench.inputs(method, order), None
    with model.temporarily(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Doubtful)
        model.restore()
        for begin, end in pairwise((0, *at)):
            for edit in everyone[begin:end]:
                method.apply(model, [edit], **given)
            own = _look(model, method, everyone[n:], given)
            at_first = own.v0 if at_first is None else at_first
            rows.append(own.assign(edits_done=end, budget=AS_IS))
            for budget, other in budgets(bench, name, (own.v0 / at_first).median()).items():
                rows.append(_look(model, other, everyone[n:], given).assign(edits_done=end, budget=budget))
    return pd.concat(rows, ignore_index=True)


def _look(model, method, edits, given: dict) -> pd.DataFrame:
    """The rows of `measure` for the model as it is now: each edit alone, taken back."""
    rows, now = [], model.snapshot()
    for edit in edits:
        target = method.apply(model, [edit], **given).targets[0]
        (said,) = generation_accuracy(model, [edit.text], [edit.target_new])
        model.load_snapshot(now)
        p, v0 = target.probabilities, target.v0_norm
        rows.append((edit.subject, p[0], p[-1], v0, float(reach(method, model.d_model, v0)), float(said)))
    return pd.DataFrame(rows, columns=["subject", "p_first", "p_last", "v0", "reach", "said"])


def budgets(bench: Bench, name: str, grown: float) -> dict:
    """{budget: the stream's method with it} beside the stream's own; grown: ‖v₀‖ over its unedited value.

    Larger budgets; and for a stream that reads keys at the wrong places the method without that bug, for others part of
    the prompt as it is on the unedited model."""
    stream, method = bench.streams[name], bench.method(name)
    own = method.model_dump()
    larger = {
        MORE_STEPS: type(method)(**{**own, "v_num_grad_steps": STEPS * method.v_num_grad_steps}),
        LONGER_STEPS: type(method)(**{**own, "v_lr": method.v_lr * max(1.0, grown)}),
    }
    if stream.change in BUGGED:
        return larger | {UNBUGGED: method_class(stream.method)(**own)}
    return larger | {what: changed(method, change) for what, change in HEALED.items()}


def lifting_table(found: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Medians of p_first, p_last, v0 and reach, and the shares of frozen optimisations and of edits that the model
    says: one row per stream, order, number of edits and budget. found: {(stream, order): `measure`}."""
    table = pd.concat(table.assign(stream=stream, order=order) for (stream, order), table in found.items())
    table["frozen"] = [did_nothing(*pair) for pair in zip(table.p_first, table.p_last, strict=True)]
    of = table.groupby(["stream", "order", "edits_done", "budget"], sort=False)
    return of[["p_first", "p_last", "v0", "reach"]].median().join(of[["frozen", "said"]].mean()).reset_index()
