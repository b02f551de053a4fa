"""Where a model family keeps the parts that editing touches. A further family is one more entry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .errors import KeditError


@dataclass(frozen=True)
class Layout:
    """Module paths from the causal-LM object; those with a layer are relative to the layer."""

    layers: str  # the list of decoder layers
    mlp_out: str  # the edited linear map W, [d_model, d_ff] (or its transpose)
    mlp: str  # the module whose output is added to the residual stream
    attn_out: str  # the attention's output projection
    norm: str  # final norm
    head: str
    rotary: str | None  # gives (cos, sin) from (hidden, position_ids); None: positions are embedded below layer 0
    transposed: bool = False  # GPT-2's Conv1D stores W as [d_ff, d_model]


LLAMA = Layout(
    layers="model.layers",
    mlp_out="mlp.down_proj",
    mlp="mlp",
    attn_out="self_attn.o_proj",
    norm="model.norm",
    head="lm_head",
    rotary="model.rotary_emb",
)
GPT2 = Layout(
    layers="transformer.h",
    mlp_out="mlp.c_proj",
    mlp="mlp",
    attn_out="attn.c_proj",
    norm="transformer.ln_f",
    head="lm_head",
    rotary=None,
    transposed=True,
)

LAYOUTS = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "gpt2": GPT2}


def layout_of(hf: nn.Module) -> Layout:
    """The layout of a Hugging Face causal LM, by `config.model_type`.

    Raises KeditError that names what an entry must say when the family is unknown or lacks a module.
    """
    kind = hf.config.model_type
    if kind not in LAYOUTS:
        raise KeditError(
            f"model type {kind!r}: its layout is unknown (known: {', '.join(sorted(LAYOUTS))}); add an entry to "
            "kedit_lib.layout.LAYOUTS with the names of: layers, mlp_out, mlp, attn_out, norm, head, rotary"
        )
    layout = LAYOUTS[kind]
    in_layer = (f"{layout.layers}.0.{path}" for path in (layout.mlp_out, layout.mlp, layout.attn_out))
    for path in (layout.layers, layout.norm, layout.head, *filter(None, [layout.rotary]), *in_layer):
        try:
            hf.get_submodule(path)
        except AttributeError:
            message = f"model type {kind!r}: has no module {path!r}; its entry in LAYOUTS does not fit"
            raise KeditError(message) from None
    return layout
