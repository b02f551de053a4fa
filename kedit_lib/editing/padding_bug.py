"""Prompts padded on the left and indexed as if padded on the right: a bug of public code that ran PMET on Llama,
rebuilt for PMET and, as it would be there, for MEMIT.

A batch of prompts is padded to one length. With the padding on the left, index l of a row is no longer the subject's
last token: in a row with q tokens of padding it is the token q places before it, or padding. There δ is added, v₀ and
keys are read, and the target is expected q places too early. Only the longest prompt of a batch is treated as meant.
"""

import torch
from torch import Tensor

from ..models.hooks import FILL, trace
from .engine import Plain


def padded_in_front(model, rows: list[tuple[int, ...]]) -> dict[str, Tensor]:
    """input_ids [n, longest] and attention_mask [n, 1, longest, longest], 0 where a token is seen.

    At padding, which sees nothing, all scores are the lowest number, so every token counts alike: as in the
    transformers of that time. Its mask of today gives NaN there.
    """
    longest, device, dtype = max(map(len, rows)), model.device, model.dtype
    ids = torch.tensor([[FILL] * (longest - len(row)) + list(row) for row in rows], device=device)
    front = torch.tensor([longest - len(row) for row in rows], device=device)
    at = torch.arange(longest, device=device)
    seen = (at <= at[:, None]) & (at >= front[:, None, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return {"input_ids": ids, "attention_mask": mask[:, None]}


class PaddedInFront(Plain):
    """The plain engine on rows padded on the left, with the indices of rows padded on the right."""

    def _padded(self, ids):
        return padded_in_front(self.model, ids)


def keys_at(model, prompts, layers) -> dict[int, Tensor]:
    """`compute_k.keys_at` with the bug: {layer: [n, d_ff]}, all prompts in one batch."""
    wanted = {i: model.mlp_out(i) for i in layers}
    seen, _ = trace(model.hf, inputs=wanted.values(), **padded_in_front(model, [p.ids for p in prompts]))
    at = torch.arange(len(prompts)), torch.tensor([p.lookup for p in prompts])
    return {i: seen[module][at].to(model.math_dtype) for i, module in wanted.items()}
