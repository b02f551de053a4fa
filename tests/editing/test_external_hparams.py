"""Files of EasyEdit and of the methods' authors: read as they are, and anything doubtful said in one line."""

import json
import warnings

import pytest
from library import refused

import kedit_lib as kedit

LLAMA = 'rewrite_module_tmp: "model.layers.{}.mlp.down_proj"\nlayer_module_tmp: "model.layers.{}"\n'
LLAMA += 'mlp_module_tmp: "model.layers.{}.mlp"\nattn_module_tmp: "model.layers.{}.self_attn"\n'
LLAMA += 'ln_f_module: "model.norm"\nlm_head_module: "lm_head"\n'
C = 'mom2_dataset: "wikipedia"\nmom2_n_samples: 100000\nmom2_dtype: "float32"\nmodel_parallel: false\n'
TARGET = "fact_token: subject_last\nv_num_grad_steps: 25\nv_lr: 5e-1\nv_loss_layer: 31\nv_weight_decay: 1e-3\n"
TARGET += "clamp_norm_factor: 4\nkl_factor: 0.0625\n"


def yaml_of(name, own):
    head = f'alg_name: "{name}"\nmodel_name: "./hugging_cache/llama-2-7b"\nstats_dir: "./data/stats"\ndevice: 0\n'
    return head + TARGET + own + LLAMA + C


WEIGHT = "mom2_update_weight: 15000\n"
MEMIT = yaml_of("MEMIT", f'layers: [4, 5, 6, 7, 8]\nlayer_selection: "all"\nmom2_adjustment: true\n{WEIGHT}')
SHARED = {"v_num_grad_steps": 25, "v_lr": 0.5, "v_loss_layer": 31, "v_weight_decay": 1e-3, "clamp_norm_factor": 4}
SHARED |= {"kl_factor": 0.0625}
EASYEDIT = {
    "MEMIT": (MEMIT, kedit.MEMIT(**SHARED, layers=[4, 5, 6, 7, 8], mom2_update_weight=15000)),
    "ROME": (
        yaml_of("ROME", "layers: [5]\nmom2_adjustment: false\ncontext_template_length_params: [[5, 10]]\n"),
        kedit.ROME(**SHARED, layers=[5], mom2_adjustment=False),
    ),
    "PMET, a field twice": (
        yaml_of("PMET", f"layers: [4, 5]\n{WEIGHT}nll_loss_factor: 1\nmodel_parallel: false\n")
        + 'rewrite_module_tmps: ["model.layers.{}.mlp.down_proj"]\n',
        kedit.PMET(**SHARED, layers=[4, 5], mom2_update_weight=15000, nll_loss_factor=1),
    ),
    "AlphaEdit": (
        yaml_of("AlphaEdit", f'layers: [4, 5]\nP_loc: "./P.pt"\n{WEIGHT}nullspace_threshold: 2e-2\nL2: 10\n'),
        kedit.AlphaEdit(**SHARED, layers=[4, 5], nullspace_threshold=0.02, L2=10),
    ),
    "FT": (
        'alg_name: "FT"\nmodel_name: "./hugging_cache/llama-2-7b"\ndevice: 0\nlayers: [21]\nnum_steps: 25\n'
        "batch_size: 1\nmax_length: 30\nlr: 5e-4\nweight_decay: 0\nkl_factor: 0\nnorm_constraint: false\n"
        'objective_optimization: "target_new"\nrewrite_module_tmp: "model.layers.{}.mlp.down_proj.weight"\n',
        kedit.FT(layers=[21], lr=5e-4, objective_optimization="target_new"),
    ),
}
MODULES = {"rewrite_module_tmp": "transformer.h.{}.mlp.c_proj", "layer_module_tmp": "transformer.h.{}"}
MODULES |= {"mlp_module_tmp": "transformer.h.{}.mlp", "attn_module_tmp": "transformer.h.{}.attn"}
MODULES |= {"ln_f_module": "transformer.ln_f", "lm_head_module": "transformer.wte"}
STATISTICS = {"mom2_dataset": "wikipedia", "mom2_n_samples": 100000, "mom2_dtype": "float32"}
WHICH = {"fact_token": "subject_last", "layer_selection": "all", "mom2_adjustment": True}
AUTHORS = {
    "MEMIT": (
        {**SHARED, **MODULES, **STATISTICS, **WHICH, "layers": [13, 14], "mom2_update_weight": 20000},
        kedit.MEMIT(**SHARED, layers=[13, 14], mom2_update_weight=20000),
    ),
    "EMMET": (
        {**SHARED, **MODULES, **STATISTICS, **WHICH, "layers": [17], "mom2_update_weight": 1000}
        | {"update_norm_lambda": 0, "emmet_lambda": 0.1, "calculate_objective_value": False}
        | {"prob_cutoff": 0, "norm_control": 0},
        kedit.EMMET(**SHARED, layers=[17], mom2_update_weight=1000),
    ),
    "FT": (
        {**MODULES, "layers": [0], "num_steps": 25, "lr": 5e-4, "weight_decay": 0, "kl_factor": 0}
        | {"norm_constraint": 5e-4},
        kedit.FT(layers=[0], norm_constraint=5e-4),
    ),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4), encoding="utf-8")
    return path


def read_with_a_warning(path, *says, method=None, unsaid=()):
    """The method of a file, with one warning, a line that holds every one of `says` and nothing that is `unsaid`."""
    with pytest.warns(UserWarning, match="left out") as caught:
        made = kedit.method_from_file(path, method)
    (message,) = [str(warning.message) for warning in caught]
    assert "\n" not in message and all(part in message for part in says), message
    assert not any(part in message for part in unsaid), message
    return made


@pytest.mark.parametrize("content, expected", EASYEDIT.values(), ids=EASYEDIT)
def test_easyedit(tmp_path, content, expected):
    path = write(tmp_path / "llama-7b.yaml", content)
    tuned = expected.name == "FT"
    says = "llama-7b.yaml: left out, ", "model_name, device", "load_model", *(() if tuned else ["mom2_dataset"])
    unsaid = "layers,", "v_lr", *(["fact_token", "L2", "batch_size", "mom2_dataset"] if tuned else ())
    assert read_with_a_warning(path, *says, unsaid=unsaid) == expected


HERE, TRIPLE = {"layers": [4, 5]}, {"mom2_update_weight": 15000, "nullspace_threshold": 0.02}
NEWER = {
    "ENCORE": (
        {"mom2_update_weight": 15000, "calculate_objective_value": False, "add_prev_edits": True}
        | {"update_norm_lambda": 10, "emmet_lambda": 0.1, "prob_cutoff": -3, "norm_control": 0, "use_gd": False}
        | {"dynamic_multiplier": 5, "random_vector_preservation": False, "grad_desc_lr": 0.005, "grad_desc_steps": 100}
        | {"gd_lambda": 50, "spectral_norm": 2, "condition_num": 50, "calculate_norms": False},
        kedit.ENCORE(**SHARED, **HERE, mom2_update_weight=15000, update_norm_lambda=10, prob_cutoff=-3),
    ),
    "EvoEdit": (
        {**TRIPLE, "L2": 4, "apply_woodbury": True},
        kedit.EvoEdit(**SHARED, **HERE, nullspace_threshold=0.02, L2=4),
    ),
    "BetaEdit": (
        {"lambda1": 3000, "lambda2": 10, "P_freq": 500, "nullspace_threshold": 0.02},
        kedit.BetaEdit(**SHARED, **HERE, lambda1=3000, lambda2=10, tau=500, nullspace_threshold=0.02),
    ),
    "LyapLock": (
        {"mom2_update_weight": 1000, "alpha": 60},
        kedit.LyapLock(**SHARED, **HERE, mom2_update_weight=1000, alpha=60),
    ),
    "RLSEdit": (
        {**TRIPLE, "L2": 4, "lambda_reg": 0, "mu_reg": 1.0, "weight_reg": 1},
        kedit.RLSEdit(**SHARED, **HERE, mom2_update_weight=15000),
    ),
    "SPHERE": (
        {**TRIPLE, "L2": 10, "beta_hse": 0.5, "alpha": 0.6},
        kedit.SPHERE(kedit.AlphaEdit(**SHARED, **HERE, nullspace_threshold=0.02, L2=10), beta_hse=0.5, alpha=0.6),
    ),
}


NEWER = {name: ({**SHARED, **STATISTICS, **WHICH, **HERE, **own}, expected) for name, (own, expected) in NEWER.items()}


@pytest.mark.parametrize("name, content, expected", [(name, *each) for name, each in {**AUTHORS, **NEWER}.items()])
def test_the_authors_json_is_named_by_its_folder(tmp_path, name, content, expected):
    path = write(tmp_path / "hparams" / name / "gpt2-xl.json", content)
    assert read_with_a_warning(str(path), "gpt2-xl.json: left out") == expected
    elsewhere = write(tmp_path / "gpt2-xl.json", content)
    assert read_with_a_warning(elsewhere, method=name.lower()) == expected


def test_ultraedit(tmp_path):
    """Its turn is the batch that apply is given; its mini-batch the method's own. EasyEdit's files take all tokens."""
    values = "alg_name: ULTRAEDIT\ninner_params:\n- model.layers.29.mlp.down_proj\nlr: 1e-6\ntoken: ans\n"
    values += "batch_size: 100\nbatch_size_once: 10\neditor_batch_size: 1024\nhalf: true\ndropout: 0.0\n"
    values += "class_name: AutoModelForCausalLM\nno_grad_layers: null\nsilent: False\nresults_dir: ./results\n"
    expected = kedit.UltraEdit(modules=["model.layers.29.mlp.down_proj"], lr=1e-6, batch_size=10)
    assert read_with_a_warning(write(tmp_path / "mistral-7b.yaml", values), "half") == expected
    path = write(tmp_path / "easy.yaml", values.replace("ans", "mask"))
    assert read_with_a_warning(path, "token = 'mask' (here", "tokens that predict the answer") == expected
    path = write(tmp_path / "other.yaml", values.replace("ans", "all"))
    refused(lambda: kedit.method_from_file(path), "token = 'all'", "only 'ans'")


def test_grace(tmp_path):
    """Its layer is in the name of its module."""
    values = "alg_name: GRACE\nmodel_name: x\ninner_params:\n- model.layers[27].mlp.down_proj.weight\nedit_lr: 1.0\n"
    values += "n_iter: 50\neps: 1.0\ndist_fn: euc\nval_init: cold\nval_train: sgd\nval_reg: None\nreg: early_stop\n"
    values += "replacement: replace_last\neps_expand: coverage\nnum_pert: 8\ndropout: 0.0\n"
    made = read_with_a_warning(write(tmp_path / "llama-7b.yaml", values))
    assert made == kedit.method_for("Llama-2-7b-hf", "grace")
    for old, new in (("replace_last", "replace_all"), ("down_proj", "gate_proj")):
        path = write(tmp_path / "other.yaml", values.replace(old, new))
        refused(lambda path=path: kedit.method_from_file(path), new)
    older = (
        values.replace("[27]", "[31]").replace("n_iter: 50", "n_iter: 100").replace("replace_last", "replace_prompt")
    )
    path = write(tmp_path / "GRACE" / "llama-7B.yaml", older)
    made = read_with_a_warning(path, "replacement = 'replace_prompt' (here a value stands at every token")
    assert made == kedit.GRACE(layers=[31], edit_lr=1.0, n_iter=100, eps=1.0)


LLAMA3 = {"layers": [4, 5, 6, 7, 8], "clamp_norm_factor": 0.75, "v_num_grad_steps": 25, "v_lr": 0.1}
LLAMA3 |= {"v_loss_layer": 31, "v_weight_decay": 0.5, "kl_factor": 0.0625}


def test_nas_is_alphaedit_whose_anchor_is_measured(tmp_path):
    """Of its own folder; an anchor is in no file."""
    values = {"model_name": "Llama3-8B", **LLAMA3, **WHICH, **STATISTICS, "mom2_update_weight": 15000}
    values |= {"nullspace_threshold": 2e-2, "L2": 10}
    path = write(tmp_path / "NAS" / "Llama3-8B.json", values)
    made = read_with_a_warning(path, "norm_anchor=, measured by kedit.anchor_norm")
    assert made == kedit.AlphaEdit(**LLAMA3, nullspace_threshold=0.02, L2=10)


def test_spheres_fields_in_easyedit(tmp_path):
    """One of them is written with a space in some files."""
    own = "layers: [4, 5, 6, 7, 8]\nP_loc: './P.pt'\nmom2_update_weight: 15000\nnullspace_threshold: 2e-2\nL2: 1\n"
    text = yaml_of("SPHERE", own + "cumulative_ratio: 0.5\nsuppression strength: 0.6\n")
    base = kedit.AlphaEdit(**SHARED, layers=[4, 5, 6, 7, 8], nullspace_threshold=0.02, L2=1)
    for name, content in (("llama3-8b", text), ("gpt2-xl", text.replace("suppression s", "suppression_s"))):
        path = write(tmp_path / "SPHERE" / f"{name}.yaml", content)
        assert read_with_a_warning(path, "P_loc") == kedit.SPHERE(base, beta_hse=0.5, alpha=0.6)


def test_betaedits_two_files(tmp_path):
    """The model's has the layers, and a λ for each of them; the method's file has the method."""
    llm = "name: meta-llama/Llama-3-8B-Instruct\nmom2_update_weight:\n" + "  - 15000\n" * 5 + "mom2_maxseqlen:\n"
    llm += "".join(f"{field}: {value}\n" for field, value in {**LLAMA3, **STATISTICS, **WHICH}.items()).lower()
    path = write(tmp_path / "llms" / "llama3-8b.yaml", llm)
    own = "name: betaedit\nlambda2: 10\nlambda1: 3000\nP_freq: 1000\nnullspace_threshold: 0.02\n"
    alone = write(tmp_path / "algs" / "betaedit.yaml", own)
    made = read_with_a_warning(path, "mom2_maxseqlen", method="BetaEdit")
    assert made == kedit.BetaEdit(**LLAMA3, lambda1=3000, lambda2=10, tau=1000, nullspace_threshold=0.02)
    assert read_with_a_warning(path, method="memit") == kedit.MEMIT(**LLAMA3, mom2_update_weight=15000)
    refused_alone(alone, "betaedit.yaml", "no layers", "llms/<model>.yaml', 'BetaEdit')")


def test_simie_finds_its_base_where_easyedit_keeps_it_and_rect_takes_memits_file(tmp_path):
    values = 'alg_name: "SimIE"\nbase_method: "MEMIT"\nlamHyper: 10000.0\ninit_model: true\nsolver: "LU"\nfast: false\n'
    path = write(tmp_path / "SimIE" / "llama-7b.yaml", values)
    refused(lambda: kedit.method_from_file(path), "MEMIT", "no such file")
    base = write(tmp_path / "MEMIT" / "llama-7b.yaml", MEMIT)
    with pytest.warns(UserWarning, match="left out"):
        made, rect = kedit.method_from_file(path), kedit.method_from_file(base, method="RECT")
    assert made == kedit.SimIE(EASYEDIT["MEMIT"][1], lamHyper=10000.0, init_model=True)
    assert rect == kedit.RECT(**SHARED, layers=[4, 5, 6, 7, 8], mom2_update_weight=15000)


def test_nothing_is_said_of_a_file_without_anything_else(tmp_path):
    values = {**SHARED, "alg_name": "MEMIT", "layers": [1], "use_history": True, "mom2_update_weight": 7}
    path = write(tmp_path / "own.json", values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = kedit.MEMIT(**SHARED, layers=[1], use_history=True, mom2_update_weight=7)
        assert kedit.method_from_file(path) == expected


def test_what_a_file_does_not_give_is_named(tmp_path):
    path = write(tmp_path / "own.yaml", "alg_name: MEMIT\nlayers: [1]\nuse_history: true\nv_lr: 5e-1\n")
    with pytest.warns(UserWarning, match="own.yaml: does not give .*clamp_norm_factor = 4.0.*15000.*taken") as caught:
        assert kedit.method_from_file(path) == kedit.MEMIT(layers=[1], use_history=True, v_lr=0.5)
    assert len(caught) == 1 and "v_lr" not in str(caught[0].message)


BAD = [
    (MEMIT.replace("subject_last", "last"), ["fact_token = 'last'", "only 'subject_last'"]),
    (MEMIT.replace('"all"', '"random"'), ["layer_selection = 'random'", "'all'"]),
    (MEMIT + "v_rate: 5e-1\n", ["MEMIT", "v_rate = 0.5", "no such hyperparameter", "v_lr"]),
    (MEMIT.replace("5e-1", "fast"), ["MEMIT", "v_lr = 'fast'", "number"]),
    (MEMIT.replace("0.0625", "false"), ["kl_factor = False", "number"]),
    (MEMIT.replace("mlp.down_proj", "self_attn.o_proj"), ["rewrite_module_tmp", "self_attn.o_proj", "projection"]),
    ("alg_name: FT\nlayers: [1]\nrewrite_module_tmp: 'transformer.h.{}'\n", ["'transformer.h.{}'"]),
    (MEMIT + "update_norm_lambda: 1\n", ["update_norm_lambda = 1", "only 0"]),
    (MEMIT.replace('"MEMIT"', '"IKE"'), ["'IKE'", "unknown", "AlphaEdit"]),
    (MEMIT.replace('alg_name: "MEMIT"\n', ""), ["does not say its method", "method="]),
    ("alg_name: [", ["not valid YAML"]),
    ("", ["name: value"]),
]


@pytest.mark.parametrize("content, says", BAD)
def test_what_is_refused_is_one_line(tmp_path, content, says):
    refused_alone(write(tmp_path / "llama-7b.yaml", content), "llama-7b.yaml", *says)


def refused_alone(path, *says):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing else is said
        refused(lambda: kedit.method_from_file(path), *says)


def test_files_that_are_none(tmp_path):
    refused_alone(tmp_path / "MEMIT" / "llama-7b.yaml", "llama-7b.yaml", "no such file")
    refused_alone(write(tmp_path / "MEMIT" / "llama-7b.txt", MEMIT), "llama-7b.txt", ".yaml, .yml or .json")
    refused_alone(write(tmp_path / "MEMIT" / "gpt2.json", "{'layers': 1}"), "gpt2.json", "not valid JSON")
    refused_alone(write(tmp_path / "MEMIT" / "gpt2.json", "[1]"), "gpt2.json", "no object")
