"""The least that an edit costs, counted from its shapes: floating-point operations, and bytes of weights to be read.

What has to be computed for one MEMIT, PMET or ROME edit, exactly and with nothing twice:

    first pass   every token of the prompts that begin differently, up to layer z; above it those in front of the
                 subject's last token, in the last layer their keys and values only
    a step       the tail tokens through the layers above z, in the last layer only what is read, and the head there;
                 but for the last step, the gradient costs as much again
    writing      two triangular solves with the factor of C for one vector, and an outer product, a layer

A multiply-add counts two operations. Scores of attention are left out: prompts are short. Bytes: all weights that are
used are read once in every pass and once for its gradient, the factor (float64) twice; activations count nothing.
"""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cost:
    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other):
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times):
        return Cost(self.flops * times, self.bytes * times)

    def seconds(self, peak):
        """At the peaks of a machine, from `peaks`."""
        return max(self.flops / peak.flops, self.bytes / peak.bytes)


def peaks(device, dtype, size=1024, seconds=0.3):
    """Operations and bytes a second that this machine reaches, in a square matrix product and in a copy."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    copied, into = (torch.empty(64 << 20, dtype=torch.uint8, device=device).fill_(i) for i in range(2))
    return Cost(
        2 * size**3 / fastest(lambda: a @ b, device, seconds),
        2 * len(copied) / fastest(lambda: into.copy_(copied), device, seconds),
    )


def fastest(work, device, seconds):
    """Seconds of the fastest of several calls."""
    found, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(found) < 3:
        found.append(timed(work, device)[0])
    return min(found)


def timed(work, device):
    """(seconds, result): of the wall clock with an accelerator, else of this process, which others do not disturb."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        result = work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begin, result
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def edit_cost(model, method, requests, steps):
    """Of editing with `requests` (kedit_lib.targets.Request) together, where request i took steps[i] evaluations."""
    config, size = model.hf.config, model.dtype.itemsize
    heads = getattr(config, "num_attention_heads", 1)
    kv = 2 * model.d_model * (getattr(config, "num_key_value_heads", None) or heads) // heads * model.d_model
    mlp = sum(p.numel() for p in model.mlp(0).parameters() if p.dim() == 2)
    layer = sum(p.numel() for p in model.layers[0].parameters() if p.dim() == 2)
    head, z, above = model.d_model * config.vocab_size, method.layers[-1], model.n_layers - 1 - method.layers[-1]
    pasts = {
        row[:i]
        for r in requests
        for p in (*r.prompts, r.kl)
        for row in [p.ids + r.target[:-1]]
        for i in range(1, len(row) + 1)
    }
    fronts = {p.ids[:i] for r in requests for p in (*r.prompts, r.kl) for i in range(1, p.lookup + 1)}
    total = Cost(2 * len(pasts) * (z + 1) * layer, (z + 1) * layer * size)
    if above:
        total += Cost(2 * len(fronts) * ((above - 1) * layer + kv), ((above - 1) * layer + kv) * size)
    for one, n in zip(requests, steps, strict=True):
        tail = 1 + sum(len(p.ids) - p.lookup + len(one.target) - 1 for p in one.prompts)
        read = 1 + len(one.prompts) * len(one.target)
        once = 2 * (tail * (above * layer - mlp) + read * (mlp + head)) if above else 2 * read * head
        total += Cost(once * (2 * n - 1))
    passes = 2 * max(steps) - 1
    total += Cost(0, passes * (above * layer + head) * size)
    n, d = len(requests), model.d_ff
    write = Cost(n * (2 * d * d + 2 * n * d + 2 * d * model.d_model), 2 * 8 * d * d + 2 * d * model.d_model * size)
    return total + write * len(method.layers)
