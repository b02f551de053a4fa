"""What a model says next at chosen places of many short texts, at the cost of what these texts do not share.

Questions about one relation begin alike, and so do those about one person; after the last place that is read nothing
matters. So the MLPs, most of the work, run once for all tokens with one past, the last one on the tokens that are
read alone, and so does the head.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .hooks import by_likeness, pad
from .tokenwise import Alike, only, picked

ROWS = 64  # texts in a pass; with more, padding and memory cost more than a pass
FEW = 64  # tokens


@torch.no_grad()
def logits_at(model, texts: list[tuple[int, ...]], places: list[range]) -> Iterator[tuple[list[int], Tensor]]:
    """For each batch of `texts` (ids) its indices, and the logits [m, vocabulary] at their `places`, one text after
    the other, in math dtype: the m tokens that the batch's places name, in their order."""
    *lower, last = (model.mlp(i) for i in range(model.n_layers))
    for part in by_likeness(texts, ROWS):
        ids = pad([texts[i] for i in part], model.device)
        width = ids.shape[1]
        read = torch.tensor([row * width + at for row, i in enumerate(part) for at in places[i]], device=ids.device)
        with contextlib.ExitStack() as inside:
            inside.enter_context(Alike([texts[i] for i in part], width, ids.device).together(lower))
            inside.enter_context(only(last, read))
            inside.enter_context(picked(model.head, read))
            logits = model.hf(input_ids=ids, use_cache=False).logits[0]
        yield part, logits.to(model.math_dtype)


def through(head: nn.Module, x: Tensor) -> Tensor:
    """head(x) [..., vocabulary]; of few tokens [m, d_model] on a CPU as (W xᵀ)ᵀ, in half the time."""
    few = x.dim() == 2 and len(x) <= FEW and x.device.type == "cpu" and x.dtype.itemsize > 2
    return _Few.apply(x, head.weight) if few and type(head) is nn.Linear and head.bias is None else head(x)


class _Few(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return (weight @ x.T).T

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weight, None
