"""Where a number comes from: the key of what decides it, versions, device, commit and time."""

import hashlib
import json
import platform
import subprocess
import time

import torch
import transformers

from .config import REPOSITORY

ALGORITHMS = 2  # raised by hand when a change of the library changes numbers


def sha256(data: str | bytes | memoryview) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def key_of(**parts) -> str:
    """A short hash over named parts (plain data)."""
    return sha256(json.dumps(parts, sort_keys=True, default=str))[:16]


def versions() -> dict:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def arithmetic(device: torch.device) -> dict:
    """What decides only the last digits of results: rounding depends on how sums are split up."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": name}


def commit() -> str | None:
    """The commit of this checkout, for manifests; None outside a repository."""
    asked = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
