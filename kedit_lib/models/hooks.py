"""Forward passes that return the activations of chosen modules, stop as early as possible, and run an MLP only on the
tokens that need it: on those that are read, or once on all that are the same, since it sees each token by itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

FILL = 0  # fills rows up and is never read: an id that every model embeds, whatever its pad token is
ROWS = 64  # texts in a pass of `logits_at`; with more, padding and memory cost more than a pass


class Done(Exception):
    """Ends a forward pass once the last module of interest has run."""


def pad(rows: list[tuple[int, ...]], device) -> Tensor:
    """Rows of ids as a tensor [n, longest], padded on the right, where causal attention never looks: no mask needed."""
    longest = max(map(len, rows))
    return torch.tensor([list(r) + [FILL] * (longest - len(r)) for r in rows], device=device)


def by_likeness(rows: list[tuple[int, ...]], size: int) -> Iterator[list[int]]:
    """Indices in batches of at most `size`, the shortest rows first; of one length those that begin alike together. A
    row that is much longer than the shortest of its batch begins another, lest all be padded to its length."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i]))
    for begin in range(0, len(order), size):
        part = order[begin : begin + size]
        while part:
            most = 4 * len(rows[part[0]]) + 64
            alike = [i for i in part if len(rows[i]) <= most]
            yield alike
            part = part[len(alike) :]


@contextmanager
def hooks(*pairs, before=()):
    """Forward hooks inside `with hooks((module, function), …):`, always removed. before: the same for pre-hooks."""
    handles = [module.register_forward_hook(function) for module, function in pairs]
    handles += [module.register_forward_pre_hook(function) for module, function in before]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(hf, input_ids: Tensor, inputs=(), outputs=(), last: nn.Module | None = None, gradient=False, **kwargs):
    """Run `hf` on ids [n, t], up to `last`; return ({module: its input}, {module: its output}), by default without a
    graph. Of a tuple the first part; what flows as [n·t, width] (through OPT's MLPs) comes back as [n, t, width]."""
    seen_in, seen_out = {}, {}

    def keep(seen: dict, module, x):
        x = (x[0] if isinstance(x, tuple) else x).to(input_ids.device)
        seen[module] = x.view(*input_ids.shape, -1) if x.dim() == 2 and len(x) == input_ids.numel() else x

    def stop(module, args, output):
        raise Done

    pairs = [(m, lambda module, args, output: keep(seen_in, module, args)) for m in inputs]
    pairs += [(m, lambda module, args, output: keep(seen_out, module, output)) for m in outputs]
    pairs += [] if last is None else [(last, stop)]
    with hooks(*pairs), suppress(Done), torch.set_grad_enabled(gradient):
        hf(input_ids=input_ids, use_cache=kwargs.get("past_key_values") is not None, **kwargs)
    return seen_in, seen_out


def adding(vectors: Tensor, at: tuple[Tensor, Tensor]):
    """A forward hook that adds `vectors` [n, d] at (rows, tokens) to the output [n, t, d] or [n·t, d] of a module."""

    def hook(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        rows = first.view(len(vectors), -1, first.shape[-1])
        here, to = [index.to(rows.device) for index in at], vectors.to(rows.device)
        first = rows.index_put(here, (rows[here].to(to.dtype) + to).to(first.dtype)).view_as(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    return hook


def no_bar(progress: bool) -> bool:
    """tqdm's `disable`: no bar is asked for, or TQDM_DISABLE is set, which tqdm's notebook bar does not heed."""
    return not progress or bool(os.environ.get("TQDM_DISABLE"))


def only_at(mlp, index: Tensor | None):
    """A context in which `mlp` is run on the tokens `index`, into n·T; the others get 0 of it. None: on all."""
    mlps = [] if index is None else [mlp]
    return _between(mlps, index, lambda x, n: x.new_zeros(n, x.shape[-1]).index_copy(0, index.to(x.device), x))


class Alike:
    """Tokens of several prompts; tokens with the same ids up to and including their own are of one kind and computed
    once. take: [m] indices into n·T, one token of each kind; back: [n·T] the kind of every token (of padding: any)."""

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
        return _between(mlps, self.take, lambda output, tokens: output[self.back.to(output.device)])


def _between(mlps, index: Tensor, put_back):
    """Each of `mlps` gets the tokens `index` alone; put_back(output [m, width], n·T) → [n·T, width]. The tokens of
    OPT's MLPs come as [n·T, width], of others' in [n, T, width]."""
    shape = {}

    def take(module, args):
        shape[module] = args[0].shape[:-1]
        taken = args[0].flatten(0, -2).index_select(0, index.to(args[0].device))
        return (taken if args[0].dim() == 2 else taken[None], *args[1:])

    def put(module, args, output):
        return put_back(output.flatten(0, -2), shape[module].numel()).view(*shape[module], -1)

    return hooks(*[(mlp, put) for mlp in mlps], before=[(mlp, take) for mlp in mlps])


def at_places(x: Tensor, places: Tensor) -> Tensor:
    """[n, T, …] at `places`, indices into n·T from whatever device → [m, …]"""
    return x.flatten(0, 1)[places.to(x.device)]


@torch.no_grad()
def logits_at(model, texts: list[tuple[int, ...]], places: list[range]) -> Iterator[tuple[list[int], Tensor]]:
    """For each batch of `texts` (ids) its indices, and the logits [m, vocabulary] at the m tokens that their `places`
    name, one text after the other, in math dtype. Many short texts cost what they do not share."""
    *lower, last = (model.mlp(i) for i in range(model.n_layers))
    for part in by_likeness(texts, ROWS):
        ids = pad([texts[i] for i in part], model.device)
        width = ids.shape[1]
        read = torch.tensor([row * width + at for row, i in enumerate(part) for at in places[i]], device=ids.device)
        at_read = hooks(before=[(model.head, lambda _, args, read=read: (at_places(args[0], read)[None],))])
        with Alike([texts[i] for i in part], width, ids.device).together(lower), only_at(last, read), at_read:
            logits = model.hf(input_ids=ids, use_cache=False).logits[0]
        yield part, logits.to(model.math_dtype)
