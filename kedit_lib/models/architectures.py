"""Where a model family keeps the parts that editing touches, and which families cannot be edited. A further family is
one more entry."""

import re
from dataclasses import dataclass, replace

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import KeditError, explained


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


LLAMA = Layout("model.layers", "mlp.down_proj", "mlp", "self_attn.o_proj", "model.norm")
GEMMA2 = replace(LLAMA, mlp_norm="post_feedforward_layernorm")
GPT2 = Layout("transformer.h", "mlp.c_proj", "mlp", "attn.c_proj", "transformer.ln_f", transposed=True)
GPTJ = replace(GPT2, mlp_out="mlp.fc_out", attn_out="attn.out_proj", transposed=False)  # side by side
FALCON = replace(GPTJ, mlp_out="mlp.dense_4h_to_h", attn_out="self_attention.dense")

LIKE_LLAMA = "llama mistral ministral3 qwen2 qwen3 phi3 olmo smollm3 stablelm glm gemma granite cohere cohere2"
LAYOUTS = {
    **dict.fromkeys(LIKE_LLAMA.split(), LLAMA),  # phi3: Phi-4 too; Cohere's attention and MLP are side by side
    **dict.fromkeys(("olmo2", "olmo3", "gemma2", "gemma3_text", "gemma4_text"), GEMMA2),
    "glm4": replace(LLAMA, mlp_norm="post_mlp_layernorm"),
    "starcoder2": replace(LLAMA, mlp_out="mlp.c_proj"),
    "llama4_text": replace(LLAMA, mlp_out="feed_forward.down_proj", mlp="feed_forward"),
    "gpt2": GPT2,
    "gptj": GPTJ,
    # side by side too (config.use_parallel_residual), with a norm each
    "gpt_neox": Layout("gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention.dense", "gpt_neox.final_layer_norm"),
    "falcon": FALCON,
    "bloom": replace(FALCON, mlp="mlp.dense_4h_to_h"),  # its MLP adds the stream by itself
    # no module of OPT holds the MLP alone
    "opt": Layout("model.decoder.layers", "fc2", "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm"),
}

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
RECURRENT = re.compile(r"mamba|rwkv|xlstm|recurrent|jamba|zamba|bamba|lfm|hybrid|qwen3_next|qwen3_5|_h1?$|kimi_linear")


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
        add = "kedit_lib.models.architectures.LAYOUTS an entry with layers, mlp_out, mlp, attn_out, norm, head"
        known = ", ".join(sorted(LAYOUTS))
        raise KeditError(f"model type {family!r}: its layout is unknown (known: {known}); add to {add}")


def _packing(config) -> str | None:
    """How the configuration says that its weights are packed: "gptq, 4 bits"."""
    if not (found := getattr(config, "quantization_config", None)):
        return None
    said = found if isinstance(found, dict) else found.to_dict()
    bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits")
    kind = said.get("quant_method") or "in a way it does not name"
    return f"{getattr(kind, 'value', kind)}{f', {bits} bits' if bits else ''}"


def layout_of(hf: nn.Module) -> Layout:
    """The layout of a Hugging Face causal LM, by `config.model_type`. KeditError when the family is unknown, lacks a
    module, or cannot be edited."""
    check_type(hf.config)
    kind = hf.config.model_type
    layout = LAYOUTS[kind]
    parts = (layout.mlp_out, layout.mlp, layout.attn_out, layout.mlp_norm)
    in_layer = (f"{layout.layers}.0.{path}" for path in filter(None, parts))
    for path in (layout.layers, layout.norm, layout.head, *in_layer):
        with explained(f"model type {kind!r}: has no module {path!r}", "its entry in LAYOUTS does not fit"):
            hf.get_submodule(path)
    return layout
