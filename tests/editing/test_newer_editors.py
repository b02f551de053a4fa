"""The newer editors against their dense form, in float64 on tiny random models: sequences of batches, the history with
them."""

import warnings
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from library import EDITS, assert_same_weights, method
from test_reference import BATCH, SEQUENCE, SOON, assert_same, both, by, hyper, ready, sequence

import kedit_lib as kedit
from kedit_lib.editing.compute_k import outputs_at, prompts_of

THRESHOLD = 0.02
KINDS = ["llama-bos", pytest.param("gpt2", marks=pytest.mark.slow)]


def unedited(tiny_model, kind, layers):
    model = tiny_model(kind).model
    return {layer: reference.matrix_of(model, layer) for layer in layers}


def in_a_gap(**changes):
    """Hyperparameters with a threshold in a wide gap of the spectrum, the moments, and their projections."""
    C = {layer: tiny.with_gap(moment, THRESHOLD).double() for layer, moment in tiny.second_moments().items()}
    values = hyper(nullspace_threshold=THRESHOLD, **changes)
    return values, C, {layer: reference.null_projection(C[layer], THRESHOLD) for layer in values["layers"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_code", [True, False], ids=["the code", "the paper"])
def test_encore(tiny_model, kind, as_code):
    values = hyper(update_norm_lambda=0.7, prob_cutoff=-2, as_code=as_code)
    sequence(tiny_model, kind, kedit.ENCORE(**values), by("encore", values, tiny.second_moments(), {}))


def test_which_targets_lead_by_the_paper_and_by_the_code():
    """The code counts to five over five contexts: right for one token, and too early or never for more."""
    wrong = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    paper, code = (kedit.ENCORE(layers=[1], as_code=as_code) for as_code in (False, True))
    assert paper.leading(wrong, torch.tensor([1, 2, 2])).tolist() == [True, True, False]
    assert code.leading(wrong, torch.tensor([1, 2, 2])).tolist() == [True, False, True]


@pytest.mark.parametrize("name, layers", [("memit", [1, 2, 3]), ("pmet", [1, 2, 3]), ("rome", [2])])
@pytest.mark.parametrize("stop", [{"stop": "argmax"}, {"stop": None}], ids=["argmax", "loss"])
def test_most_probable_early_stopping(tiny_model, name, layers, stop):
    """An option of every method: a step more after the target first leads in every context but the clean one."""
    values = {**SOON, "layers": layers, "mom2_adjustment": True, **stop}
    both(tiny_model, "llama", name, values, [EDITS[4]])
    assert ("stop" in method(name, values).hyperparameters) == bool(stop["stop"])


def test_a_target_on_a_plateau_stops(tiny_model):
    """At the first step at which five have lowered the loss by less than a fifth, above a mean probability of 0.9."""
    crawls = {"v_lr": 0.2, "v_weight_decay": 0.3, "clamp_norm_factor": 8.0, "kl_factor": 1e-4}
    values, found = hyper(layers=[1, 2, 3], v_num_grad_steps=40, **crawls), {}
    for stop in (None, "plateau"):
        edit_by = kedit.MEMIT(**values, stop=stop)
        model, given = ready(tiny_model("llama"), edit_by)
        (found[stop],) = edit_by.apply(model, [EDITS[4]], **given).targets
    whole, short = found[None], found["plateau"]
    flat = [
        i for i in range(5, whole.steps) if whole.losses[i] > 0.8 * whole.losses[i - 5] and whole.probabilities[i] > 0.9
    ]
    assert short.steps == flat[0] + 1 < whole.steps
    assert short.losses == whole.losses[: short.steps]


@pytest.mark.parametrize("kind", KINDS)
def test_evoedit(tiny_model, kind):
    values, C, P = in_a_gap(L2=3.0)
    sequence(tiny_model, kind, method("evoedit", values), by("evoedit", values, P), C)


@pytest.mark.parametrize("as_code", [True, False], ids=["the code", "the paper"])
def test_evoedit_of_the_same_prompt_twice(tiny_model, as_code):
    """The authors' code writes nothing; here the second answer is written about as far as the first."""
    edit_by = method("evoedit", hyper(layers=[2], nullspace_rank=30, L2=0.01, as_code=as_code))
    model, given = ready(tiny_model("llama"), edit_by)
    given["contexts"] = ["{}"]
    edit_by.apply(model, EDITS[2:4], **given)
    norms = []
    for answer in ("organ", "violoncello"):
        edit = kedit.Edit("{} plays the", "Zoë", answer)
        (delta,) = edit_by.apply(model, [edit], **given).deltas.values()
        norms.append(float(delta.norm()))
    assert (norms[1] == 0) == as_code
    if not as_code:
        assert norms[1] > norms[0] / 10
    assert ("as_code" in edit_by.hyperparameters) == as_code


@pytest.mark.parametrize("kind, tau", [("llama-bos", 1), ("gpt2", 3), ("llama-bos", 3), ("llama-bos", 1000)])
def test_betaedit(tiny_model, kind, tau):
    values, C, P = in_a_gap(lambda1=2.0, lambda2=3.0, tau=tau)
    state = SimpleNamespace(done=0, renewed=0, M={}, P=P)
    made = sequence(tiny_model, kind, method("betaedit", values), by("betaedit", values, C, state), C)
    assert made.history.numbers.get("renewed", 0) == state.renewed == {1: 4, 3: 4, 1000: 0}[tau]


def test_betaedit_ends_when_an_update_is_broken(tiny_model, monkeypatch):
    monkeypatch.setattr("kedit_lib.editing.betaedit.BROKEN", 1e-6)
    edit_by = method("betaedit", hyper(nullspace_rank=30, v_num_grad_steps=3))
    model, given = ready(tiny_model("llama"), edit_by)
    for edit, times in zip(SEQUENCE[:2], (1, 0), strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = edit_by.apply(model, edit, **given)
        said = [str(warning.message) for warning in caught if "BetaEdit" in str(warning.message)]
        assert len(said) == times and all("nor a later edit is written; restore the model" in line for line in said)
        assert not any(delta.any() for delta in outcome.deltas.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.2, 60.0])
def test_lyaplock(tiny_model, kind, alpha):
    """A small alpha moves the queue."""
    values, state = hyper(alpha=alpha), {}
    W0 = unedited(tiny_model, kind, values["layers"])
    theirs = by("lyaplock", values, tiny.second_moments(), W0, state)
    history = sequence(tiny_model, kind, kedit.LyapLock(**values), theirs).history
    q = [history.numbers[f"q.{layer}"] for layer in values["layers"]]
    assert q == pytest.approx([state[layer][0] for layer in values["layers"]], rel=1e-8)
    assert (max(q) > 1.01) == (alpha < 1)


def test_lyaplocks_queue_waits_for_the_first_batch_that_writes(tiny_model):
    """Targets that the model has already: nothing is written, q stays 1, and D₁ is that of the next batch."""
    edit_by = kedit.LyapLock(**hyper(v_num_grad_steps=3))
    model, given = ready(tiny_model("llama"), edit_by)
    last, prompts = model.layers[edit_by.layers[-1]], prompts_of(model, BATCH)
    outcome = edit_by.apply(model, BATCH, **given, targets=[*outputs_at(model, prompts, last)])
    assert not any(delta.any() for delta in outcome.deltas.values()) and not given["history"].numbers
    assert any(delta.any() for delta in edit_by.apply(model, [EDITS[1]], **given).deltas.values())
    numbers = given["history"].numbers
    assert all(numbers[f"q.{layer}"] == 1 and numbers[f"first damage.{layer}"] > 0 for layer in edit_by.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_recursive_least_squares_are_memit_with_history(tiny_model, kind):
    """The recursion and the closed form over all earlier keys: the same numbers."""
    found = []
    for edit_by in (kedit.RLSEdit(**hyper()), kedit.MEMIT(**hyper(), use_history=True)):
        model, given = ready(tiny_model(kind), edit_by)
        found.append([edit_by.apply(model, batch, **given) for batch in SEQUENCE])
    for ours, theirs in zip(*found, strict=True):
        for name, delta in theirs.deltas.items():
            assert_same(ours.deltas[name], delta, name)


@pytest.mark.parametrize("kind", KINDS)
def test_rlsedit_as_its_authors_program_feeds_it(tiny_model, kind):
    theirs = by("rlsedit_as_code", hyper(), tiny.second_moments(), {})
    made = sequence(tiny_model, kind, kedit.RLSEdit(**hyper(), as_code=True), theirs)
    assert made.history.kind == "RLSEdit"


MEMIT_HERE = kedit.MEMIT(**hyper())
FILTERS = {
    "SPHERE": (
        kedit.SPHERE(MEMIT_HERE, beta_hse=0.4, alpha=0.8),
        lambda d, W, W0: reference.sphere_update(d, W, 0.4, 0.8),
    ),
    "REVIVE": (kedit.REVIVE(MEMIT_HERE, tau=0.3), lambda d, W, W0: reference.revive_update(d, W0, 0.3)),
    "REVIVE of the current weight": (
        kedit.REVIVE(MEMIT_HERE, tau=0.3, weight="current"),
        lambda d, W, W0: reference.revive_update(d, W, 0.3),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapped, change", FILTERS.values(), ids=FILTERS)
def test_filters(tiny_model, kind, wrapped, change):
    """After all layers have been solved."""
    values = hyper()
    W0, memit = unedited(tiny_model, kind, values["layers"]), by("memit", values, tiny.second_moments())

    def theirs(plain, batch):
        result = memit(plain, batch)
        return reference.filtered(plain.model, result, values["layers"], lambda i, d, W: change(d, W, W0[i]))

    assert sequence(tiny_model, kind, wrapped, theirs).history is None
    assert wrapped.name.endswith("-MEMIT")
    assert wrapped.hyperparameters["base"]["method"] == "MEMIT"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init_model", [False, True])
@pytest.mark.parametrize("base", ["MEMIT", "ROME"])
def test_simie(tiny_model, kind, init_model, base):
    """Each edit of a batch in turn."""
    values, P, C = hyper(layers=[2] if base == "ROME" else [1, 2, 3]), {}, tiny.second_moments()
    hp = SimpleNamespace(**values, mom2_adjustment=True, lamHyper=3.0, init_model=init_model, originals={})

    def theirs(plain, batch):
        model, result = plain.model, None
        for name in [reference.weight(model, layer)[0] for layer in hp.layers]:
            hp.originals.setdefault(name, model.get_parameter(name).detach().clone())

        def alone(edit):
            edits = edit if base == "ROME" else [edit]
            return getattr(reference, base.lower())(model, plain.tokenizer, edits, tiny.CONTEXTS, hp, C)

        for edit in batch:
            one = reference.simie(model, plain.tokenizer, edit, hp, alone, P)
            if result is not None:
                one.targets = result.targets + one.targets
                one.deltas = {n: d + result.deltas[n] for n, d in one.deltas.items()}
            result = one
        result.keys = {}
        return result

    wrapped = kedit.SimIE(method(base, values), lamHyper=3.0, init_model=init_model)
    sequence(tiny_model, kind, wrapped, theirs, batches=SEQUENCE[:2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["RECT", "PRUNE"])
def test_what_a_filter_takes_is_made_up_for(tiny_model, kind, name):
    values, E = hyper(mom2_update_weight=0.5), {}
    W0 = unedited(tiny_model, kind, values["layers"])

    def change(layer, update, W):
        if name == "RECT":
            return reference.rect_update(update, W)
        return reference.prune_update(W + update - W0[layer], W0[layer]) + W0[layer] - W

    edit_by = kedit.method_class(name)(**values, compensation=True)
    sequence(tiny_model, kind, edit_by, by("compensated", values, tiny.second_moments(), {}, E, change))
    assert all(float(E[layer].norm()) > 1e-3 for layer in E)
    assert edit_by.hyperparameters["compensation"]
    assert "compensation" not in kedit.method_class(name)(**values).hyperparameters


ULTRA = {
    "llama-bos": ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.3.mlp.down_proj"],
    "gpt2": ["transformer.h.1.mlp.c_fc", "transformer.h.2.mlp.c_proj", "transformer.h.3.mlp.c_proj"],
}


@pytest.mark.parametrize("kind", ULTRA)
def test_ultraedit(tiny_model, kind):
    """Single edits and batches; one normaliser for all weights of a shape."""
    plain, state = tiny_model(kind), {}
    hp = SimpleNamespace(modules=ULTRA[kind], lr=1e-2, batch_size=2)
    model, edit_by = kedit.load_model(plain.folder, dtype=torch.float64), kedit.UltraEdit(**vars(hp))
    history = edit_by.new_history(model)
    for batch in (*SEQUENCE, EDITS):
        expected = reference.ultraedit(plain.model, plain.tokenizer, batch, hp, state)
        outcome = edit_by.apply(model, batch, history=history)
        assert set(outcome.deltas) == set(expected)
        for name, delta in expected.items():
            assert float(delta.norm()) > 1e-6
            assert_same(outcome.deltas[name], delta, name)
        assert all(0 < target.probabilities[0] < 1 for target in outcome.targets)


KEEPING = {
    "MEMIT": {"use_history": True},
    "AlphaEdit": {"nullspace_rank": 30, "L2": 2.0},
    "ENCORE": {"update_norm_lambda": 0.7},
    "EvoEdit": {"nullspace_rank": 30},
    "BetaEdit": {"nullspace_rank": 30, "tau": 2},
    "LyapLock": {"alpha": 0.2},
    "RLSEdit": {},
    "PRUNE": {"compensation": True},
    "UltraEdit": {"modules": ULTRA["llama-bos"]},
    "SimIE": {"base": MEMIT_HERE},
}
OWN_LAYERS = ("UltraEdit", "SimIE")


@pytest.mark.parametrize("name", KEEPING)
def test_a_history_goes_on_from_a_file(tiny_model, tmp_path, name):
    """Saved after two batches and read again, or copied: the third batch is the same to the bit, and so is the
    identity."""
    values = hyper(v_num_grad_steps=3, **KEEPING[name])
    edit_by = method(name, {f: v for f, v in values.items() if f != "layers" or name not in OWN_LAYERS})
    model, given = ready(tiny_model("llama"), edit_by)
    history, last = given.pop("history"), [EDITS[2]]
    for batch in SEQUENCE[:2]:
        edit_by.apply(model, batch, **given, history=history)
    before, kept, identity = model.snapshot(), history.copy(), history.identity
    path = tmp_path / "a" / "history.safetensors"
    history.save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    first = edit_by.apply(model, last, **given, history=history)
    assert kept.identity == identity != history.identity
    again = kedit.EditHistory.load(path)
    assert (again.identity, again.kind, again.edits) == (identity, edit_by.history_kind, 4)
    for other in (again, kept):
        model.load_snapshot(before)
        assert_same_weights(edit_by.apply(model, last, **given, history=other).deltas, first.deltas)
        assert other.edits == history.edits == 5
