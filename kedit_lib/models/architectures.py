"""Which models can be edited: where a family keeps the parts that editing touches (layouts.yaml; a further family is
one more entry), what is checked when a model is loaded or wrapped, and what identifies it in caches and stores."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..data.config import read_yaml
from ..errors import KeditError, explained
from .hooks import hooks


@dataclass(frozen=True)
class Layout:
    """Module paths from the causal-LM object; those with a layer are relative to the layer."""

    layers: str  # the list of decoder layers
    mlp_out: str  # the edited linear map W, [d_model, d_ff] (or its transpose)
    mlp: str  # the module whose output is added to the residual stream
    attn_out: str  # the attention's output projection
    norm: str  # final norm
    head: str = "lm_head"
    transposed: bool = False  # GPT-2's Conv1D stores W as [d_ff, d_model]
    mlp_norm: str | None = None  # norm between the MLP and the residual stream (None: its output is added as it is)


FAMILIES = read_yaml(Path(__file__).with_name("layouts.yaml"))
LAYOUTS = {family: Layout(**parts) for families, parts in FAMILIES.items() for family in families.split()}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
RECURRENT = re.compile(r"mamba|rwkv|xlstm|recurrent|jamba|zamba|bamba|lfm|hybrid|qwen3_next|qwen3_5|_h1?$|kimi_linear")
ROUNDINGS = 16  # of the model's dtype, relative to its largest logit: what two ways to the same logits may differ by
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MERGE = "merge it first: model.merge_and_unload() of peft gives a plain model, save that one and load it"
NO_SETTING = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")  # change no number, or are keys already


def check_type(config) -> None:
    """KeditError, with the reason, for a `config` of a family or a variant that cannot be edited here."""
    family, text = config.model_type, config.get_text_config()
    kind, layer_types = text.model_type, set(getattr(text, "layer_types", None) or ())
    experts = "moe" in kind or any((getattr(text, name, None) or 0) > 1 for name in EXPERTS)
    if kind in ("llama4_text", "gemma4_text"):  # their configurations name experts of dense models too
        experts = text.moe_layers if kind == "llama4_text" else text.enable_moe_block
    recurrent = RECURRENT.search(kind) or layer_types & {"linear_attention", "mamba", "conv", "recurrent"}
    encoder = text.is_encoder_decoder or (kind not in LAYOUTS and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    shares = kind == "gemma4_text" and (text.num_kv_shared_layers or text.hidden_size_per_layer_input)
    norms_last = kind == "opt" and not (text.do_layer_norm_before and text.word_embed_proj_dim == text.hidden_size)
    packed = _packing(config)
    for why, holds in {
        f"its weights are quantised ({packed}); load the model that was quantised, or model.dequantize()": packed,
        "it is a mixture of experts, and which expert's map holds a fact is not known; take a dense model": experts,
        "it has recurrent layers, and the methods read keys of an MLP after attention; take a transformer": recurrent,
        "it is an encoder, and the methods edit models that continue a text; take a causal language model": encoder,
        "its layers share keys or take inputs of their own (the E models); take a dense Gemma 4": shares,
        "this OPT has its norms after the sums or narrower embeddings (350M has); take another size": norms_last,
    }.items():
        if holds:
            raise KeditError(f"model type {family!r}: cannot be edited here, {why}")
    if family not in LAYOUTS:
        add = "add to kedit_lib.models.architectures.LAYOUTS an entry with layers, mlp_out, mlp, attn_out, norm, head"
        raise KeditError(f"model type {family!r}: its layout is unknown (known: {', '.join(sorted(LAYOUTS))}); {add}")


def _packing(config) -> str | None:
    """How the configuration says that its weights are packed: "gptq, 4 bits"."""
    if not (found := getattr(config, "quantization_config", None)):
        return None
    said = found if isinstance(found, dict) else found.to_dict()
    bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits")
    kind = said.get("quant_method") or "in a way it does not name"
    return f"{getattr(kind, 'value', kind)}{f', {bits} bits' if bits else ''}"


def layout_of(hf: nn.Module) -> Layout:
    """The layout of a causal LM. KeditError when its family is unknown, lacks a module, or cannot be edited."""
    check_type(hf.config)
    layout = LAYOUTS[kind := hf.config.model_type]
    in_layer = filter(None, (layout.mlp_out, layout.mlp, layout.attn_out, layout.mlp_norm))
    for path in (layout.layers, layout.norm, layout.head, *(f"{layout.layers}.0.{path}" for path in in_layer)):
        with explained(f"model type {kind!r}: has no module {path!r}", "its entry in LAYOUTS does not fit"):
            hf.get_submodule(path)
    return layout


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
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
    no model, no tokenizer, adapters, or weights that are not in memory."""
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
    if any(p.device.type == "meta" for p in hf.parameters()):
        remedy = "load it on devices that hold all of it, or in a smaller dtype"
        raise KeditError(f"{name}: has weights on disk or nowhere (meta); {remedy}")
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
    """KeditError unless `model.logits` of the last layer's stream are the model's own; whether layers return tuples."""
    ids, seen = torch.arange(min(4, model.hf.get_input_embeddings().num_embeddings), device=model.device)[None], []
    with hooks((model.layers[-1], lambda module, args, output: seen.append(output))):
        own = model.hf(input_ids=ids, use_cache=False).logits.to(model.math_dtype)
    tuples = isinstance(seen[0], tuple)
    off = (model.logits(seen[0][0] if tuples else seen[0]) - own).abs().max() / own.abs().max().clamp(min=1e-30)
    if not off <= ROUNDINGS * torch.finfo(model.dtype).eps:
        why = f"model type {model.hf.config.model_type!r} does more after its last layer; its entry in LAYOUTS must too"
        raise KeditError(f"{model.name}: head(norm(stream)) is {off:.2g} off the model's own logits, relatively: {why}")
    return tuples
