"""An MLP sees each token by itself, so it can be run on some of a batch's tokens: on those that are read, or once on
all that are the same. These hooks take the wanted ones of [n, T, width] out in front of the MLP and put them back after
it. So `logits_at` scores many short texts at the cost of what they do not share."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .hooks import by_likeness, hooks, pad

ROWS = 64  # texts in a pass; with more, padding and memory cost more than a pass


def only(mlp, index: Tensor | None):
    """A context in which `mlp` is run on the tokens `index`, into n·T; the others get 0 of it. None: on all."""

    def put_back(output: Tensor, tokens: int) -> Tensor:
        return output.new_zeros(tokens, output.shape[-1]).index_copy(0, index, output)

    return _between([] if index is None else [mlp], index, put_back)


class Alike:
    """Tokens of several prompts; tokens with the same ids up to and including their own are computed once.

    take   [m] indices into n·T, one token of each kind; back: [n·T] the kind of every token (of padding: any)
    """

    def __init__(self, rows: list[tuple[int, ...]], width: int, device):
        kinds, take, back = {}, [], []
        for r, row in enumerate(rows):
            past = -1
            for i, token in enumerate(row):
                past = kinds.setdefault((past, token), len(kinds))
                if past == len(take):
                    take.append(r * width + i)
                back.append(past)
            back += [0] * (width - len(row))
        self.take, self.back = torch.tensor(take, device=device), torch.tensor(back, device=device)

    def together(self, mlps):
        """A context in which each of `mlps` is run once for all tokens of one kind."""
        return _between(mlps, self.take, lambda output, tokens: output[self.back])


def _between(mlps, index: Tensor, put_back):
    """put_back(output [m, width], n·T) → [n·T, width]. The tokens of OPT's MLPs come as [n·T, width], of others' in
    [n, T, width]."""
    shape = {}

    def take(module, args):
        shape[module] = args[0].shape[:-1]
        taken = args[0].flatten(0, -2).index_select(0, index)
        return (taken if args[0].dim() == 2 else taken[None], *args[1:])

    def put(module, args, output):
        return put_back(output.flatten(0, -2), shape[module].numel()).view(*shape[module], -1)

    return hooks(*[(mlp, put) for mlp in mlps], before=[(mlp, take) for mlp in mlps])


@torch.no_grad()
def logits_at(model, texts: list[tuple[int, ...]], places: list[range]) -> Iterator[tuple[list[int], Tensor]]:
    """For each batch of `texts` (ids) its indices, and the logits [m, vocabulary] at their `places`, one text after
    the other, in math dtype: the m tokens that the batch's places name, in their order."""
    *lower, last = (model.mlp(i) for i in range(model.n_layers))
    for part in by_likeness(texts, ROWS):
        ids = pad([texts[i] for i in part], model.device)
        width = ids.shape[1]
        read = torch.tensor([row * width + at for row, i in enumerate(part) for at in places[i]], device=ids.device)
        at_read = hooks(before=[(model.head, lambda _, args, read=read: (args[0].flatten(0, 1)[read][None],))])
        with Alike([texts[i] for i in part], width, ids.device).together(lower), only(last, read), at_read:
            logits = model.hf(input_ids=ids, use_cache=False).logits[0]
        yield part, logits.to(model.math_dtype)
