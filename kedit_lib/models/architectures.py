"""Where a model family keeps the parts that editing touches. A further family is one more entry."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ..errors import KeditError


@dataclass(frozen=True)
class Layout:
    """Module paths from the causal-LM object; those with a layer are relative to the layer."""

    layers: str  # the list of decoder layers
    mlp_out: str  # the edited linear map W, [d_model, d_ff] (or its transpose)
    mlp: str  # the module whose output is added to the residual stream
    attn_out: str  # the attention's output projection
    norm: str  # final norm
    head: str
    transposed: bool = False  # GPT-2's Conv1D stores W as [d_ff, d_model]
    mlp_norm: str | None = None  # norm between the MLP and the residual stream (None: its output is added as it is)


LLAMA = Layout(
    layers="model.layers",
    mlp_out="mlp.down_proj",
    mlp="mlp",
    attn_out="self_attn.o_proj",
    norm="model.norm",
    head="lm_head",
)
GPT2 = Layout(
    layers="transformer.h",
    mlp_out="mlp.c_proj",
    mlp="mlp",
    attn_out="attn.c_proj",
    norm="transformer.ln_f",
    head="lm_head",
    transposed=True,
)

GPTJ = Layout(  # attention and MLP side by side, both read the layer's one norm
    layers="transformer.h",
    mlp_out="mlp.fc_out",
    mlp="mlp",
    attn_out="attn.out_proj",
    norm="transformer.ln_f",
    head="lm_head",
)
GPT_NEOX = Layout(  # side by side too (config.use_parallel_residual), with a norm each
    layers="gpt_neox.layers",
    mlp_out="mlp.dense_4h_to_h",
    mlp="mlp",
    attn_out="attention.dense",
    norm="gpt_neox.final_layer_norm",
    head="lm_head",
)
GEMMA2 = replace(LLAMA, mlp_norm="post_feedforward_layernorm")

LAYOUTS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gpt2": GPT2,
    "gptj": GPTJ,
    "gpt_neox": GPT_NEOX,
}


def layout_of(hf: nn.Module) -> Layout:
    """The layout of a Hugging Face causal LM, by `config.model_type`.

    Raises KeditError that names what an entry must say when the family is unknown or lacks a module.
    """
    kind = hf.config.model_type
    if kind not in LAYOUTS:
        raise KeditError(
            f"model type {kind!r}: its layout is unknown (known: {', '.join(sorted(LAYOUTS))}); add an entry to "
            "kedit_lib.models.architectures.LAYOUTS that names: layers, mlp_out, mlp, attn_out, norm, head"
        )
    layout = LAYOUTS[kind]
    parts = (layout.mlp_out, layout.mlp, layout.attn_out, layout.mlp_norm)
    in_layer = (f"{layout.layers}.0.{path}" for path in filter(None, parts))
    for path in (layout.layers, layout.norm, layout.head, *in_layer):
        try:
            hf.get_submodule(path)
        except AttributeError:
            message = f"model type {kind!r}: has no module {path!r}; its entry in LAYOUTS does not fit"
            raise KeditError(message) from None
    return layout
