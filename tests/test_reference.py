"""The library against the plain reference, in float64 on tiny random models: the same numbers to eight digits and more.

Llama (grouped-query attention) without and with a begin-of-text token and with Llama-2's way of writing spaces, and
GPT-2 (transposed weights, biases). Subjects, contexts and targets are those of `tiny.py`.
"""

from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from library import method, new_history, parameters, snapshot, uses_moments

import kedit_lib as kedit

SAME = 1e-8
EDITS = [SimpleNamespace(prompt=prompt, subject=subject, target_new=target) for prompt, subject, target in tiny.EDITS]
# Every awkward edit comes up in some method: the last one succeeds within the steps, the others do not.
SINGLE, BATCH = [EDITS[1]], [EDITS[0], EDITS[4], EDITS[3]]


def assert_same(value, expected, what):
    """Relative to the expected length, or to a tiny one where nothing but rounding is expected."""
    assert value.shape == expected.shape, what
    error, length = float((value - expected).norm()), float(expected.norm())
    assert error <= SAME * max(length, 1e-5), f"{what}: off by {error:.1e} of {length:.1e}"


def compare(result, outcome):
    assert len(outcome.targets) == len(result.targets)
    for i, (ours, theirs) in enumerate(zip(outcome.targets, result.targets, strict=True)):
        assert ours.steps == theirs.steps == len(ours.losses) == len(ours.probabilities)
        assert [float(x) for x in ours.losses] == pytest.approx(theirs.losses, rel=SAME, abs=1e-10)
        assert [float(x) for x in ours.probabilities] == pytest.approx(theirs.probabilities, rel=SAME, abs=1e-10)
        for name in ("z", "delta", "z_attn", "delta_attn"):
            if hasattr(theirs, name):
                assert_same(getattr(ours, name), getattr(theirs, name), name)
        for layer, keys in result.keys.items():
            assert_same(ours.key_per_layer[layer], keys[:, i], f"key of layer {layer}")
    assert set(outcome.deltas) == set(result.deltas)
    for name, update in result.deltas.items():
        assert_same(outcome.deltas[name], update, name)


def both(tiny_model, kind, name, hyperparameters, edits, contexts=tiny.CONTEXTS):
    """The same edit by the reference and by the library, compared; returns what each gave."""
    plain, theirs = tiny_model(kind), SimpleNamespace(**{"nll_loss_factor": 1.0, **hyperparameters})
    edit_by, C = method(name, hyperparameters), tiny.second_moments()
    model = kedit.load_model(plain.folder, dtype=torch.float64)
    before = snapshot(model)
    if name.endswith("rome"):
        result = getattr(reference, name)(plain.model, plain.tokenizer, edits[0], contexts, theirs, C)
    else:
        result = getattr(reference, name)(plain.model, plain.tokenizer, edits, contexts, theirs, C)
    given = kedit.SecondMoments.from_tensors(C) if uses_moments(name, hyperparameters) else None
    outcome = edit_by.apply(model, [library_edit(edit) for edit in edits], moments=given, contexts=contexts)
    compare(result, outcome)
    after = parameters(model)
    for parameter, value in before.items():
        changed = value + outcome.deltas[parameter] if parameter in outcome.deltas else value
        assert torch.allclose(after[parameter], changed, rtol=0, atol=1e-14), parameter
    return result, outcome


def library_edit(edit):
    return kedit.Edit(prompt=edit.prompt, subject=edit.subject, target_new=edit.target_new)


def hyper(**changes):
    return {**tiny.HYPER, **changes}


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("name", ["rome", "rrome", "prome"])
@pytest.mark.parametrize("with_C", [True, False], ids=["C", "no-C"])
def test_rome(tiny_model, kind, name, with_C):
    both(tiny_model, kind, name, hyper(layers=[2], mom2_adjustment=with_C), [EDITS[0] if with_C else EDITS[4]])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_memit_single(tiny_model, kind):
    both(tiny_model, kind, "memit", hyper(), SINGLE)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_memit_batch(tiny_model, kind):
    both(tiny_model, kind, "memit", hyper(), BATCH)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_pmet(tiny_model, kind):
    both(tiny_model, kind, "pmet", hyper(), BATCH)


@pytest.mark.parametrize("contexts", [["{}"], tiny.BRACES], ids=["clean", "braces"])
@pytest.mark.parametrize("name", ["rome", "memit"])
def test_contexts(tiny_model, name, contexts):
    """The clean context alone; and braces in a context, doubled as in a format string."""
    few = hyper(layers=[2], v_num_grad_steps=4, mom2_adjustment=True)
    both(tiny_model, "llama-bos", name, few, [EDITS[2]], contexts)


@pytest.mark.parametrize("name", ["memit", "pmet"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("loss_layer", [None, tiny.N_LAYERS - 2, 0])
def test_loss_layer(tiny_model, kind, name, loss_layer):
    """None is the last; one further down changes the likelihood but not the KL, which stays with the model's own
    logits; one below the edited layers is raised to the last of these."""
    both(tiny_model, kind, name, hyper(v_loss_layer=loss_layer, v_num_grad_steps=5), [EDITS[4]])


@pytest.mark.parametrize("name", ["rome", "memit", "pmet"])
def test_early_stop(tiny_model, name):
    """A learned target: the loss falls under 0.05, or (PMET) the target leads everywhere at little divergence."""
    few = hyper(kl_factor=1e-4, v_num_grad_steps=20, clamp_norm_factor=8.0, mom2_adjustment=True)
    if name == "rome":
        few["layers"] = [2]
    _, outcome = both(tiny_model, "llama", name, few, [EDITS[4]])
    assert 1 < outcome.targets[0].steps < 20


@pytest.mark.parametrize("name", ["memit", "pmet"])
def test_tight_clamp_and_strong_decay(tiny_model, name):
    """The regime in which δ ends at the clamp."""
    _, outcome = both(tiny_model, "llama", name, hyper(clamp_norm_factor=0.2, v_weight_decay=0.5), BATCH)
    for target in outcome.targets:
        norm = (target.z - target.delta).norm()
        assert float(target.delta.norm() / norm) == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_fewest_steps(tiny_model, steps):
    both(tiny_model, "llama-bos", "memit", hyper(v_num_grad_steps=steps), BATCH)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch", [SINGLE, BATCH], ids=["single", "batch"])
def test_emmet(tiny_model, kind, batch):
    both(tiny_model, kind, "emmet", hyper(layers=[2], emmet_lambda=0.1, update_norm_lambda=0.5), batch)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_memit_with_history(tiny_model, kind):
    """Two batches in a row: the second one knows the keys of the first, measured on the weights after it."""
    plain, C, M, history = tiny_model(kind), tiny.second_moments(), {}, new_history()
    model = kedit.load_model(plain.folder, dtype=torch.float64)
    moments, edit_by = kedit.SecondMoments.from_tensors(C), method("memit", hyper(use_history=True))
    for batch in (SINGLE, BATCH):
        result = reference.memit(plain.model, plain.tokenizer, batch, tiny.CONTEXTS, SimpleNamespace(**hyper()), C, M)
        outcome = edit_by.apply(
            model, [library_edit(edit) for edit in batch], moments=moments, contexts=tiny.CONTEXTS, history=history
        )
        compare(result, outcome)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_alphaedit(tiny_model, kind, monkeypatch):
    """Two batches in a row. The threshold lies in a wide gap of the spectrum, so that the cut is well conditioned and
    the precision in which it is made does not matter beyond 1e-5."""
    plain, M, threshold = tiny_model(kind), {}, 0.02
    C = {layer: tiny.with_gap(moment, threshold) for layer, moment in tiny.second_moments().items()}
    hyperparameters = hyper(nullspace_threshold=threshold, L2=10.0)
    P = {layer: reference.null_projection(C[layer], threshold) for layer in hyperparameters["layers"]}
    edit_by = method("alphaedit", hyperparameters)
    monkeypatch.setattr("test_reference.SAME", 1e-5)
    model, history = kedit.load_model(plain.folder, dtype=torch.float64), new_history()
    moments = kedit.SecondMoments.from_tensors(C)
    for batch in (SINGLE, BATCH):
        result = reference.alphaedit(
            plain.model, plain.tokenizer, batch, tiny.CONTEXTS, SimpleNamespace(**hyperparameters), P, M
        )
        outcome = edit_by.apply(
            model, [library_edit(edit) for edit in batch], moments=moments, contexts=tiny.CONTEXTS, history=history
        )
        compare(result, outcome)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_restore_is_bit_exact(tiny_folder, kind, dtype):
    model = kedit.load_model(tiny_folder(kind), dtype=dtype)
    before, moments = snapshot(model), kedit.SecondMoments.from_tensors(tiny.second_moments())
    edit_by = method("memit", hyper(v_num_grad_steps=3))
    for edit in BATCH:
        edit_by.apply(model, [library_edit(edit)], moments=moments, contexts=tiny.CONTEXTS)
    assert any(not torch.equal(value, before[name]) for name, value in parameters(model).items())
    model.restore()
    assert all(torch.equal(value, before[name]) for name, value in parameters(model).items())


def test_temporarily_is_original_plus_this_edit_and_puts_back_what_it_found(tiny_folder):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    original, moments = snapshot(model), kedit.SecondMoments.from_tensors(tiny.second_moments())
    edit_by = method("memit", hyper(v_num_grad_steps=3))
    first = edit_by.apply(model, [library_edit(EDITS[0])], moments=moments, contexts=tiny.CONTEXTS)
    edit_by.apply(model, [library_edit(EDITS[3])], moments=moments, contexts=tiny.CONTEXTS)
    found = snapshot(model)
    with pytest.raises(RuntimeError, match="in the middle"), model.temporarily(first):
        for name, value in parameters(model).items():
            expected = original[name] + first.deltas[name] if name in first.deltas else original[name]
            assert torch.allclose(value, expected, rtol=0, atol=1e-7), name
        raise RuntimeError("in the middle")
    assert all(torch.equal(value, found[name]) for name, value in parameters(model).items())


def test_an_edit_depends_on_nothing_before_it(tiny_folder):
    """No hidden memory: after other edits, other models and other contexts, the same call gives the same bits."""

    def apply(model, edits, contexts=tiny.CONTEXTS, name="memit", **changes):
        return method(name, hyper(v_num_grad_steps=3, **changes)).apply(
            model, [library_edit(edit) for edit in edits], moments=moments, contexts=contexts
        )

    moments = kedit.SecondMoments.from_tensors(tiny.second_moments())
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float64)
    first = apply(model, BATCH)
    apply(kedit.load_model(tiny_folder("llama-bos"), dtype=torch.float64), SINGLE, contexts=["{}"])
    apply(model, SINGLE, contexts=["{}"])
    apply(model, SINGLE, name="rome", layers=[1])
    model.restore()
    again = apply(model, BATCH)
    assert all(torch.equal(first.deltas[name], again.deltas[name]) for name in first.deltas)


def test_edits_of_a_batch_are_optimised_independently(tiny_folder):
    """However the library batches them, a target is the one the edit has alone."""
    moments = kedit.SecondMoments.from_tensors(tiny.second_moments())
    model, edit_by = kedit.load_model(tiny_folder("llama"), dtype=torch.float64), method("memit", hyper())
    together = edit_by.apply(model, [library_edit(edit) for edit in EDITS], moments=moments, contexts=tiny.CONTEXTS)
    for edit, target in zip(EDITS, together.targets, strict=True):
        model.restore()
        alone = edit_by.apply(model, [library_edit(edit)], moments=moments, contexts=tiny.CONTEXTS).targets[0]
        assert alone.steps == target.steps
        assert_same(target.z, alone.z, edit.subject)
