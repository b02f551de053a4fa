"""Profiles and hyperparameter files: the shipped ones load, and a mistake is one line that says all."""

import os
from pathlib import Path

import pytest
from library import refused

import kedit_lib as kedit
from kedit_lib.data.config import load_model_params, load_profile, params_folder, parse, streams_of

SHIPPED = Path(__file__).resolve().parents[2] / "params"
GOOD = "name: tiny|model: lab-small|edits: lab|texts: lab|dtype: float32|device: cpu|originals: host|seed: 0|n_edits: 4"
GOOD += "|orders: [0, 1]|live_orders: [0]|batch_sizes: [1, 4]|mass_sizes: [1, 8]|checkpoint_every: 2|dense_every: 1"
GOOD = f"{GOOD}|untouched: 5|n_single: 2|workers: 1|threads: 1|lambda_scales: [0.1, 1]|".replace("|", "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A params folder of the test's own, with one good profile."""
    for name in ("profiles", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "profiles" / "tiny.yaml").write_text(GOOD)
    monkeypatch.setenv("KEDIT_PARAMS", str(tmp_path))
    return tmp_path


def rewrite(folder: Path, old: str, new: str) -> None:
    assert old in GOOD
    (folder / "profiles" / "tiny.yaml").write_text(GOOD.replace(old, new))


@pytest.mark.parametrize("path", sorted((SHIPPED / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_profiles_load_by_name(path, monkeypatch):
    monkeypatch.delenv("KEDIT_PARAMS", raising=False)
    assert params_folder() == SHIPPED
    assert load_profile(path.stem) == load_profile(path)


def test_a_profile_that_names_no_workers_has_at_most_one_a_core(folder):
    rewrite(folder, "workers: 1\n", "")
    assert 1 <= load_profile("tiny").workers <= os.cpu_count()
    assert load_profile("tiny", workers=64).workers == 64


def test_a_profile_keeps_its_values_and_overrides_are_checked_alike(folder):
    assert params_folder() == folder
    profile = load_profile("tiny")
    assert parse(GOOD, "tiny").items() <= profile.model_dump().items()
    assert load_profile("tiny", n_edits=9, model="lab").n_edits == 9
    refused(lambda: load_profile("tiny", n_edits="9"), "tiny.yaml", "n_edits", "'9'", "without quotes")
    with pytest.raises(ValueError, match="frozen"):
        profile.n_edits = 0
    assert {"memit-rho2"} == streams_of(load_profile("tiny", also=["memit-rho2"])).keys() - streams_of(profile).keys()
    refused(lambda: streams_of(load_profile("tiny", also=["memit-rho3"])), "profile tiny: also", "did you mean")
    for text in ("5e-1", "5E-1", ".5", "+5.0e-01"):  # a number is read in every notation
        rewrite(folder, "lambda_scales: [0.1, 1]", f"lambda_scales: [{text}]")
        assert load_profile("tiny").lambda_scales == [0.5]
    for name in ("nope", "", "../profiles/tiny"):
        refused(lambda name=name: load_profile(name), "tiny")
    refused(lambda: load_profile(folder / "nope.yaml"), "no such file")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("lambda_scales: [0.1, 1]", "lambda_scales: ['5e-1']", ["lambda_scales.0", "'5e-1'", "without quotes"]),
        ("n_edits: 4", "n_edits: 1e2", ["n_edits", "100.0", "integer"]),
        ("n_edits: 4", "n_edits: true", ["n_edits", "True", "integer"]),
        ("n_edits: 4", "n_edits: 0", ["n_edits", "0", "greater than or equal to 1"]),
        ("n_edits: 4", "n_edit: 4", ["n_edit", "no such field, did you mean n_edits"]),
        ("seed: 0", "seed: 0\nseed: 1", ["line 9", "duplicate key", "seed", "keep one"]),
        ("dtype: float32", "dtype: fp32", ["dtype", "'fp32'", "float32"]),
        ("lambda_scales: [0.1, 1]", "lambda_scales: [-1.0]", ["lambda_scales.0", "-1.0"]),
        ("live_orders: [0]", "live_orders: [2]", ["live_orders", "[2]", "orders [0, 1]"]),
        ("orders: [0, 1]", "orders: [0, 0]", ["orders", "twice"]),
        ("batch_sizes: [1, 4]", "batch_sizes: [1, 5]", ["batch_sizes", "5", "n_edits 4"]),
        ("dense_every: 1", "dense_every: 3", ["dense_every", "3", "checkpoint_every 2"]),
        ("name: tiny", "name: other", ["name", "'other'", "'tiny'"]),
        (GOOD, "just text", ["tiny.yaml", "name: value"]),
    ],
)
def test_a_mistake_is_one_line_with_file_field_value_and_remedy(folder, old, new, parts):
    rewrite(folder, old, new)
    refused(lambda: load_profile("tiny"), "tiny.yaml", *parts)


MODEL = """\
model: {layers: 6}
memit:
  layers: [0, 1, 2]
  v_lr: 0.5
rome: {layers: [2], mom2_adjustment: false}
"""


def write_model(folder: Path, text: str, name: str = "toy") -> None:
    (folder / "models" / f"{name}.yaml").write_text(text)


def test_model_params_are_sections_of_values(folder):
    write_model(folder, MODEL)
    params = load_model_params("toy")
    assert params["memit"] == {"layers": [0, 1, 2], "v_lr": 0.5}
    assert set(params) == {"model", "memit", "rome"}
    refused(lambda: load_model_params("some/other"), "toy")  # names the known ones
    write_model(folder, MODEL, "Llama-2-7b-hf")
    assert load_model_params("meta-llama/Llama-2-7b-hf") == load_model_params("/models/Llama-2-7b-hf/")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("rome: {layers: [2], mom2_adjustment: false}", "rome:", ["rome = None", "valid dictionary"]),
        ("model: {layers: 6}\n", "", ["no section 'model'"]),
    ],
)
def test_mistakes_in_model_params(folder, old, new, parts):
    assert old in MODEL
    write_model(folder, MODEL.replace(old, new))
    refused(lambda: load_model_params("toy"), "toy.yaml", *parts)


ALL = [p.stem for p in sorted((SHIPPED / "models").glob("*.yaml"))]
MANY = [pytest.param(n, marks=() if n in ("lab", "Llama-2-7b-hf") else pytest.mark.slow) for n in ALL]


@pytest.mark.parametrize("name", MANY)
def test_shipped_hyperparameters_make_every_method(name):
    """A section for each method, none for what is no method."""
    sections = load_model_params(name)
    made = {section: kedit.method_for(name, section) for section in sections if section != "model"}
    assert {type(method).__name__ for method in made.values()} == {*kedit.METHODS, "GRACE", "Gate"}
    for section, method in made.items():
        own = {field: value for field, value in sections[section].items() if field != "base"}
        assert own.items() <= method.model_dump().items()
    assert made["rect"].layers == made["memit"].layers == made["alphaedit"].layers
    assert made["rome"].layers == made["rrome"].layers == made["prome"].layers == made["emmet"].layers
    assert kedit.method_for(name, "ft-l") == kedit.method_for(name, "FT") == made["ft"]
    assert made["ft-m"].objective_optimization == "target_new" and made["ft-m"].norm_constraint is None
    assert kedit.method_for(name, "memit-mass", use_history=True).use_history
    assert made["sphere"].base == made["alphaedit"] and made["sphere-memit"].base == made["memit"]
    assert kedit.method_for(name, "simie-rome").base == made["rome"]


@pytest.mark.parametrize("name", ["lab", "lab-small", "smollm2", "Llama-2-7b-hf"])
def test_the_labs_weights_of_C_are_llama2s_by_width(name):
    """λ, L2 and the like scaled with d_ff."""
    d_ff = load_model_params(name)["model"]["d_ff"]
    for section, field, value, of in (
        *((section, "mom2_update_weight", 15000, 11008) for section in ("memit", "pmet", "rect")),
        ("emmet", "mom2_update_weight", 1, 11008),
        ("alphaedit", "L2", 10, 14336),
        ("encore", "update_norm_lambda", 10, 11008),
        ("evoedit", "L2", 4, 11008),
        ("betaedit", "lambda1", 3000, 14336),
        ("lyaplock", "mom2_update_weight", 1000, 14336),
        ("simie", "lamHyper", 10, 11008),
    ):
        assert getattr(kedit.method_for(name, section), field) / d_ff == pytest.approx(value / of, rel=1e-3), section


# (layers, steps, lr, weight decay, clamp, what else), as published
PUBLISHED = {
    ("gpt2-xl", "rome"): ([17], 20, 0.5, 0.5, 4, {"mom2_adjustment": True}),
    ("gpt2-xl", "memit"): ([13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, {"mom2_update_weight": 20000}),
    ("gpt2-xl", "emmet"): ([17], 20, 0.5, 0.5, 0.75, {"mom2_update_weight": 1000}),
    ("gpt2-xl", "alphaedit"): ([13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, {"L2": 10}),
    ("gpt-j-6b", "rome"): ([5], 20, 0.5, 0.5, 4, {"mom2_adjustment": True}),
    ("gpt-j-6b", "memit"): ([3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, {"mom2_update_weight": 15000}),
    ("gpt-j-6b", "pmet"): ([3, 4, 5, 6, 7, 8], 30, 0.2, 0.5, 0.75, {"mom2_update_weight": 6000, "kl_factor": 1}),
    ("gpt-j-6b", "emmet"): ([5], 25, 0.5, 0.5, 0.75, {"mom2_update_weight": 1}),
    ("gpt-j-6b", "alphaedit"): ([3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, {"L2": 10}),
    ("Llama-2-7b-hf", "rome"): ([5], 25, 0.5, 1e-3, 4, {}),
    ("Llama-2-7b-hf", "memit"): ([4, 5, 6, 7, 8], 25, 0.5, 1e-3, 4, {"mom2_update_weight": 15000}),
    ("Llama-2-7b-hf", "pmet"): ([4, 5, 6, 7, 8], 20, 0.5, 0.5, 1, {"mom2_update_weight": 15000}),
    ("Llama-2-7b-hf", "emmet"): ([5], 25, 0.5, 1e-3, 4, {"mom2_update_weight": 1}),
    ("Meta-Llama-3-8B", "memit"): ([4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, {"mom2_update_weight": 15000}),
    ("Meta-Llama-3-8B", "alphaedit"): ([4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, {"L2": 10}),
}
PUBLISHED |= {(name, "memit"): PUBLISHED["Llama-2-7b-hf", "memit"] for name in ("Mistral-7B-v0.1", "Qwen2.5-7B")}


TARGET = ("layers", "v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor")
PUBLISHED = {
    key: {"v_loss_layer": None, "kl_factor": 0.0625, **dict(zip(TARGET, values, strict=True)), **others}
    for key, (*values, others) in PUBLISHED.items()
}
PUBLISHED |= {  # what the authors of the newer editors give for a model, beside the target's hyperparameters
    ("gpt2-xl", "encore"): {"mom2_update_weight": 20000, "update_norm_lambda": 10, "prob_cutoff": -4},
    ("Llama-2-7b-hf", "encore"): {"mom2_update_weight": 15000, "update_norm_lambda": 10, "prob_cutoff": -3},
    ("Meta-Llama-3-8B", "encore"): {"mom2_update_weight": 15000, "update_norm_lambda": 20, "prob_cutoff": -2},
    ("Llama-2-7b-hf", "evoedit"): {"L2": 4, "nullspace_threshold": 0.02, "v_lr": 0.1},
    ("Meta-Llama-3-8B", "evoedit"): {"L2": 4, "nullspace_threshold": 0.02, "v_lr": 0.1},
    ("Meta-Llama-3-8B", "betaedit"): {"lambda1": 3000, "lambda2": 10, "tau": 1000, "nullspace_threshold": 0.02},
    ("Meta-Llama-3-8B", "lyaplock"): {"mom2_update_weight": 1000, "alpha": 60},
    ("Llama-2-7b-hf", "rlsedit"): {"mom2_update_weight": 15000},
    ("Llama-2-7b-hf", "simie"): {"lamHyper": 10, "init_model": False},
    ("Meta-Llama-3-8B", "sphere"): {"beta_hse": 0.5, "alpha": 0.5},
    ("Meta-Llama-3-8B", "sphere-memit"): {"beta_hse": 0.5, "alpha": 0.8},
    ("Meta-Llama-3-8B", "ultraedit"): {"lr": 1e-6, "batch_size": 10, "layers": [*range(11, 16), *range(18, 25)]},
    ("Mistral-7B-v0.1", "ultraedit"): {"lr": 1e-6, "batch_size": 10, "layers": [29, 30]},
    ("Llama-2-7b-hf", "grace"): {"layers": [27], "edit_lr": 1, "n_iter": 50, "eps": 1},
}


@pytest.mark.parametrize("name, section", PUBLISHED)
def test_shipped_hyperparameters_are_the_published_ones(name, section):
    assert PUBLISHED[name, section].items() <= dict(kedit.method_for(name, section)).items()


def test_the_original_reports_experiment():
    """1,000 edits one at a time by MEMIT, PMET and ROME, and in one batch, with Llama-2-7B's own parameters."""
    profile = load_profile("llama2-7b-1000")
    assert (profile.n_edits, profile.orders, profile.dtype, profile.device) == (1000, [0], "bfloat16", "cuda")
    streams = streams_of(profile)
    assert {s.batch_size for s in streams.values() if s.name in ("memit", "pmet", "rome")} == {1}
    assert streams["memit-mass"].batch_size is None and streams["memit-mass"].method == "memit"
    assert profile.mass_sizes == [1000] == [size for size in profile.batch_sizes if size > 1]
    for stream in streams.values():
        assert kedit.method_for(profile.model, stream.method, **stream.overrides).layers
