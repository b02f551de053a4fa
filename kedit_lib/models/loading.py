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
ATTENTION = ("eager", "sdpa")  # that take a mask of numbers
OF_HUB = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
OTHERS = (*OF_HUB, "attn_implementation", "torch_dtype", "device_map")


def load_model(
    name: str | os.PathLike,
    dtype: torch.dtype | str | None = None,
    device: str | int | torch.device | None = None,
    trust_remote_code: bool = False,
    originals: str = "device",
    **given,
) -> EditableModel:
    """Load "lab", "lab-small", "smollm2", a .gguf file, a local folder, or a hub id.

    dtype   torch dtype or its name; None or "auto": as stored
    device  whatever torch takes: "cpu", "cuda", "cuda:1", a torch.device, the number of a GPU, …; None: cpu
    originals   "device" or "host": where the unedited values of edited weights are kept, one copy
    given   of transformers' from_pretrained: revision, token, cache_dir, subfolder, local_files_only, force_download,
            attn_implementation ("eager" or "sdpa"); torch_dtype and device_map stand for dtype and device

    Weights come from safetensors only, and no code of a repository or folder is run without trust_remote_code. Raises
    KeditError when the model cannot be found, is an adapter, is quantised, is of an unknown layout, holds NaN, or the
    dtype did not come out as asked.
    """
    where = str(name)
    if where in LAB_MODELS:
        where = str(WEIGHTS / where)
    where = str(local_folder(where) or where)
    hub, attention, dtype, device = _understood(str(name), dict(given), dtype, device)
    hub["trust_remote_code"] = trust_remote_code
    if (Path(where) / "adapter_config.json").is_file():
        raise KeditError(f"model {str(name)!r}: is an adapter, no model; {MERGE}")
    try:
        config = AutoConfig.from_pretrained(where, **hub)
        check_type(config)
        check_not_quantised(config, f"model {str(name)!r}")
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        how = {"dtype": dtype or "auto", "use_safetensors": True, **attention, **hub}
        with no_progress_bar():
            hf = AutoModelForCausalLM.from_pretrained(where, **how)
    except KeditError:
        raise
    except Exception as error:  # whatever the loaders make of a missing or damaged file
        remedy = "give smollm2, lab, lab-small, a folder or a hub id"
        if "trust_remote_code" in str(error):
            remedy = "it brings code of its own: if you have read that code and trust it, say trust_remote_code=True "
            remedy += "(kedit: --trust-remote-code)"
        raise KeditError(f"model {str(name)!r}: cannot be loaded ({first_line(error)}); {remedy}") from error
    try:
        hf = hf.to(_device(device))
        next(hf.parameters()).flatten()[0].item()  # "meta" takes a model and keeps no value of it
    except (RuntimeError, AssertionError, TypeError) as error:
        message = f"device {device!r}: cannot take {str(name)!r} ({first_line(error)}); give one that is there"
        raise KeditError(message) from error
    if dtype is not None and (found := {p.dtype for p in hf.parameters()}) != {dtype}:
        found = ", ".join(sorted(map(str, found)))
        raise KeditError(f"model {str(name)!r}: asked for {dtype}, got {found}; choose another dtype")
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
    attention = {"attn_implementation": given.pop("attn_implementation")} if "attn_implementation" in given else {}
    if attention and attention["attn_implementation"] not in ATTENTION:
        raise KeditError(f"model {name!r}: attn_implementation must be eager or sdpa, whose masks can be given")
    return given, attention, None if dtype in (None, "auto") else _dtype(dtype), device


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise KeditError(f"dtype {name!r}: models are not loaded in it; use one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def _device(device) -> torch.device | str:
    """A number is an accelerator's, and without one CUDA's, which then says that it is not there."""
    if device is None:
        return "cpu"
    device = int(device) if isinstance(device, str) and device.isdigit() else device  # from a command line
    with contextlib.suppress(RuntimeError):
        return torch.device(device)
    return torch.device("cuda", device) if type(device) is int and device >= 0 else device
