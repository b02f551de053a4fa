"""An MLP sees each token by itself, so it can be run on some of a batch's tokens: on those that are read, or once on
all that are the same. Elsewhere in a layer tokens keep their places in [n, T, width]; these hooks take the wanted ones
out in front of the MLP and put them back after it."""

import contextlib

import torch
from torch import Tensor

from .hooks import hooks


@contextlib.contextmanager
def only(mlp, index: Tensor):
    """Inside, `mlp` is run on the tokens `index`, into n·T; the others get 0 of it."""

    def put_back(output: Tensor, tokens: int) -> Tensor:
        return output.new_zeros(tokens, output.shape[-1]).index_copy(0, index, output)

    with _between([mlp], index, put_back):
        yield


@contextlib.contextmanager
def picked(head, index: Tensor):
    """Inside, `head` is run on the tokens `index`, into n·T, and its output is [1, m, vocabulary]: theirs alone."""
    with hooks(before=[(head, lambda module, args: (args[0].flatten(0, 1)[index][None], *args[1:]))]):
        yield


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


@contextlib.contextmanager
def _between(mlps, index: Tensor, put_back):
    """put_back(output [m, width], n·T) → [n·T, width]. The tokens of OPT's MLPs come as [n·T, width], of others' in
    [n, T, width]."""
    shape = {}

    def take(module, args):
        shape[module] = args[0].shape[:-1]
        taken = args[0].reshape(-1, args[0].shape[-1])[index]
        return (taken if args[0].dim() == 2 else taken[None], *args[1:])

    def put(module, args, output):
        flat = put_back(output.reshape(-1, output.shape[-1]), shape[module].numel())
        return flat.view(*shape[module], -1)

    with hooks(*[(mlp, put) for mlp in mlps], before=[(mlp, take) for mlp in mlps]):
        yield
