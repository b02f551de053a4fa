"""A model by name: the built-in lab models, a pretrained one, a .gguf file, a local folder, or a hub id."""

import difflib
import os
from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..data.config import LAB_MODELS
from ..errors import KeditError, first_line
from .architectures import check_type
from .checked import MERGE, check_not_quantised
from .deltas import no_progress_bar
from .model import EditableModel
from .pretrained import local_folder

WEIGHTS = Path(__file__).resolve().parents[1] / "lab" / "weights"
DTYPES = ("float32", "bfloat16", "float16", "float64")
OF_HUB = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
GIVEN = ("dtype", "device", "trust_remote_code", "originals", *OF_HUB)


def load_model(
    name,
    dtype=None,
    device=None,
    trust_remote_code=False,
    originals="device",
    *,
    torch_dtype=None,
    device_map=None,
    attn_implementation=None,
    **hub,
) -> EditableModel:
    """Load "lab", "lab-small", "smollm2", a .gguf file, a local folder, or a hub id.

    dtype   torch dtype or its name; None or "auto": as stored
    device  whatever torch takes: "cpu", "cuda", "cuda:1", a torch.device, the number of a GPU, …; None: cpu
    originals   "device" or "host": where the unedited values of edited weights are kept
    attn_implementation   "eager" or "sdpa"
    hub     of transformers' from_pretrained: revision, token, cache_dir, subfolder, local_files_only, force_download;
            torch_dtype and device_map stand for dtype and device

    Weights come from safetensors only; no code of a repository is run without trust_remote_code. KeditError for a model
    that cannot be found, is an adapter, incomplete, quantised, of an unknown layout or with NaN.
    """
    if not isinstance(name, (str, os.PathLike)):
        remedy = "give a name or a folder, or wrap it: kedit.EditableModel(model, tokenizer)"
        raise KeditError(f"load_model: a {type(name).__name__} is no name of a model; {remedy}")
    name, what = str(name), f"model {str(name)!r}"
    dtype, device = _dtype(dtype if torch_dtype is None else torch_dtype), device if device_map is None else device_map
    _check_given(what, device, attn_implementation, hub)
    where = Path(local_folder(name) or (WEIGHTS / name if name in LAB_MODELS else name))
    if not where.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise KeditError(f"{what}: there is no such folder; give one that is there, or a hub id (owner/name)")
    files = {path.name for path in where.glob("*.*")}
    if "adapter_config.json" in files or ("adapter_model.safetensors" in files and "config.json" not in files):
        raise KeditError(f"{what}: is an adapter, no model; {MERGE}")
    hf, tokenizer = _loaded(
        what, str(where), dtype, attn_implementation, {**hub, "trust_remote_code": trust_remote_code}
    )
    try:
        hf = hf.to(_device(device))
        next(hf.parameters()).flatten()[0].item()  # "meta" takes a model and keeps no value of it
    except (RuntimeError, AssertionError, TypeError) as error:
        remedy = "give one that is there"
        raise KeditError(f"device {device!r}: cannot take {name!r} ({first_line(error)}); {remedy}") from error
    return EditableModel(hf, tokenizer, name, where if where.is_dir() else None, originals)


def _check_given(what: str, device, attn_implementation: str | None, hub: dict) -> None:
    """KeditError for arguments of `load_model` that cannot be taken."""
    for key in hub:
        if key.startswith("load_in_") or key == "quantization_config":
            raise KeditError(f"{what}: {key}: quantised weights cannot be edited; leave it out")
        if key not in OF_HUB:
            like = difflib.get_close_matches(key, GIVEN, 1)
            meant = f"did you mean {like[0]}?" if like else f"there are {', '.join(GIVEN)}"
            raise KeditError(f"{what}: load_model takes no {key}; {meant}")
    if isinstance(device, dict) or device in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise KeditError(f"{what}: device_map = {device!r} may spread it; give one device, as device='cuda'")
    if attn_implementation not in (None, "eager", "sdpa"):  # these take a mask of numbers
        raise KeditError(f"{what}: attn_implementation must be eager or sdpa, whose masks can be given")


def _dtype(dtype) -> torch.dtype | str:
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in ("auto", *DTYPES):
        raise KeditError(f"dtype {name!r}: models are not loaded in it; use one of {', '.join(DTYPES)}")
    return name if name == "auto" else getattr(torch, name)


def _loaded(what: str, where: str, dtype, attention: str | None, hub: dict) -> tuple:
    """The model and its tokenizer. KeditError for one that cannot be read, edited, or lacks weights."""
    how = {"dtype": dtype, "use_safetensors": True} | ({"attn_implementation": attention} if attention else {})
    try:
        config = AutoConfig.from_pretrained(where, **hub)
        check_type(config)
        check_not_quantised(config, what)
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        with no_progress_bar():
            hf, seen = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **how, **hub)
    except KeditError:
        raise
    except Exception as error:  # whatever the loaders make of a missing or damaged file
        remedy = "give smollm2, lab, lab-small, a folder or a hub id"
        if "no file named" in str(error) and "safetensors" in str(error):
            remedy = "load it in transformers, save_pretrained it as safetensors, which alone are read, and give that"
        if "trust_remote_code" in str(error):
            remedy = "it brings code of its own: if you have read that code and trust it, say trust_remote_code=True "
            remedy += "(kedit: --trust-remote-code)"
        raise KeditError(f"{what}: cannot be loaded ({first_line(error)}); {remedy}") from error
    if missing := sorted(seen["missing_keys"]):
        found = f"{len(missing)} weights are not in its files, the first: {missing[0]}"
        raise KeditError(f"{what}: {found}; save the whole model again, or download it again")
    return hf, tokenizer


def _device(device) -> torch.device | str:
    """A number is an accelerator's, and without one CUDA's, which then says that it is not there."""
    if device is None:
        return "cpu"
    device = int(device) if isinstance(device, str) and device.isdigit() else device  # from a command line
    with suppress(RuntimeError):
        return torch.device(device)
    return torch.device("cuda", device) if type(device) is int and device >= 0 else device
