"""What names a model in caches and stores: its unedited weights, its configuration, its tokenizer."""

import hashlib
import json

import torch
from torch import Tensor

# They change no number, or are keys themselves.
NO_SETTING = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


def digest_of(tensors: dict[str, Tensor]) -> str:
    """sha256 over tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum_of(hf, originals: dict[str, Tensor]) -> str:
    """sha256 over the weights, with `originals` ({name: value}) instead of the edited ones."""
    return digest_of(dict(hf.named_parameters()) | originals)


def setting_of(hf, tokenizer) -> str:
    """sha256 over the configuration and all of the tokenizer that decides its ids."""
    config = {k: v for k, v in hf.config.to_diff_dict().items() if k not in NO_SETTING}
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str()).items()
        rules = {name: rule for name, rule in rules if name not in ("padding", "truncation")}  # of the last call
    else:
        rules = [tokenizer.get_vocab(), tokenizer.init_kwargs]
    parts = json.dumps([config, rules], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()
