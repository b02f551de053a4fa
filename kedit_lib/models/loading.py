"""A model by name: the built-in lab models, a pretrained one, a .gguf file, a local folder, or a hub id."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..data.config import LAB_MODELS
from ..errors import KeditError, first_line
from .architectures import check_type
from .model import EditableModel, dtype_of, no_progress_bar
from .pretrained import local_folder

WEIGHTS = Path(__file__).resolve().parents[1] / "lab" / "weights"


def load_model(
    name: str | os.PathLike,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    originals: str = "device",
) -> EditableModel:
    """Load "lab", "lab-small", "smollm2", a .gguf file, a local folder, or a hub id.

    dtype   torch dtype or its name; None: as stored. device   "cpu", "cuda", …; None: cpu.
    originals   "device" or "host": where the unedited values of edited weights are kept, one copy.
    Weights come from safetensors only, and no code that a repository or folder holds is run unless you say
    trust_remote_code. Raises KeditError when the model
    cannot be found, its layout is unknown, it holds NaN, or the dtype did not come out as asked.
    """
    where = str(name)
    if where in LAB_MODELS:
        where = str(WEIGHTS / where)
    where = str(local_folder(where) or where)
    dtype = None if dtype is None else dtype_of(dtype)
    try:
        check_type(AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code))
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
        with no_progress_bar():
            hf = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=trust_remote_code
            )
    except KeditError:
        raise
    except Exception as error:  # whatever the loaders make of a missing or damaged file
        raise KeditError(
            f"model {str(name)!r}: cannot be loaded ({first_line(error)}); give smollm2, lab, lab-small, a folder or a "
            "hub id"
        ) from error
    try:
        hf = hf.to(device or "cpu")
        next(hf.parameters()).flatten()[0].item()  # "meta" takes a model and keeps no value of it
    except (RuntimeError, AssertionError) as error:
        message = f"device {device!r}: cannot take {str(name)!r} ({first_line(error)}); give one that is there"
        raise KeditError(message) from error
    if dtype is not None and {p.dtype for p in hf.parameters()} != {dtype}:
        found = ", ".join(sorted(str(p) for p in {p.dtype for p in hf.parameters()}))
        raise KeditError(f"model {str(name)!r}: asked for {dtype}, got {found}; choose another dtype")
    return EditableModel(hf, tokenizer, str(name), Path(where) if Path(where).is_dir() else None, originals)
