"""A model by name: the built-in lab models, a pretrained one, a .gguf file, a local folder, or a hub id."""

import contextlib
import difflib
import os
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
OTHERS = (*OF_HUB, "attn_implementation", "torch_dtype", "device_map")


def load_model(name, dtype=None, device=None, trust_remote_code=False, originals="device", **given) -> EditableModel:
    """Load "lab", "lab-small", "smollm2", a .gguf file, a local folder, or a hub id.

    dtype   torch dtype or its name; None or "auto": as stored
    device  whatever torch takes: "cpu", "cuda", "cuda:1", a torch.device, the number of a GPU, …; None: cpu
    originals   "device" or "host": where the unedited values of edited weights are kept
    given   of transformers' from_pretrained: revision, token, cache_dir, subfolder, local_files_only, force_download,
            attn_implementation ("eager" or "sdpa"); torch_dtype and device_map stand for dtype and device

    Weights come from safetensors only; no code of a repository is run without trust_remote_code. KeditError for a model
    that cannot be found, is an adapter, incomplete, quantised, of an unknown layout or with NaN.
    """
    if not isinstance(name, (str, os.PathLike)):
        remedy = "give a name or a folder, or wrap it: kedit.EditableModel(model, tokenizer)"
        raise KeditError(f"load_model: a {type(name).__name__} is no name of a model; {remedy}")
    where = str(name)
    if where in LAB_MODELS:
        where = str(WEIGHTS / where)
    where = str(local_folder(where) or where)
    if not Path(where).exists() and (where.startswith((".", "/", "~")) or where.count("/") > 1):
        raise KeditError(f"model {where!r}: there is no such folder; give one that is there, or a hub id (owner/name)")
    hub, attention, dtype, device = _understood(str(name), dict(given), dtype, device)
    hub["trust_remote_code"] = trust_remote_code
    files = {path.name for path in Path(where).glob("*.*")}
    if "adapter_config.json" in files or ("adapter_model.safetensors" in files and "config.json" not in files):
        raise KeditError(f"model {str(name)!r}: is an adapter, no model; {MERGE}")
    try:
        config = AutoConfig.from_pretrained(where, **hub)
        check_type(config)
        check_not_quantised(config, f"model {str(name)!r}")
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        how = {"dtype": dtype or "auto", "use_safetensors": True, **attention, **hub}
        with no_progress_bar():
            hf, seen = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **how)
    except KeditError:
        raise
    except Exception as error:  # whatever the loaders make of a missing or damaged file
        remedy = "give smollm2, lab, lab-small, a folder or a hub id"
        if "no file named" in str(error) and "safetensors" in str(error):
            remedy = "load it in transformers, save_pretrained it as safetensors, which alone are read, and give that"
        if "trust_remote_code" in str(error):
            remedy = "it brings code of its own: if you have read that code and trust it, say trust_remote_code=True "
            remedy += "(kedit: --trust-remote-code)"
        raise KeditError(f"model {str(name)!r}: cannot be loaded ({first_line(error)}); {remedy}") from error
    if missing := sorted(seen["missing_keys"]):
        found = f"{len(missing)} weights are not in its files, the first: {missing[0]}"
        raise KeditError(f"model {str(name)!r}: {found}; save the whole model again, or download it again")
    try:
        hf = hf.to(_device(device))
        next(hf.parameters()).flatten()[0].item()  # "meta" takes a model and keeps no value of it
    except (RuntimeError, AssertionError, TypeError) as error:
        message = f"device {device!r}: cannot take {str(name)!r} ({first_line(error)}); give one that is there"
        raise KeditError(message) from error
    if dtype is not None and (found := {str(p.dtype) for p in hf.parameters()}) != {str(dtype)}:
        raise KeditError(f"model {str(name)!r}: asked for {dtype}, got {', '.join(sorted(found))}; choose another")
    return EditableModel(hf, tokenizer, str(name), Path(where) if Path(where).is_dir() else None, originals)


def _understood(name: str, given: dict, dtype, device) -> tuple:
    """The arguments of `load_model` as those for the hub and for attention, dtype and device."""
    if packed := [key for key in given if key.startswith("load_in_") or key == "quantization_config"]:
        raise KeditError(f"model {name!r}: {packed[0]}: quantised weights cannot be edited; leave it out")
    if unknown := [key for key in given if key not in OTHERS]:
        like = difflib.get_close_matches(unknown[0], ("dtype", "device", "trust_remote_code", "originals", *OTHERS), 1)
        meant = f"did you mean {like[0]}?" if like else f"there are dtype, device, originals, {', '.join(OTHERS)}"
        raise KeditError(f"model {name!r}: load_model takes no {unknown[0]}; {meant}")
    dtype, device = given.pop("torch_dtype", dtype), given.pop("device_map", device)
    if isinstance(device, dict) or device in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise KeditError(f"model {name!r}: device_map = {device!r} may spread it; give one device, as device='cuda'")
    if given.get("attn_implementation", "sdpa") not in ("eager", "sdpa"):  # these take a mask of numbers
        raise KeditError(f"model {name!r}: attn_implementation must be eager or sdpa, whose masks can be given")
    attention = {name: given.pop(name) for name in ("attn_implementation",) if name in given}
    if dtype in (None, "auto"):
        return given, attention, None, device
    if (dtype := str(dtype).removeprefix("torch.")) not in DTYPES:
        raise KeditError(f"dtype {dtype!r}: models are not loaded in it; use one of {', '.join(DTYPES)}")
    return given, attention, getattr(torch, dtype), device


def _device(device) -> torch.device | str:
    """A number is an accelerator's, and without one CUDA's, which then says that it is not there."""
    if device is None:
        return "cpu"
    device = int(device) if isinstance(device, str) and device.isdigit() else device  # from a command line
    with contextlib.suppress(RuntimeError):
        return torch.device(device)
    return torch.device("cuda", device) if type(device) is int and device >= 0 else device
