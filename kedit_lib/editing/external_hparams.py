"""Hyperparameter files of other programs: EasyEdit's YAML and the JSON of the methods' authors.

    method = kedit.method_from_file("EasyEdit/hparams/MEMIT/llama-7b.yaml")
    method = kedit.method_from_file("memit/hparams/MEMIT/EleutherAI_gpt-j-6B.json")   # named by its folder

The fields keep their names. What is set elsewhere here, such as the model's name, is left out with one warning.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from ..data.yaml_text import read_yaml
from ..errors import KeditError
from . import Method, Wrapper, method_class

# Where these fields are set here. Published programs hold those of the last line in every file, read or not.
ELSEWHERE = {
    "load_model": "model_name device model_parallel fp16 max_length half model_class tokenizer_class class_name "
    "tokenizer_name",
    "moments=": "stats_dir mom2_dataset mom2_n_samples mom2_dtype P_loc",
    "contexts=": "context_template_length_params",
    "the model's layout": "rewrite_module_tmp rewrite_module_tmps layer_module_tmp mlp_module_tmp attn_module_tmp "
    "ln_f_module lm_head_module",
    "the batch that apply is given": "batch_size bs n_edits",
    "nothing that this method reads": "mom2_adjustment mom2_update_weight kl_factor calculate_objective_value "
    "dynamic_multiplier emmet_lambda grad_desc_lr grad_desc_steps gd_lambda spectral_norm condition_num "
    "calculate_norms weight_reg apply_woodbury solver fast silent editor_batch_size results_dir val_reg reg num_pert",
}
UNREAD = {"RLSEdit": "L2 nullspace_threshold"}  # in the file of that method, which does not read them
# Switches of which one position is supported, for methods without such a field.
ONLY = {
    **{"fact_token": "subject_last", "layer_selection": "all", "bias_update": False, "dynamic": False},
    **{"norm_control": 0, "prob_cutoff": 0, "update_norm_lambda": 0, "lambda_reg": 0, "mu_reg": 1, "dropout": 0},
    **{"use_gd": False, "random_vector_preservation": False, "add_prev_edits": True, "sequential": True},
    **{"token": "ans", "no_grad_layers": None, "replacement": "replace_last", "eps_expand": "coverage"},
    **{"dist_fn": "euc", "val_init": "cold", "val_train": "sgd"},
}
# What a field is called here, for methods that have it under that name; later ones overrule earlier ones.
RENAMED = {
    **{"P_freq": "tau", "inner_params": "modules", "edit_modules": "modules", "base_method": "base"},
    **{"batch_size_once": "batch_size", "dataset_batch_size": "batch_size"},
}
OFF = {"norm_constraint": None, "weight_decay": 0.0}  # what `false` means there
MLP_OUTPUT = re.compile(r".*mlp\.(down_proj|c_proj|fc_out|dense_4h_to_h)(\.weight)?")


def method_from_file(path, method: str | None = None) -> Method:
    """The method of a .yaml, .yml or .json file, with its hyperparameters.

    method: its name; None: the file's alg_name, or else the name of its folder. Warns of fields that are left out and
    of defaults that are taken. KeditError for a file that cannot be read, an unknown method or field, a value of the
    wrong type, and a switch whose position is not supported.
    """
    values = _read(path := Path(path))
    named = [values.pop(key) for key in ("alg_name", "alg") if key in values]
    name = method or (named[0] if named else path.parent.name)
    try:
        cls = method_class(str(name))
    except KeditError as error:
        unnamed = f"does not say its method (no alg_name, and its folder {name!r} is not one); pass method="
        raise KeditError(f"{path.name}: {error if method or named else unnamed}") from None
    return _made(path, cls, {str(field): value for field, value in values.items()})


def _made(path: Path, cls: type[Method], values: dict[str, Any]) -> Method:
    for theirs, ours in RENAMED.items():
        if theirs in values and ours in cls.model_fields:
            values[ours] = values.pop(theirs)
    if issubclass(cls, Wrapper):
        values = _with_base(path, cls, values)
    for field, value in ONLY.items():
        if field not in cls.model_fields and (found := values.pop(field, value)) != value:
            raise KeditError(f"{path.name}: {field} = {found!r}: is not supported here; only {value!r} is")
    for field in ("rewrite_module_tmp", "rewrite_module_tmps", "inner_params"):
        modules = values.get(field, [])
        for module in modules if isinstance(modules, list) else [modules]:
            if not MLP_OUTPUT.fullmatch(str(module)):
                raise KeditError(f"{path.name}: {field} = {module!r}: here methods edit the map that leaves the MLP")
    if isinstance(named := values.get("inner_params"), list):  # GRACE's, which has no other word for its layer
        values = {f: v for f, v in values.items() if f != "inner_params"}
        values["layers"] = [int(number) for name in named for number in re.findall(r"\d+", name)[:1]]
    left_out = []
    for place, fields in {**ELSEWHERE, "nothing that its program reads": UNREAD.get(cls.__name__, "")}.items():
        if found := [f for f in fields.split() if f in values and f not in cls.model_fields]:
            left_out.append(f"{', '.join(found)} ({place})")
            values = {f: value for f, value in values.items() if f not in found}
    try:
        made = cls(**{f: OFF[f] if value is False and f in OFF else value for f, value in values.items()})
    except KeditError as error:
        raise KeditError(f"{path.name}: {error}") from None
    if left_out:
        warnings.warn(f"{path.name}: left out, because it is set elsewhere: {'; '.join(left_out)}", stacklevel=3)
    numbers = [f for f, info in cls.model_fields.items() if type(info.default) in (int, float) and f != "batch_size"]
    if missing := [f"{f} = {getattr(made, f)}" for f in numbers if f not in values]:
        warnings.warn(f"{path.name}: does not give {', '.join(missing)}; the default is taken", stacklevel=3)
    return made


def _with_base(path: Path, cls: type[Method], values: dict[str, Any]) -> dict[str, Any]:
    """A wrapper's fields with its base: from the file of that name in the base's folder, as EasyEdit has it, or from
    the other fields of this one (with a null space AlphaEdit, else MEMIT)."""
    if isinstance(base := values.get("base"), str):
        return {**values, "base": method_from_file(path.parent.parent / base / path.name, base)}
    own = {f: value for f, value in values.items() if f in cls.model_fields and f != "layers"}
    rest = {f: value for f, value in values.items() if f not in own}
    return {**own, "base": _made(path, method_class("AlphaEdit" if "nullspace_threshold" in rest else "MEMIT"), rest)}


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise KeditError(f"{path}: is not a hyperparameter file; give a .yaml, .yml or .json")
    if not path.is_file():
        raise KeditError(f"{path}: there is no such file; give an existing one")
    if path.suffix != ".json":
        return read_yaml(path, duplicates=True)  # published files hold a field twice
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise KeditError(f"{path.name}: is not valid JSON: {error}; write it again") from None
    if not isinstance(values, dict):
        raise KeditError(f"{path.name}: holds no object of hyperparameters; give one {{…}}")
    return values
