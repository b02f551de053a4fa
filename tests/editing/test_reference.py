"""The library against the plain reference, in float64 on tiny random models: the same numbers to eight digits and more.

Llama (grouped-query attention) without and with a begin-of-text token and with Llama-2's way of writing spaces, and
GPT-2 (transposed weights, biases). Subjects, contexts and targets are those of `tiny.py`.
"""

from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from library import EDITS, holds, method, parameters, snapshot

import kedit_lib as kedit

SAME = 1e-8
KINDS = ["llama", pytest.param("gpt2", marks=pytest.mark.slow)]
# Every awkward edit comes up in some method: the last one succeeds within the steps, the others do not.
SINGLE, BATCH = [EDITS[1]], [EDITS[0], EDITS[4], EDITS[3]]
SEQUENCE = [SINGLE, BATCH, [EDITS[2]]]


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
        for name in ("z", "delta"):
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
    asked = edits[0] if name.endswith("rome") else edits
    result = getattr(reference, name)(plain.model, plain.tokenizer, asked, contexts, theirs, C)
    given = kedit.SecondMoments.from_tensors(C) if edit_by.needs_moments else None
    outcome = edit_by.apply(model, edits, moments=given, contexts=contexts)
    compare(result, outcome)
    after = parameters(model)
    for parameter, value in before.items():
        changed = value + outcome.deltas[parameter] if parameter in outcome.deltas else value
        assert torch.allclose(after[parameter], changed, rtol=0, atol=1e-14), parameter
    return result, outcome


def sequence(tiny_model, kind, edit_by, theirs, C=None, batches=None):
    """Batches one after another: what `theirs(plain, batch)` gives is compared with the library's. The plain model, the
    library's, its history and its outcomes."""
    plain, outcomes = tiny_model(kind), []
    model, given = ready(plain, edit_by, C)
    for batch in batches or SEQUENCE:
        outcomes.append(edit_by.apply(model, batch, **given))
        compare(theirs(plain, batch), outcomes[-1])
    return SimpleNamespace(plain=plain.model, model=model, history=given["history"], outcomes=outcomes)


def ready(plain, edit_by, C=None):
    """The library's model, and what `apply` takes beside the edits."""
    model = kedit.load_model(plain.folder, dtype=torch.float64)
    moments = kedit.SecondMoments.from_tensors(tiny.second_moments() if C is None else C)
    return model, {"moments": moments, "contexts": tiny.CONTEXTS, "history": edit_by.new_history(model, moments)}


def by(name, values, *state):
    """The reference's method on a batch, with what it is given behind the hyperparameters."""
    hp = SimpleNamespace(**values)
    return lambda plain, batch: getattr(reference, name)(plain.model, plain.tokenizer, batch, tiny.CONTEXTS, hp, *state)


def hyper(**changes):
    return {**tiny.HYPER, **changes}


@pytest.mark.parametrize("kind", tiny.MOST_SLOW)
@pytest.mark.parametrize("name", ["rome", "rrome", "prome"])
@pytest.mark.parametrize("with_C", [True, False], ids=["C", "no-C"])
def test_rome(tiny_model, kind, name, with_C):
    both(tiny_model, kind, name, hyper(layers=[2], mom2_adjustment=with_C), [EDITS[0] if with_C else EDITS[4]])


@pytest.mark.parametrize("kind", tiny.MOST_SLOW)
@pytest.mark.parametrize("name, edits", [("memit", SINGLE), ("memit", BATCH), ("pmet", BATCH)])
def test_memit_and_pmet(tiny_model, kind, name, edits):
    both(tiny_model, kind, name, hyper(), edits)


@pytest.mark.parametrize("contexts", [["{}"], tiny.BRACES], ids=["clean", "braces"])
@pytest.mark.parametrize("name", ["rome", "memit"])
def test_contexts(tiny_model, name, contexts):
    """The clean context alone; and braces in a context, doubled as in a format string."""
    few = hyper(layers=[2], v_num_grad_steps=4, mom2_adjustment=True)
    both(tiny_model, "llama-bos", name, few, [EDITS[2]], contexts)


@pytest.mark.parametrize("name", ["memit", "pmet"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_layer", [None, tiny.N_LAYERS - 2, 0])
def test_loss_layer(tiny_model, kind, name, loss_layer):
    """None is the last; one further down changes the likelihood but not the KL, which stays with the model's own
    logits; one below the edited layers is raised to the last of these."""
    both(tiny_model, kind, name, hyper(v_loss_layer=loss_layer, v_num_grad_steps=5), [EDITS[4]])


@pytest.mark.parametrize("name", ["rome", "memit", "pmet"])
def test_the_last_layer(tiny_model, name):
    """Behind it nothing is left to run."""
    last = hyper(layers=[tiny.N_LAYERS - 1], v_num_grad_steps=4, mom2_adjustment=True)
    both(tiny_model, "llama", name, last, [EDITS[4]])


SOON = hyper(kl_factor=1e-4, v_num_grad_steps=20, clamp_norm_factor=8.0)  # an edit can succeed within the steps


@pytest.mark.parametrize("name", ["rome", "memit", "pmet"])
def test_early_stop(tiny_model, name):
    """A learned target: the loss falls under 0.05, or (PMET) the target leads everywhere at little divergence."""
    few = {**SOON, "mom2_adjustment": True, **({"layers": [2]} if name == "rome" else {})}
    _, outcome = both(tiny_model, "llama", name, few, [EDITS[4]])
    assert 1 < outcome.targets[0].steps < 20


@pytest.mark.parametrize("name", ["memit", "pmet"])
def test_an_edit_that_is_learned_stops_while_the_others_of_its_batch_go_on(tiny_model, name):
    _, outcome = both(tiny_model, "llama", name, SOON, [EDITS[1], EDITS[4], EDITS[0]])
    assert len({target.steps for target in outcome.targets}) > 1


@pytest.mark.parametrize("name", ["memit", "pmet"])
def test_tight_clamp_and_strong_decay(tiny_model, name):
    """The regime in which δ ends at the clamp."""
    _, outcome = both(tiny_model, "llama", name, hyper(clamp_norm_factor=0.2, v_weight_decay=0.5), BATCH)
    ratios = [float(target.delta.norm() / (target.z - target.delta).norm()) for target in outcome.targets]
    assert ratios == pytest.approx([0.2] * len(BATCH), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layers, batch", [([2], SINGLE), ([2], BATCH), ([1, 3], BATCH)], ids=["single", "batch", "two"]
)
def test_emmet(tiny_model, kind, layers, batch):
    """η > 0: what is inverted is λC + ηI, and C need not be invertible then; two layers share the residual."""
    hyperparameters = hyper(layers=layers, emmet_lambda=0.3, update_norm_lambda=2.0, v_num_grad_steps=4)
    both(tiny_model, kind, "emmet", hyperparameters, batch)
    C = tiny.second_moments()
    C[2][:, 5] = C[2][5, :] = 0
    model = kedit.load_model(tiny_model(kind).folder, dtype=torch.float64)
    given = {"moments": kedit.SecondMoments.from_tensors(C), "contexts": ["{}"]}
    assert method("emmet", {**hyperparameters, "layers": [2]}).apply(model, [EDITS[0]], **given).deltas


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["memit", "rect", pytest.param("pmet", marks=pytest.mark.slow)])
def test_history(tiny_model, kind, name):
    """Three batches in a row: each knows the keys of those before it, measured on the weights after them (RECT takes
    part of an update back, so that these are not the ones that it wrote with)."""
    values, M = hyper(use_history=True, nll_loss_factor=1.0), {}
    made = sequence(tiny_model, kind, method(name, values), by(name, values, tiny.second_moments(), M))
    for layer, expected in M.items():
        k = made.history.keys[layer]
        assert_same(k.T @ k, expected, f"M of layer {layer}")


def test_written_fractions_count_the_history(tiny_model):
    """What an edit writes of its residual, alone: k'(λC + M)⁻¹k / (1 + k'(λC + M)⁻¹k); s itself stays k'C⁻¹k."""
    edit_by, C = method("memit", hyper(layers=[2], use_history=True)), tiny.second_moments()
    model, given = ready(tiny_model("llama"), edit_by)
    history = given["history"]
    for batch in (BATCH, [EDITS[1]]):
        past = history.keys[2] if history.edits else torch.zeros(1, tiny.D_FF, dtype=torch.float64)
        outcome = edit_by.apply(model, batch, **given)
        for i, target in enumerate(outcome.targets):
            k = target.key_per_layer[2]
            s = k @ torch.linalg.solve(C[2].double(), k)
            g = k @ torch.linalg.solve(5.0 * C[2].double() + past.T @ past, k)
            assert float(outcome.s[2][i]) == pytest.approx(float(s), rel=1e-8)
            assert float(outcome.written[2][i]) == pytest.approx(float(g / (1 + g)), rel=1e-8)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_single_edits_with_history_are_one_batch(tiny_model, name):
    """Recursive least squares: one layer, clean prompts only and frozen z, so that no key moves."""
    values = hyper(layers=[2], use_history=True, nullspace_rank=30, L2=2.0)
    edit_by = method(name, values)
    model, given = ready(tiny_model("llama"), edit_by)
    given |= {"contexts": ["{}"], "history": None}
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(tiny.D_MODEL, generator=generator, dtype=torch.float64) for _ in EDITS]
    (expected,) = edit_by.apply(model, EDITS, **given, targets=z).deltas.values()
    for use_history in (True, False):
        model.restore()
        given["history"], total = kedit.EditHistory() if use_history else None, 0
        plain = edit_by if use_history or name == "alphaedit" else method(name, {**values, "use_history": False})
        for edit, one in zip(EDITS, z, strict=True):
            (update,) = plain.apply(model, [edit], **given, targets=[one]).deltas.values()
            total = total + update
        error = float((total - expected).norm() / expected.norm())
        assert (error < 1e-8) == use_history, error


@pytest.mark.parametrize("name", ["rome", "prome", "memit", "pmet", "emmet", "alphaedit", "rect"])
def test_given_targets_are_written_as_optimised_ones_are(tiny_model, name):
    values = hyper(layers=[2], nullspace_rank=30, v_num_grad_steps=4)
    edit_by = method(name, values)
    model, given = ready(tiny_model("llama"), edit_by)
    given["history"] = None
    batch = SINGLE if name.endswith("rome") else BATCH
    first = edit_by.apply(model, batch, **given)
    model.restore()
    again = edit_by.apply(model, batch, **given, targets=[target.z for target in first.targets])
    for parameter, update in first.deltas.items():
        assert_same(again.deltas[parameter], update, parameter)
    for ours, theirs in zip(again.targets, first.targets, strict=True):
        assert_same(ours.delta, theirs.delta, "delta")
        assert ours.steps == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rect(tiny_model, kind):
    """Single and batch: the entries that stay, and how many these are."""
    for edits in (SINGLE, BATCH):
        _, outcome = both(tiny_model, kind, "rect", hyper(), edits)
        for update in outcome.deltas.values():
            assert int((update != 0).sum()) == update.numel() - int(0.6 * update.numel()) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_prune(tiny_model, kind):
    """After a sequence of edits; a second time there is nothing left to lower beyond what the logarithm left."""
    values = hyper(mom2_update_weight=0.5)
    theirs, batches = by("memit", values, tiny.second_moments()), [[edit] for edit in EDITS]
    made = sequence(tiny_model, kind, method("memit", values), theirs, batches=batches)
    model, names = made.model, [reference.weight(made.plain, layer)[0] for layer in values["layers"]]
    originals = {**snapshot(model), **model.edited}
    reference.prune(made.plain, {name: originals[name] for name in names})
    report = kedit.prune(model).set_index("parameter")
    assert set(report.index) == set(names)
    assert report.reduced.sum() > 0, "nothing was pruned, the test says nothing"
    for name, value in parameters(model).items():
        expected = made.plain.get_parameter(name)
        assert_same(value - originals[name], expected - originals[name], name)
        if name in names:
            total = torch.linalg.svdvals((value - originals[name]).detach())
            assert report.after[name] == pytest.approx(float(total[0]), rel=1e-8)
            assert report.sigma_max[name] == pytest.approx(float(torch.linalg.svdvals(originals[name])[0]), rel=1e-8)
    model.restore()
    assert holds(model, originals)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["rome", "memit", pytest.param("pmet", marks=pytest.mark.slow)])
def test_norm_anchoring(tiny_model, kind, name):
    """Every v* gets the reference norm, measured on the unedited weights, whatever the weights are by then."""
    values = hyper(v_num_grad_steps=4, **({"layers": [2]} if name == "rome" else {}))
    plain, optimise = tiny_model(kind), {"rome": "optimise_v", "memit": "optimise_z", "pmet": "optimise_pmet"}[name]
    last, hp = values["layers"][-1], SimpleNamespace(**values, nll_loss_factor=1.0, mom2_adjustment=True)
    targets = [getattr(reference, optimise)(plain.model, plain.tokenizer, e, tiny.CONTEXTS, hp) for e in EDITS]
    expected = reference.reference_norm(plain.model, plain.tokenizer, EDITS, last, targets)

    model = kedit.load_model(plain.folder, dtype=torch.float64)
    with torch.no_grad():
        model.add({model.weight_name(last): torch.ones_like(model.weight(last))})
    edited = snapshot(model)
    r = kedit.anchor_norm(model, method(name, values), EDITS, tiny.CONTEXTS, group=1)
    assert r == pytest.approx(expected, rel=SAME)
    assert holds(model, edited)
    _, outcome = both(tiny_model, kind, name, {**values, "norm_anchor": r / 2, "mom2_adjustment": True}, SINGLE)
    free = targets[1]
    assert float((outcome.targets[0].z - free.z).norm()) > 0.1
    _, dropped = both(tiny_model, kind, name, {**values, "norm_anchor": r / 50, "mom2_adjustment": True}, SINGLE)
    assert float(dropped.targets[0].delta.norm()) == 0
    anchored = method(name, {**values, "norm_anchor": r})
    assert anchored.hyperparameters["anchor_skip"] and "anchor_skip" not in method(name, values).hyperparameters


def test_the_largest_norms_do_not_enter_the_reference(tiny_model):
    """5 % of the sample: one of twenty edits, none of nineteen."""
    model, edits = kedit.load_model(tiny_model("llama").folder, dtype=torch.float64), []
    for subject in ("Zoë", "Ana Brown", "Toko Yasuda", "Léon Blum"):
        for prompt in ("{} plays the", "The language of {} is", "You read of {}", "The town of {}", "I read {}"):
            edits.append(kedit.Edit(prompt, subject, "organ"))
    rome = method("rome", hyper(layers=[2], v_num_grad_steps=1))  # v* = v0
    norms = [kedit.anchor_norm(model, rome, [edit], ["{}"]) for edit in edits]
    assert kedit.anchor_norm(model, rome, edits, ["{}"]) == pytest.approx(sum(sorted(norms)[:19]) / 19, rel=1e-9)
    assert kedit.anchor_norm(model, rome, edits[:19], ["{}"]) == pytest.approx(sum(norms[:19]) / 19, rel=1e-9)


FT = {"layers": [2], "num_steps": 6, "lr": 0.01, "weight_decay": 0.0, "batch_size": 1}
FT_KINDS = {
    "FT-L": {"objective_optimization": "prompt_last", "norm_constraint": 0.02},
    "FT-M": {"objective_optimization": "target_new", "norm_constraint": None},
    "two layers, decay, pairs": {"objective_optimization": "target_new", "norm_constraint": 0.03}
    | {"layers": [1, 3], "weight_decay": 0.5, "batch_size": 2},
}


def fine_tuned(tiny_model, kind, values, batches):
    def theirs(plain, batch):
        return reference.fine_tune(plain.model, plain.tokenizer, batch, SimpleNamespace(**values))

    return sequence(tiny_model, kind, method("ft", values), theirs, batches=batches).outcomes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", FT_KINDS.values(), ids=FT_KINDS)
def test_fine_tuning(tiny_model, kind, values):
    """An edit alone, then a batch on top of it. Its bound is a bound, and around the weights at the start of a call."""
    values = {**FT, **values}
    for outcome in fine_tuned(tiny_model, kind, values, [SINGLE, BATCH]):
        largest = max(float(update.abs().max()) for update in outcome.deltas.values())
        if values["norm_constraint"] is not None:
            assert largest == pytest.approx(values["norm_constraint"], rel=1e-9)
            assert all(target.clamped for target in outcome.targets)
        else:
            assert largest > 0.02
        assert all(target.losses[-1] < target.losses[0] for target in outcome.targets)


def test_fine_tuning_stops_when_the_loss_is_small(tiny_model):
    values = {**FT, **FT_KINDS["FT-M"], "num_steps": 40, "lr": 0.05}
    for outcome in fine_tuned(tiny_model, "llama", values, [[EDITS[4]], BATCH]):
        assert all(1 < target.steps <= 40 for target in outcome.targets)
        assert sum(target.losses[-1] for target in outcome.targets) / len(outcome.targets) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype, same, anchor",
    [(torch.float32, 1e-5, None), (torch.float64, SAME, None), (torch.float64, SAME, 40.0)],
    ids=["single", "double", "NAS"],
)
def test_alphaedit(tiny_model, kind, monkeypatch, dtype, same, anchor):
    """Two batches in a row. The threshold lies in a wide gap of the spectrum, so that the cut is well conditioned and
    the precision in which it is made does not matter beyond 1e-5, and not at all where C is float64. NAS is AlphaEdit
    with an anchor."""
    threshold = 0.02
    C = {layer: tiny.with_gap(moment, threshold).to(dtype) for layer, moment in tiny.second_moments().items()}
    values = hyper(nullspace_threshold=threshold, L2=10.0, norm_anchor=anchor)
    P = {layer: reference.null_projection(C[layer], threshold) for layer in values["layers"]}
    monkeypatch.setattr("test_reference.SAME", same)
    sequence(tiny_model, kind, method("alphaedit", values), by("alphaedit", values, P, {}), C, [SINGLE, BATCH])
