"""One forward pass that hands back what flows through chosen modules, and goes no further than needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

FILL = 0  # fills rows up and is never read: an id that every model embeds, whatever its pad token is


class Done(Exception):
    """Ends a forward pass once the last module of interest has run."""


def pad(rows: list[tuple[int, ...]], device) -> Tensor:
    """Rows of ids as one tensor [n, longest], padded on the right; causal attention never looks there, so that no mask
    is needed and positions count from 0."""
    longest = max(map(len, rows))
    return torch.tensor([list(r) + [FILL] * (longest - len(r)) for r in rows], device=device)


def by_length(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of at most `size`, the shortest rows first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def by_likeness(rows: list[tuple[int, ...]], size: int) -> Iterator[list[int]]:
    """As `by_length`; among rows of one length, those that begin alike share a batch. A row that is much longer than
    the shortest of its batch begins another, lest all be padded to its length."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    for part in by_length([len(rows[i]) for i in order], size):
        part = [order[k] for k in part]
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
        x = x[0] if isinstance(x, tuple) else x
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
    """A forward hook that adds `vectors` [n, d] at (rows, tokens) to a module's output [n, t, d] or [n·t, d], or to a
    tuple's first part."""

    def hook(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        rows = first.view(len(vectors), -1, first.shape[-1])
        first = rows.index_put(at, (rows[at].to(vectors.dtype) + vectors).to(first.dtype)).view_as(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    return hook


def no_bar(progress: bool) -> bool:
    """tqdm's `disable`: no bar is asked for, or TQDM_DISABLE is set, which tqdm's notebook bar does not heed."""
    return not progress or bool(os.environ.get("TQDM_DISABLE"))
