"""What identifies a model in caches and stores, and its checks when it is loaded or wrapped."""

import hashlib
import json

import torch
from torch import Tensor, nn

from ..errors import KeditError
from .hooks import hooks

ROUNDINGS = 16  # of the model's dtype, relative to its largest logit: what two ways to the same logits may differ by
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MERGE = "merge it first: model.merge_and_unload() of peft gives a plain model, save that one and load it"
# They change no number, or are keys themselves.
NO_SETTING = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


def digest_of(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def setting_of(hf, tokenizer) -> str:
    """sha256 over the configuration and all of the tokenizer that decides its ids."""
    config = {k: v for k, v in hf.config.to_diff_dict().items() if k not in NO_SETTING}
    rules = json.loads(tokenizer.backend_tokenizer.to_str()).items()
    rules = {name: rule for name, rule in rules if name not in ("padding", "truncation")}  # of the last call
    return hashlib.sha256(json.dumps([config, rules], sort_keys=True, default=str).encode()).hexdigest()


def check_owner(what: str, checksum: str | None, model, remedy: str) -> None:
    """KeditError unless `checksum` (None: unknown) is that of the unedited `model`, in its dtype."""
    if checksum is not None and checksum != model.checksum:
        checksums = f"checksum {checksum[:12]}, {model.name} has {model.checksum[:12]}"
        raise KeditError(f"{what} of another model or dtype ({checksums}); {remedy}")


def unwrapped(hf, tokenizer, name: str) -> nn.Module:
    """The plain causal LM in `hf`, which torch.compile or (Distributed)DataParallel may have wrapped. KeditError for
    no model, no tokenizer, adapters, or weights that are not all in one place."""
    while isinstance(hf, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(hf, "_orig_mod"):
        hf = hf._orig_mod if hasattr(hf, "_orig_mod") else hf.module
    if not isinstance(hf, nn.Module) or getattr(hf, "get_output_embeddings", lambda: None)() is None:
        what = f"a {type(hf).__name__} is not a causal language model of transformers"
        raise KeditError(f"{name}: {what}; pass an AutoModelForCausalLM")
    if not callable(tokenizer) or not hasattr(tokenizer, "is_fast"):
        raise KeditError(f"{name}: came without its tokenizer; give it: transformers.AutoTokenizer.from_pretrained(…)")
    if not tokenizer.is_fast:
        raise KeditError(f"{name}: {type(tokenizer).__name__} has no character offsets; load its fast version")
    if any(hasattr(module, "base_layer") or type(module).__module__.startswith("peft.") for module in hf.modules()):
        raise KeditError(f"{name}: has an adapter, in which an edit would be lost on saving; {MERGE}")
    devices = sorted({str(p.device) for p in hf.parameters()})
    if len(devices) > 1 or "meta" in devices:
        where = "on disk or nowhere (meta)" if "meta" in devices else f"on {', '.join(devices)}"
        raise KeditError(f"{name}: has weights {where}; load it on one device: without device_map, in a smaller dtype")
    return hf


def check_weights(model) -> None:
    """KeditError unless all weights are finite, and the edited maps are matrices of one shape and a plain dtype."""
    for name, parameter in model.hf.named_parameters():
        if parameter.dtype in PLAIN and not torch.isfinite(parameter).all():
            raise KeditError(f"{model.name}: weight {name!r} holds NaN or inf; reload or re-download the model")
    for layer in range(model.n_layers):
        weight = model.weight(layer)
        if weight.dtype not in PLAIN or weight.dim() != 2 or weight.shape != model.weight(0).shape:
            found = f"{model.weight_name(layer)} is {tuple(weight.shape)} of {weight.dtype}"
            must = "edited maps must be matrices of one shape in float32, bfloat16, float16 or float64 (not quantised)"
            raise KeditError(f"{model.name}: {found}; {must}")


def check_logits(model) -> bool:
    """KeditError unless `model.logits` of the last layer's stream are the model's own. Returns whether layers return
    tuples, which the stream leads."""
    ids, seen = torch.arange(min(4, model.hf.get_input_embeddings().num_embeddings), device=model.device)[None], []
    with hooks((model.layers[-1], lambda module, args, output: seen.append(output))):
        own = model.hf(input_ids=ids, use_cache=False).logits.to(model.math_dtype)
    tuples = isinstance(seen[0], tuple)
    off = (model.logits(seen[0][0] if tuples else seen[0]) - own).abs().max() / own.abs().max().clamp(min=1e-30)
    if not off <= ROUNDINGS * torch.finfo(model.dtype).eps:
        why = f"model type {model.hf.config.model_type!r} does more after its last layer; its entry in LAYOUTS must too"
        raise KeditError(f"{model.name}: head(norm(stream)) is {off:.2g} off the model's own logits, relatively: {why}")
    return tuples
