"""Keys and values at the subject's last token.

k is the input of `mlp.down_proj` there. MEMIT's key is the mean of two group means: the clean prompt,
and the sampled contexts (`compute_ks.py` of kmeng01/memit); ROME's k̄ is the plain mean over all
contexts (`compute_u.py` of kmeng01/rome).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.hooks import pad, trace
from ..models.memory import in_parts

ROWS = 256  # prompts a forward pass, bounds memory


@torch.no_grad()
def keys_at(model, prompts, layers) -> dict[int, Tensor]:
    """{layer: [n, d_ff]} inputs of the edited map at each prompt's lookup token; one forward for all layers."""
    return _at_lookup(model, prompts, inputs={i: model.mlp_out(i) for i in layers}, last=model.mlp_out(max(layers)))


@torch.no_grad()
def outputs_at(model, prompts, module, last=None) -> Tensor:
    """[n, d_model] outputs of `module` at each prompt's lookup token."""
    return _at_lookup(model, prompts, outputs={0: module}, last=last or module)[0]


def _at_lookup(model, prompts, inputs=(), outputs=(), last=None) -> dict[int, Tensor]:
    inputs, outputs = dict(inputs), dict(outputs)

    def some(begin: int, end: int) -> dict[int, Tensor]:
        rows = prompts[begin:end]
        ids = pad([p.ids for p in rows], model.device)
        seen_in, seen_out = trace(model.hf, ids, inputs.values(), outputs.values(), last)
        at = (torch.arange(len(rows), device=ids.device), torch.tensor([p.lookup for p in rows], device=ids.device))
        found = {name: seen_in[module][at] for name, module in inputs.items()}
        return found | {name: seen_out[module][at] for name, module in outputs.items()}

    parts = in_parts(some, [1.0] * len(prompts), ROWS, "reading a prompt")
    return {name: torch.cat([part[name] for part in parts]).to(model.math_dtype) for name in (*inputs, *outputs)}


def context_mean(values: Tensor, n_contexts: int, grouped: bool) -> Tensor:
    """Mean over contexts: [n·c, d] (contexts of one edit side by side, clean first) → [n, d].

    grouped: ½ clean + ½ mean of the others (MEMIT, PMET); else the plain mean (ROME).
    """
    values = values.view(-1, n_contexts, values.shape[-1])
    if not grouped or n_contexts == 1:
        return values.mean(1)
    return (values[:, 0] + values[:, 1:].mean(1)) / 2
