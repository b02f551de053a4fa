"""Hyperparameter files of other programs: EasyEdit's YAML and the JSON of the methods' authors."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from ..data.config import read_yaml
from ..errors import KeditError, explained
from . import Method, Wrapper, method_class

FIELDS = read_yaml(Path(__file__).with_name("external_fields.yaml"))  # what fields of those programs mean here
MLP_OUTPUT = re.compile(r".*mlp\.(down_proj|c_proj|fc_out|dense_4h_to_h)(\.weight)?")


def method_from_file(path, method: str | None = None) -> Method:
    """The method of a .yaml, .yml or .json file, with its hyperparameters. method: its name; None: the file's alg_name,
    or else the name of its folder. BetaEdit's are in two: give llms/<model>.yaml and the method; algs/<method>.yaml
    is read too. Warns of fields that are left out and defaults that are taken. KeditError for a file that cannot be
    read, an unknown method or field, a value of the wrong type, and a switch whose position is not supported."""
    path = Path(path)
    own = path.parent.parent / "algs" / f"{method}.yaml".lower()
    values = {str(field): value for field, value in (_read(path) | (_read(own) if own.is_file() else {})).items()}
    of = {"algs": ("name",), "llms": ()}.get(path.parent.name, ())  # BetaEdit calls its method so, and its model
    named = [values.pop(key) for key in ("alg_name", "alg", *of) if key in values]
    values = {f: value for f, value in values.items() if f != "name" or path.parent.name not in ("algs", "llms")}
    name, cls = method or (named[0] if named else path.parent.name), None
    values |= FIELDS["methods"].get(str(name).upper(), {})
    name = values.pop("alg_name", name)
    try:
        cls = method_class(str(name))
        return _made(path, cls, values)
    except KeditError as error:
        unnamed = f"does not say its method (no alg_name, and its folder {name!r} is not one); pass method="
        raise KeditError(f"{path.name}: {error if cls or method or named else unnamed}") from None


def _made(path: Path, cls: type[Method], values: dict[str, Any]) -> Method:
    known = cls.model_fields
    for theirs, ours in FIELDS["renamed"].items():
        if theirs in values and ours in known:
            values[ours] = values.pop(theirs)
    if path.parent.name == "algs" and "layers" not in values:
        raise KeditError(f"has no layers; call method_from_file('…/llms/<model>.yaml', {cls.__name__!r})")
    if issubclass(cls, Wrapper):
        values = _with_base(path, cls, values)
    if isinstance(w := values.get("mom2_update_weight"), list) and w and w == w[:1] * len(w):  # one per layer
        values["mom2_update_weight"] = w[0]
    other = [(f, here) for name, f, v, here in FIELDS["otherwise"] if (cls.__name__, values.get(f)) == (name, v)]
    left_out = [f"{f} = {values.pop(f)!r} ({here})" for f, here in other]
    for field, value in FIELDS["only"].items():
        if field not in known and (found := values.pop(field, value)) != value:
            raise KeditError(f"{field} = {found!r}: is not supported here; only {value!r} is")
    for field in ("rewrite_module_tmp", "rewrite_module_tmps", "inner_params"):
        modules = values.get(field, [])
        for module in modules if isinstance(modules, list) else [modules]:
            if not MLP_OUTPUT.fullmatch(str(module)):
                raise KeditError(f"{field} = {module!r}: only the MLP's output projection can be edited here")
    if isinstance(values.get("inner_params"), list):  # GRACE's, which has no other word for its layer
        values["layers"] = [int(n) for name in values.pop("inner_params") for n in re.findall(r"\d+", name)[:1]]
    unread = {"nothing that its program reads": FIELDS["unread"].get(cls.__name__, "")}
    for place, fields in (FIELDS["elsewhere"] | unread).items():
        if found := [f for f in fields.split() if f in values and f not in known]:
            left_out.append(f"{', '.join(found)} ({place})")
            values = {f: value for f, value in values.items() if f not in found}
    made = cls(**{f: FIELDS["off"].get(f, False) if value is False else value for f, value in values.items()})
    if left_out:
        warnings.warn(f"{path.name}: left out, set elsewhere or done otherwise: {'; '.join(left_out)}", stacklevel=3)
    numbers = [f for f, info in known.items() if type(info.default) in (int, float) and f != "batch_size"]
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
    with explained(f"{path.name}: is not valid JSON", "write it again"):
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(values, dict):
        raise KeditError(f"{path.name}: holds no object of hyperparameters; give one {{…}}")
    return values
