"""Bad input: one line that says what is wrong and where, and nothing changed, on a model that already holds an edit."""

import dataclasses
import warnings

import pytest
import tiny
import torch
from library import holds, moments, parameters, refused, snapshot
from safetensors.torch import load_file, save_file
from transformers import PhiConfig

import kedit_lib as kedit
from kedit_lib.models import architectures as layout

EDIT = kedit.Edit("{} plays the", "Zoë", "violin")
FAST = {"layers": [1, 2], "v_num_grad_steps": 2, "mom2_update_weight": 5.0}
MEMIT = kedit.MEMIT(**FAST)


@pytest.fixture(scope="module")
def model(tiny_folder):
    """With an edit in it, so that "nothing changed" is not the same as "restored"."""
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    MEMIT.apply(model, [kedit.Edit("The birthplace of {} is", "Ana Brown", "Graz")], moments(), ["{}"])
    return model


def refused_unchanged(model, call, *says):
    before = snapshot(model)
    refused(call, *says)
    assert holds(model, before)
    with model.temporarily():  # the originals are still known, and not what `before` held
        assert not any(torch.equal(before[model.weight_name(i)], model.weight(i)) for i in (1, 2))


BAD_EDITS = [
    (("{} and {} play the", "Zoë", "violin"), ["'{} and {} play the'", "2 places marked {}"]),
    (("{} plays the", " ", "violin"), ["subject is empty"]),
    (("{} plays the", "Zoë", " \n"), ["'Zoë'", "target_new is empty"]),
    (("{} plays the", "Zoë", ["violin"]), ["'Zoë'", "target_new", "['violin']"]),
    (("{} plays the", "Zoë", "violin", None, "Zoë"), ["'Zoë'", "paraphrases", "list"]),
    (("{} plays the", "Zoë", "violin", None, [1]), ["'Zoë'", "paraphrases must be a list of prompts", "[1]"]),
    (("plays the", "Zoë\nMüller", "violin"), ["'Zoë\\nMüller'", "0 places"]),
]


@pytest.mark.parametrize("values, says", BAD_EDITS)
def test_edits(values, says):
    refused(lambda: kedit.Edit(*values), *says)


def test_an_edit_to_what_the_model_says_already_warns(tiny_folder):
    """And only such an edit; and it is made all the same."""
    model, known = kedit.load_model(tiny_folder("llama"), torch.float32), kedit.Edit("You read of {}", "Zoë", "English")
    kedit.FT(layers=[1], lr=0.1, num_steps=2, objective_optimization="target_new").apply(model, [known])
    with pytest.warns(UserWarning, match="'Zoë'.*already answers 'English'"):
        outcome = MEMIT.apply(model, [EDIT, known], moments(), ["{}"])
    assert outcome.deltas
    assert [target.already for target in outcome.targets] == [False, True]
    model.restore()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MEMIT.apply(model, [EDIT], moments(), ["{}"])


@pytest.mark.parametrize("wrong", ["text", None, 5, [EDIT], {"prompt": "{} is"}], ids=repr)
def test_ask_takes_one_edit(model, wrong):
    says = f"ask: edit is of type {type(wrong).__name__}", "one edit"
    refused_unchanged(model, lambda: kedit.ask(model, wrong), *says)


@pytest.mark.parametrize("wrong", [5, "deltas.safetensors", None], ids=repr)
def test_deltas_are_given_loaded(model, wrong):
    says = f"of type {type(wrong).__name__}", "load_deltas(folder)"
    refused_unchanged(model, lambda: model.apply_deltas(wrong), *says)
    refused_unchanged(model, lambda: model.take_back(wrong), *says)


def singular():
    C = tiny.second_moments()[2]
    C[:, 5] = C[5, :] = 0
    return C


def indefinite():
    """Symmetric and invertible, with one negative eigenvalue."""
    values, directions = torch.linalg.eigh(tiny.second_moments()[2])
    values[0] = -values[-1]
    C = (directions * values) @ directions.T
    return (C + C.T) / 2


def asymmetric():
    """Positive definite all the same."""
    C = tiny.second_moments()[2]
    C[0, 1] += 0.25
    return C


NO_MOMENTS = {
    "singular": (singular, ["layer 2", "not positive definite", f"more text, at least ten times d_ff = {tiny.D_FF}"]),
    "indefinite": (indefinite, ["layer 2", "not positive definite", f"at least ten times d_ff = {tiny.D_FF}"]),
    "asymmetric": (asymmetric, ["layer 2", "not symmetric", "differ by 0.25", "estimate them again"]),
}


@pytest.mark.parametrize("method", [kedit.ROME(layers=[2], v_num_grad_steps=2), MEMIT, kedit.EMMET(**FAST)])
@pytest.mark.parametrize("made, says", NO_MOMENTS.values(), ids=NO_MOMENTS)
def test_what_is_no_second_moment_is_refused_from_memory_and_from_a_file(model, tmp_path, method, made, says):
    def apply(given):
        method.apply(model, [EDIT], given(), ["{}"])

    refused_unchanged(model, lambda: apply(lambda: moments(tensors={2: made()})), *says)
    path = tmp_path / "C.safetensors"
    save_file({f"layer{i}": c for i, c in {**tiny.second_moments(), 2: made()}.items()}, path)
    where = [str(path)] if made is asymmetric else []  # seen as it is read; the others only when they are inverted
    refused_unchanged(model, lambda: apply(lambda: kedit.SecondMoments.load(path)), *where, *says)


def test_asymmetry_that_rounding_leaves_is_none():
    """A ten-thousandth of the largest entry, and not twice that."""
    largest = float((C := tiny.second_moments()[2]).abs().max())
    for share, fits in ((0.5e-4, True), (2e-4, False)):
        tilted = C.clone()
        tilted[0, 1] = tilted[1, 0] + share * largest
        if fits:
            assert kedit.SecondMoments.from_tensors({2: tilted}).factor(2).isfinite().all()
        else:
            refused(lambda c=tilted: kedit.SecondMoments.from_tensors({2: c}), "layer 2", "not symmetric")


def test_moments_of_nothing_or_of_no_shape(model):
    C, estimate = torch.eye(4), kedit.SecondMoments.estimate
    refused(lambda: kedit.SecondMoments.from_tensors({3: C[:2]}), "layer 3", "(2, 4)", "square")
    refused(lambda: kedit.SecondMoments.from_tensors({3: C / 0}), "layer 3", "NaN or inf")
    refused_unchanged(model, lambda: estimate(model, [""], layers=[1]), "moments", "no texts")
    refused_unchanged(model, lambda: estimate(model, ["I read."], layers=[]), "layers", "none", "0 to 4")
    refused_unchanged(model, lambda: estimate(model, ["I read."], layers=[1, 5]), "layer 5", "0 to 4")


ALPHAEDIT, CUT = kedit.AlphaEdit(layers=[1, 2], v_num_grad_steps=2), kedit.NullSpace.from_moments
NEEDED, OTHERS = ["MEMIT", "needs second moments", ".estimate"], moments(model_checksum="0" * 64)
LAYER_1 = kedit.SecondMoments.from_tensors({1: tiny.second_moments()[1]})
APPLIED = {
    "no edits": (MEMIT, {"edits": []}, ["MEMIT", "no edits"]),
    "text for an edit": (MEMIT, {"edits": [EDIT, "Zoë"]}, ["MEMIT", "edit 1", "str"]),
    "a layer too many": (kedit.MEMIT(**{**FAST, "layers": [4, 5]}), {}, ["layer 5", "layers 0 to 4"]),
    "a loss layer too many": (kedit.MEMIT(**FAST, v_loss_layer=5), {}, ["v_loss_layer = 5", "layers 0 to 4"]),
    "targets for other edits": (MEMIT, {"targets": [torch.zeros(32)] * 2}, ["MEMIT", "2 targets for 1 edits"]),
    "a target of another width": (MEMIT, {"targets": [torch.zeros(48)]}, ["target 0", "(32,)"]),
    "a target that is no number": (kedit.ROME(layers=[1]), {"targets": [torch.ones(32) / 0]}, ["target 0", "finite"]),
    "targets for fine-tuning": (kedit.FT(layers=[1]), {"targets": [torch.zeros(32)]}, ["FT", "targets=None"]),
    "a rate beyond all bounds": (
        kedit.MEMIT(**{**FAST, "v_num_grad_steps": 3}, v_lr=1e30, clamp_norm_factor=1e38),
        {"edits": [kedit.Edit("{} plays the", "Ana", "organ")]},
        ["'Ana'", "NaN or inf", "v_lr"],
    ),
    "no module": (kedit.UltraEdit(modules=["model.layers.1.mlp.middle"]), {}, ["no module"]),
    "a module without": (kedit.UltraEdit(modules=["model.layers.1.input_layernorm"]), {}, ["no weight"]),
    "a line search": (kedit.RECT(**FAST, line_search=1.1), {}, ["RECT: line_search = 1.1: goes with MEMIT"]),
    "no contexts": (MEMIT, {"contexts": []}, ["contexts"]),
    "text for contexts": (MEMIT, {"contexts": "{}"}, ["contexts", "one string"]),
    "no clean context": (MEMIT, {"contexts": ["I read. {}"]}, ["contexts", "'{}' is missing"]),
    "two places": (MEMIT, {"contexts": ["{}", "{} I read. {}"]}, ["'{} I read. {}'", "exactly one {}"]),
    "a named place": (MEMIT, {"contexts": ["{}", "I read. {prompt}"]}, ["'I read. {prompt}'", "exactly one {}"]),
    "no moments": (MEMIT, {"moments": None}, NEEDED),
    "text for moments": (MEMIT, {"moments": "wiki.txt"}, NEEDED),
    "tensors for moments": (MEMIT, {"moments": {2: torch.eye(48)}}, NEEDED),
    "another model's C": (MEMIT, {"moments": OTHERS}, ["moments", "another model", "000000000000"]),
    "C of another width": (MEMIT, {"moments": moments({2: torch.eye(49)})}, ["layer 2", "width 49", "d_ff 48"]),
    "C of one layer": (MEMIT, {"moments": LAYER_1}, ["none for layer 2", "[1]"]),
    "C of zeros": (MEMIT, {"moments": moments({1: torch.zeros(48, 48)})}, ["layer 1", "not positive definite"]),
    "a threshold below all of C": (
        kedit.AlphaEdit(layers=[1, 2], nullspace_threshold=1e-9),
        {},
        ["layer 1", "1e-09", "raise the threshold"],
    ),
    "a rank above d_ff": (kedit.AlphaEdit(layers=[1], nullspace_rank=49), {}, ["layer 1", "rank = 49", "48"]),
    "another model's P": (ALPHAEDIT, {"projection": CUT(OTHERS, rank=5)}, ["another model", "000000000000"]),
    "P of one layer": (ALPHAEDIT, {"projection": CUT(LAYER_1, rank=5)}, ["none for layer 2"]),
    "a tensor for P": (ALPHAEDIT, {"projection": torch.eye(48)}, ["AlphaEdit", "Tensor", "from_moments"]),
    "P for MEMIT": (MEMIT, {"projection": CUT(moments(), rank=5)}, ["MEMIT", "projection=None"]),
}


@pytest.mark.parametrize("method, options, says", APPLIED.values(), ids=APPLIED)
def test_apply(model, method, options, says):
    given = {"edits": [EDIT], "moments": moments(), "contexts": ["{}"], **options}
    refused_unchanged(model, lambda: method.apply(model, **given), *says)


def test_a_target_that_the_tokenizer_cannot_write(tiny_folder):
    model = kedit.load_model(tiny_folder("llama-metaspace"), dtype=torch.float32)
    edits = [EDIT, kedit.Edit("{} plays the", "Ana", "№ 1")]
    before = snapshot(model)
    refused(lambda: MEMIT.apply(model, edits, moments(), ["{}"]), "'№ 1'", "<unk>", "this tokenizer can write")
    assert holds(model, before)


HYPER = {
    "unknown": (kedit.MEMIT, {"v_learning_rate": 0.5}, ["MEMIT", "v_learning_rate = 0.5", "there are layers, v_num"]),
    "nearly its name": (kedit.MEMIT, {"layers": ..., "layer": [1]}, ["MEMIT", "layer = [1]", "did you mean layers"]),
    "another method's": (kedit.ROME, {"layers": [1], "mom2_update_weight": 5.0}, ["ROME", "mom2_update_weight"]),
    "text for a number": (kedit.MEMIT, {"v_lr": "5e-1"}, ["MEMIT", "v_lr = '5e-1'", "number", "without quotes"]),
    "a fraction for a count": (kedit.MEMIT, {"v_num_grad_steps": 2.5}, ["MEMIT", "v_num_grad_steps = 2.5", "integer"]),
    "a rate of zero": (kedit.PMET, {"v_lr": 0.0}, ["PMET", "v_lr = 0.0"]),
    "an infinite weight": (kedit.MEMIT, {"mom2_update_weight": float("inf")}, ["mom2_update_weight = inf", "finite"]),
    "no layers": (kedit.MEMIT, {"layers": []}, ["MEMIT", "layers = []"]),
    "layers left out": (kedit.MEMIT, {"layers": ...}, ["MEMIT", "layers is missing"]),
    "layers out of order": (kedit.MEMIT, {"layers": [2, 1]}, ["MEMIT", "layers = [2, 1]", "ascend"]),
    "one number for layers": (kedit.MEMIT, {"layers": 1}, ["MEMIT", "layers = 1", "list"]),
    "two layers for ROME": (kedit.ROME, {"layers": [1, 2]}, ["ROME", "layers = [1, 2]", "exactly one"]),
    "two layers for GRACE": (kedit.GRACE, {}, ["GRACE", "layers"]),
    "two layers for Gate": (kedit.Gate, {}, ["Gate", "layers"]),
    "a radius of zero": (kedit.GRACE, {"layers": [1], "eps": 0.0}, ["eps"]),
    "a cosine above one": (kedit.Gate, {"layers": [1], "threshold": 1.5}, ["threshold"]),
    "a share above one": (kedit.Retrieval, {"overlap": 2.0}, ["overlap"]),
    "a line search below 1": (kedit.MEMIT, {"line_search": 0.5}, ["line_search"]),
    "no ridge": (kedit.AlphaEdit, {"L2": 0.0}, ["AlphaEdit", "L2 = 0.0"]),
    "an anchor of zero": (kedit.RECT, {"norm_anchor": 0.0}, ["RECT", "norm_anchor = 0.0"]),
    "an objective nobody has": (kedit.FT, {"objective_optimization": "all"}, ["FT", "'all'", "prompt_last"]),
    "a word for a switch": (kedit.ROME, {"layers": [1], "mom2_adjustment": "no"}, ["ROME", "mom2_adjustment = 'no'"]),
}


@pytest.mark.parametrize("method, values, says", HYPER.values(), ids=HYPER)
def test_hyperparameters(method, values, says):
    values = {name: value for name, value in {"layers": [1, 2], **values}.items() if value is not ...}
    refused(lambda: method(**values), *says)


def test_pruning_or_anchoring_nothing(tiny_folder, model):
    """What is small is not pruned, nor a matrix that no edit touched."""
    fresh = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    refused(lambda: kedit.prune(fresh), "prune", "no edits", "apply a method first")
    before = snapshot(model)
    report = kedit.prune(model)
    assert report.parameter.tolist() == [NAME, OTHER]
    assert report.reduced.tolist() == [0, 0]
    assert holds(model, before)
    refused_unchanged(model, lambda: kedit.anchor_norm(model, kedit.FT(layers=[1]), [EDIT]), "FT", "no targets")
    refused_unchanged(model, lambda: kedit.anchor_norm(model, MEMIT, []), "no edits")
    refused_unchanged(model, lambda: kedit.anchor_norm(model, kedit.ROME(layers=[7]), [EDIT]), "layer 7")


def test_methods_by_name(model):
    names = ("r-rome", "P_ROME", "memit-mass", "alphaedit", "AlphaEdit", "ft-l", "FT-M", "rect")
    expected = ["RROME", "PROME", "MEMIT", "AlphaEdit", "AlphaEdit", "FT", "FT", "RECT"]
    assert [kedit.method_class(name).__name__ for name in names] == expected
    refused(lambda: kedit.method_class("MEMET"), "'MEMET'", "unknown, did you mean MEMIT; use one of ROME")
    for name, base in (("memit-nas", "memit"), ("R-ROME-NAS", "R-ROME"), ("nas", "alphaedit")):
        how = f"r = kedit.anchor_norm(model, method, edits), then method_for(model, {base!r}, norm_anchor=r)"
        refused(lambda name=name: kedit.method_for("lab", name), f"{name!r}: its anchor is measured first", how)
    refused(lambda: kedit.method_for("lab", "memit", v_lrate=1.0), "MEMIT", "v_lrate")
    refused(lambda: kedit.method_for("no-such-model", "memit"), "'no-such-model'", "lab")


NAME = "model.layers.1.mlp.down_proj.weight"
OTHER = "model.layers.2.mlp.down_proj.weight"
DELTAS = {
    "NaN": ({NAME: torch.full((32, 48), float("nan"))}, [NAME, "NaN or inf", "nothing was written"]),
    "inf": ({NAME: torch.full((32, 48), float("inf"))}, [NAME, "NaN or inf"]),
    "more than the type holds": ({NAME: torch.full((32, 48), 1e300, dtype=torch.float64)}, [NAME, "inf", "float32"]),
    "unknown": ({"model.layers.9.mlp.down_proj.weight": torch.zeros(32, 48)}, ["layers.9", "no such parameter"]),
    "shape": ({NAME: torch.zeros(48, 32)}, [NAME, "(48, 32)", "(32, 48)"]),
}


@pytest.mark.parametrize("deltas, says", DELTAS.values(), ids=DELTAS)
@pytest.mark.parametrize("place", ["alone", "behind a good one"])
def test_deltas(model, deltas, says, place):
    """All or nothing: a good delta in front of the bad one is not written either."""
    given = deltas if place == "alone" else {OTHER: torch.ones(32, 48), **deltas}
    refused_unchanged(model, lambda: model.add(given), *says)
    outcome = kedit.Outcome("MEMIT", [], given, [])
    refused_unchanged(model, lambda: model.apply_deltas(outcome), *says)


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(lambda: kedit.load_model("no-such/model"), "'no-such/model'", "cannot be loaded", "lab-small")
    refused(lambda: kedit.load_model(tmp_path), repr(str(tmp_path)), "cannot be loaded")


@pytest.mark.parametrize("dtype", ["float33", "int8", "", "double precision", torch.int8, torch.bool, 32])
def test_types_of_weights(tiny_folder, dtype):
    refused(lambda: kedit.load_model(tiny_folder("llama"), dtype=dtype), "dtype", "float32", "bfloat16")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "damaged"])
def test_weights_that_are_no_numbers(copied, bad):
    path = copied / "model.safetensors"
    if bad == "damaged":
        path.write_bytes(path.read_bytes()[:-1000])
        return refused(lambda: kedit.load_model(copied), str(copied), "cannot be loaded")
    weights = load_file(path)
    weights["model.layers.3.self_attn.o_proj.weight"][2, 5] = bad
    save_file(weights, path, metadata={"format": "pt"})
    refused(lambda: kedit.load_model(copied), str(copied), "'model.layers.3.self_attn.o_proj.weight'", "NaN or inf")


@pytest.mark.parametrize(
    "method",
    [MEMIT, kedit.PMET(**FAST), kedit.ROME(layers=[1]), kedit.MEMIT(**{**FAST, "v_num_grad_steps": 1})]
    + [kedit.AlphaEdit(layers=[1, 2], v_num_grad_steps=2, nullspace_rank=9), kedit.FT(layers=[1])],
    ids=["MEMIT", "PMET", "ROME", "one step", "AlphaEdit", "FT"],
)
def test_weights_that_break_after_loading(tiny_folder, method):
    """Nothing is written on top of them."""
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    with torch.no_grad():
        model.hf.get_parameter("model.norm.weight")[3] = float("nan")
    original = {name: value.nan_to_num(7.0) for name, value in snapshot(model).items()}
    refused(lambda: method.apply(model, [EDIT], moments(), ["{}"]), "'Zoë'", "NaN or inf")
    assert all(torch.equal(value.nan_to_num(7.0), original[name]) for name, value in parameters(model).items())


LAYOUT = ["layers", "mlp_out", "mlp", "attn_out", "norm", "head"]


def test_a_layout_nobody_described(tmp_path):
    PhiConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    refused(lambda: kedit.load_model(tmp_path), "'phi'", "unknown", "LAYOUTS", *LAYOUT)


@pytest.mark.parametrize("part", LAYOUT)
def test_a_layout_that_does_not_fit(tiny_folder, monkeypatch, part):
    wrong = dataclasses.replace(layout.LAYOUTS["llama"], **{part: "not.there"})
    monkeypatch.setitem(layout.LAYOUTS, "llama", wrong)
    refused(lambda: kedit.load_model(tiny_folder("llama")), "'llama'", "not.there", "does not fit")


def test_edits_of_the_lab_need_the_lab(model):
    refused(lambda: kedit.load_edits("lab"), "model=")
    refused(lambda: kedit.load_edits("lab", model=model), "not a lab model")
    refused(lambda: kedit.lab_probes(model, [EDIT]), "not a lab model")
