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

import numpy as np
import pandas as pd

from ..editing import method_class
from ..editing.compute_z import Doubtful, did_nothing
from ..editing.interventions import changed
from ..evaluation import generation_accuracy
from ..streams.bench import Bench
from ..streams.named_streams import COLLAPSING
from .measured import stored

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


def frozen(first: pd.Series, last: pd.Series) -> pd.Series:
    """`targets.did_nothing` of each optimisation; first, last: their probabilities."""
    return pd.Series([did_nothing(*pair) for pair in zip(first, last, strict=True)], first.index, dtype=bool)


def lift(bench: Bench, name: str, order: int = 0) -> pd.DataFrame | None:
    """`measure` of a stream: the committed table, or one from results/. None: an order that was not measured."""
    return stored(bench, name, order, WHAT)


def measure(bench: Bench, name: str, order: int = 0, at=AT, sample: int = SAMPLE) -> pd.DataFrame:
    """Go along a stream and, after each of `at` edits (0 first), look for the targets of `sample` people whom it does
    not edit, as the stream does and as `budgets` says; nothing of these is left in the model.

    One row per number of edits, budget and person: p_first, p_last, v0 (‖v₀‖), reach, said (1 if the model says the
    new object once that edit alone has been written, else 0).
    """
    model, method, rows, n = bench.model, bench.method(name), [], max(at)
    everyone = bench.edits(order, n + sample)
    edits, others = everyone[:n], everyone[n:]
    given = bench.inputs(method, order)
    with model.temporarily(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Doubtful)
        model.restore()
        done, unedited = 0, None
        for stop in at:
            for edit in edits[done:stop]:
                method.apply(model, [edit], **given)
            done = stop
            own = _look(model, method, others, given)
            unedited = own if unedited is None else unedited
            tried = {AS_IS: own}
            for budget, other in budgets(bench, name, (own.v0 / unedited.v0).median()).items():
                tried[budget] = _look(model, other, others, given)
            rows += [found.assign(edits_done=stop, budget=budget) for budget, found in tried.items()]
    return pd.concat(rows, ignore_index=True)


def _look(model, method, edits, given: dict) -> pd.DataFrame:
    """The rows of `measure` for the model as it is now: each edit alone, taken back."""
    rows, now = [], model.snapshot()
    for edit in edits:
        target = method.apply(model, [edit], **given).targets[0]
        (said,) = generation_accuracy(model, [edit.text], [edit.target_new])
        model.load_snapshot(now)
        first, last = target.probabilities[0], target.probabilities[-1]
        reached = float(reach(method, model.d_model, target.v0_norm))
        rows.append((edit.subject, first, last, target.v0_norm, reached, float(said)))
    return pd.DataFrame(rows, columns=["subject", "p_first", "p_last", "v0", "reach", "said"])


def budgets(bench: Bench, name: str, grown: float) -> dict:
    """{budget: the stream's method with it} beside the stream's own; grown: ‖v₀‖ over its unedited value.

    Larger budgets; and for a stream that reads keys at the wrong places the method without that bug, for others part of
    the prompt as it is on the unedited model."""
    stream, method = bench.streams[name], bench.method(name)
    own = method.model_dump()
    found = {
        MORE_STEPS: type(method)(**{**own, "v_num_grad_steps": STEPS * method.v_num_grad_steps}),
        LONGER_STEPS: type(method)(**{**own, "v_lr": method.v_lr * max(1.0, grown)}),
    }
    if stream.change in BUGGED:
        return found | {UNBUGGED: method_class(stream.method)(**own)}
    return found | {what: changed(method, change) for what, change in HEALED.items()}


def lifting_table(found: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Medians of p_first, p_last, v0 and reach, and the shares of frozen optimisations and of edits that the model
    says: one row per stream, order, number of edits and budget. found: {(stream, order): `measure`}."""
    tables = [
        table.assign(stream=stream, order=order, frozen=frozen(table.p_first, table.p_last))
        for (stream, order), table in found.items()
    ]
    of = pd.concat(tables).groupby(["stream", "order", "edits_done", "budget"], sort=False)
    medians = of[["p_first", "p_last", "v0", "reach"]].median()
    return medians.join(of[["frozen", "said"]].mean()).reset_index()
