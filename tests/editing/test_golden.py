"""The library against the authors' own numbers, through its public API."""

import golden
import torch
from golden import relative
from library import method

import kedit_lib as kedit

METHODS = ("rome", "rrome", "prome", "memit", "pmet", "emmet", "alphaedit")


def arguments(case, history=None):
    """What `apply` takes beside the model and the edits."""
    moments = None
    if method(case.method, case.record["hparams"]).needs_moments:
        moments = kedit.SecondMoments.from_tensors(
            {layer: C for layer, C in golden.second_moments().items() if layer in case.hp.layers}
        )
    return {"moments": moments, "contexts": case.contexts, "history": history}


def runs(case, folder):
    """(step, model with the weights that the step starts from, what apply takes). Steps of a method with a history
    follow each other on one model, which the history belongs to; all others start from the recorded weights."""
    history = kedit.EditHistory() if case.method == "alphaedit" else None
    for step in case.steps:
        if history is None or step == 0:
            model = kedit.load_model(case.save_model(folder / str(step), step), dtype=torch.float32)
        yield step, model, arguments(case, history)


def weight_name(layer):
    return f"model.layers.{layer}.mlp.down_proj.weight"


def assert_keys(case, step, outcome):
    for i, target in enumerate(outcome.targets):
        for layer in case.hp.layers:
            key = target.key_per_layer[layer]
            if case.method.endswith("rome"):
                assert relative(key, case.tensors[f"step{step}.key_mean"]) <= golden.KEYS
            else:
                assert relative(key, case.tensors[f"step{step}.layer{layer}.K"][i]) <= golden.KEYS


@golden.each_case(*METHODS)
def test_end_to_end(case, tmp_path):
    """Everything from text: the same steps, losses and probabilities, z, keys and ΔW."""
    edit_by = method(case.method, case.record["hparams"])
    for step, model, given in runs(case, tmp_path):
        outcome = edit_by.apply(model, case.edits(step, kedit.Edit), **given)
        for i, (target, request) in enumerate(zip(outcome.targets, case.requests(step), strict=True)):
            assert target.steps == request["n_iters"]
            golden.assert_trace(target.losses, request["loss"])
            golden.assert_trace(target.probabilities, request["avg_prob"])
            golden.assert_target(target, case.target(step, i))
        assert_keys(case, step, outcome)
        assert set(outcome.deltas) == {weight_name(layer) for layer in case.hp.layers}
        for layer in case.hp.layers:
            assert relative(outcome.deltas[weight_name(layer)], case.change(step, layer)) <= golden.END_TO_END


@golden.each_case("memit", "pmet", "emmet", "alphaedit")
def test_edit_from_recorded_targets(case, tmp_path):
    """Recorded z, the rest from text: no optimisation stands between the library and the closed form."""
    edit_by = method(case.method, case.record["hparams"])
    for step, model, given in runs(case, tmp_path):
        z = [case.target(step, i).z for i in range(len(case.requests(step)))]
        outcome = edit_by.apply(model, case.edits(step, kedit.Edit), targets=z, **given)
        assert_keys(case, step, outcome)
        for layer in case.hp.layers:
            update = outcome.deltas[weight_name(layer)]
            assert relative(update, case.change(step, layer)) <= golden.closed_form_tolerance(case)
