"""The newer editors against their authors' own numbers, through the public API. Each step starts from the recorded
weights; what lasts over the steps is the library's own history."""

import golden
import golden_newer
import pytest
import torch
from golden import relative
from golden_newer import NOTHING, each_case, tolerance

import kedit_lib as kedit

TARGET = ("layers", "v_num_grad_steps", "v_lr", "v_loss_layer", "v_weight_decay", "clamp_norm_factor", "kl_factor")
OWN = {
    "encore": ("ENCORE", ("mom2_update_weight", "update_norm_lambda", "prob_cutoff")),
    "evoedit": ("EvoEdit", ("nullspace_threshold", "L2")),
    "betaedit": ("BetaEdit", ("lambda1", "lambda2", "tau", "nullspace_threshold")),
    "lyaplock": ("LyapLock", ("mom2_update_weight", "alpha")),
}


def hyperparameters(case, *own):
    return {f: case.record["hparams"][f] for f in (*TARGET, *own)}


def method(case):
    name, own = OWN[case.method]
    return getattr(kedit, name)(**hyperparameters(case, *own))


def weight_name(layer):
    return f"model.layers.{layer}.mlp.down_proj.weight"


def steps(case, folder):
    """(step, model with the weights that the step starts from): one model, so that the history stays its own."""
    model = kedit.load_model(case.save_model(folder / "model"), dtype=torch.float32)
    for step in case.steps:
        model.restore()
        if step:
            model.add(case.changes_before(step))
        yield step, model


def moments(case):
    return kedit.SecondMoments.from_tensors({i: c for i, c in golden.second_moments().items() if i in case.hp.layers})


def run(case, folder, edit_by, carried=True):
    """(step, outcome, history) of every step; targets, losses, keys and ΔW are those that were recorded."""
    second, history = moments(case), None
    for step, model in steps(case, folder):
        history = edit_by.new_history(model, second) if step == 0 or not carried else history
        outcome = edit_by.apply(
            model, case.edits(step, kedit.Edit), moments=second, contexts=case.contexts, history=history
        )
        for i, (target, request) in enumerate(zip(outcome.targets, case.requests(step), strict=True)):
            assert target.steps == request["n_iters"]
            golden.assert_trace(target.losses, request["loss"])
            if "rome" not in case.name:  # of which no anchored z was recorded
                assert relative(target.z, case.tensors[f"step{step}.req{i}.z"]) <= golden.TARGETS
        for layer in case.hp.layers:
            if f"step{step}.layer{layer}.K" in case.tensors:
                keys = torch.stack([t.key_per_layer[layer] for t in outcome.targets])
                assert relative(keys, case.tensors[f"step{step}.layer{layer}.K"]) <= 10 * golden.KEYS
            ours, theirs = outcome.deltas[weight_name(layer)], case.change(step, layer)
            if not theirs.any():
                assert float(ours.abs().max()) <= NOTHING
            else:
                assert relative(ours, theirs) <= tolerance(case), f"step {step}, layer {layer}"
        yield step, outcome, history


@each_case("encore")
def test_encore(case, tmp_path):
    for step, _, history in run(case, tmp_path, method(case)):
        for layer in case.hp.layers:
            trace = (history.keys[layer].double() ** 2).sum(0)
            assert relative(trace, case.tensors[f"step{step}.layer{layer}.history_diag"]) <= 1e-4


@each_case("evoedit")
def test_evoedit(case, tmp_path):
    for step, _, history in run(case, tmp_path, method(case)):
        for layer in case.hp.layers:
            q = history.get("Q", layer)[-case.tensors[f"step{step}.layer{layer}.Q_add"].shape[1] :]
            recorded = case.tensors[f"step{step}.layer{layer}.Q_add"].double().T
            assert relative(q.T @ q, recorded.T @ recorded) <= 1e-2  # the sign of a singular vector is free


@each_case("betaedit")
def test_betaedit(case, tmp_path):
    for step, _, history in run(case, tmp_path, method(case)):
        renewed = case.record["steps"][step]["projector_rebuilt"][0]
        assert (history.numbers.get("renewed", 0) == step > 0) == renewed


@each_case("lyaplock")
def test_lyaplock(case, tmp_path):
    for step, _, history in run(case, tmp_path, method(case)):
        after = case.record["steps"][step]["state_after"]
        for layer in case.hp.layers:
            assert abs(history.numbers[f"Z.{layer}"] / after["Z"][str(layer)] - 1) <= 1e-3


@each_case("rlsedit")
def test_rlsedit(case, tmp_path):
    """As its authors' program has it; and the same recursion without a history, as their runner calls it."""
    edit_by = kedit.RLSEdit(**hyperparameters(case, "mom2_update_weight"), as_code=True)
    carried = case.record["extra"]["carry_C_between_steps"]
    for step, outcome, history in run(case, tmp_path, edit_by, carried):
        for layer in case.hp.layers if carried else ():
            inverse = history.get("inverse", layer)
            assert relative(inverse.diagonal(), case.tensors[f"step{step}.layer{layer}.C_diag_after"]) <= 3e-3
            k = outcome.targets[0].key_per_layer[layer].double()
            assert relative(inverse @ k[:, None], case.tensors[f"step{step}.layer{layer}.C_K_after"]) <= 3e-3


BASES = {
    "nasmemit": ("MEMIT", ("mom2_update_weight",)),
    "nasmemitseq": ("MEMIT", ("mom2_update_weight",)),
    "nasrome": ("ROME", ("mom2_adjustment",)),
    "nasalphaedit": ("AlphaEdit", ("nullspace_threshold", "L2")),
    "nas": ("AlphaEdit", ("nullspace_threshold", "L2")),
}


@each_case(*BASES)
def test_norm_anchoring(case, tmp_path):
    """The anchor as its authors measure it on pilots, and the edits with it; skipped ones change nothing."""
    name, own = BASES[case.method]
    values = hyperparameters(case, *own) | ({"use_history": True} if case.method == "nasmemitseq" else {})
    model = kedit.load_model(case.save_model(tmp_path / "pilot"), dtype=torch.float32)
    pilots = [kedit.Edit(p["prompt"], p["subject"], p["target"].strip()) for p in case.record["extra"]["pilot"]]
    anchor = kedit.anchor_norm(model, getattr(kedit, name)(**values), pilots)
    assert anchor == pytest.approx(float(case.tensors["anchor"]), rel=1e-4)
    edit_by = getattr(kedit, name)(**values, norm_anchor=float(case.tensors["anchor"]))
    for step, outcome, _ in run(case, tmp_path, edit_by):
        for target, request in zip(outcome.targets, case.requests(step), strict=True):
            assert (float(target.delta.norm()) == 0) == request["skipped"]


@each_case("spherememit", "spherealphaedit")
def test_sphere(case, tmp_path):
    own = ("nullspace_threshold", "L2") if "alpha" in case.method else ("mom2_update_weight",)
    base = (kedit.AlphaEdit if "alpha" in case.method else kedit.MEMIT)(**hyperparameters(case, *own))
    edit_by = kedit.SPHERE(base, beta_hse=case.hp.beta_hse, alpha=case.hp.alpha)
    assert len(list(run(case, tmp_path, edit_by))) == len(case.steps)


@each_case("simie")
def test_simie(case, tmp_path):
    assert case.name.startswith("simie")
    on_rome = "rome" in case.name
    own = "mom2_adjustment" if on_rome else "mom2_update_weight"
    base = (kedit.ROME if on_rome else kedit.MEMIT)(**hyperparameters(case, own))
    edit_by = kedit.SimIE(base, lamHyper=case.hp.lamHyper, init_model=case.hp.init_model)
    assert len(list(run(case, tmp_path, edit_by))) == len(case.steps)


@each_case("ultraedit")
def test_ultraedit(case, tmp_path):
    """Deltas carry the rounding of the weights, the normaliser does not."""
    hp = case.hp
    edit_by = kedit.UltraEdit(modules=hp.edit_modules, lr=hp.lr, batch_size=hp.dataset_batch_size)
    model = kedit.load_model(case.save_model(tmp_path / "model"), dtype=torch.float32)
    history, before = edit_by.new_history(model), {}
    for step in case.steps:
        model.restore()
        if before:
            model.add(before)
        outcome = edit_by.apply(model, case.edits(step, kedit.Edit), history=history)
        for name in hp.edit_modules:
            _, _, layer, _, kind = name.split(".")
            stem = f"step{step}.layer{layer}" + ("" if kind == "down_proj" else f".{kind}")
            delta = case.tensors[f"{stem}.delta"]
            assert relative(outcome.deltas[f"{name}.weight"], case.tensors[f"{stem}.shift"]) <= 1e-3
            assert relative(outcome.deltas[f"{name}.weight"], delta) <= tolerance(case)
            before[f"{name}.weight"] = before.get(f"{name}.weight", 0) + delta
        (shape,) = {key.split(".")[1].removeprefix("normalizer_") for key in case.tensors if "normalizer" in key}
        assert relative(history.get("mean", shape), case.tensors[f"step{step}.normalizer_{shape}.mean"]) <= 1e-4
        assert float(history.get("n", shape)) == case.record["steps"][step][f"normalizer_{shape}.n"]


def test_golden_numbers_are_there():
    if golden_newer.FOLDER is None:
        pytest.skip(golden_newer.MISSING)
    assert any(golden_newer.FOLDER.glob("*/case.json"))
