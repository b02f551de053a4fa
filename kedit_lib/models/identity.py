"""What names a model in caches and stores: its unedited weights, and what else decides what it says."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

NO_SETTING = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")  # decide no number, or are asked beside


def checksum_of(hf, originals: dict[str, Tensor]) -> str:
    """sha256 over the weights, `originals` ({name: value}) in the places of the edited ones."""
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        tensor = originals.get(name, parameter).detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data if tensor.dim() else tensor.numpy().tobytes())
    return digest.hexdigest()


def setting_of(hf, tokenizer) -> str:
    """sha256 over the configuration and the tokenizer."""
    config = {k: v for k, v in hf.config.to_diff_dict().items() if k not in NO_SETTING}
    parts = json.dumps([config, _vocabulary(tokenizer)], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()


def _vocabulary(tokenizer):
    """All that decides its ids, as plain data."""
    if not tokenizer.is_fast:
        return [tokenizer.get_vocab(), tokenizer.init_kwargs]
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}  # of the last call
