"""The least that an edit costs, counted from its shapes: floating-point operations, and bytes to be read and written.

Counted is what has to be computed, exactly and with nothing twice, as one matrix product after another; a multiply-add
counts two operations. Left out are scores of attention, as prompts are short, and what is done entry by entry, except
where that is all the work (RECT's choice). Weights that are used are read once in every pass and once
for its gradient, by all edits of a batch together; activations count no bytes. Closed forms are in float64.

    targets      the first pass, then the steps: `optimising`
    closed form  on every edited layer `closed_form`, between two of them `measured_again`; ROME: `rank_one`

Fine-tuning, the baseline, is not counted.
"""

import time
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import torch

from kedit_lib.editing import FT, PMET, RECT, ROME, RROME, AlphaEdit

DOUBLE = 8  # bytes


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


# ------------------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Shape:
    """A model as the number of entries of its matrices: of a whole layer, therein of its keys' and values' and of its
    MLP's, and of the head. size, math_size: bytes of an entry as stored, and in the dtype of targets and updates."""

    d_model: int
    d_ff: int
    n_layers: int
    layer: int
    kv: int
    mlp: int
    head: int
    size: int
    math_size: int

    @classmethod
    def of(cls, model):
        config, d = model.hf.config, model.d_model
        heads = getattr(config, "num_attention_heads", 1)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        layer, mlp = (
            sum(p.numel() for p in module.parameters() if p.dim() == 2) for module in (model.layers[0], model.mlp(0))
        )
        sizes = model.dtype.itemsize, model.math_dtype.itemsize
        kv, head = 2 * d * d * kv_heads // heads, d * config.vocab_size
        return cls(d, model.d_ff, model.n_layers, layer, kv, mlp, head, *sizes)

    @property
    def edited(self) -> int:
        """Entries of W, the map that is edited."""
        return self.d_model * self.d_ff

    def product(self, entries, tokens) -> Cost:
        """Of some tokens with matrices of so many entries in all, read once."""
        return Cost(2 * tokens * entries, entries * self.size)

    def behind(self, layer, tokens, read=0) -> Cost:
        """Of running tokens through the layers behind one. Of the last of these only keys and values are needed at all
        tokens; the rest of it, and the head, at the `read` ones."""
        layers = self.n_layers - 1 - layer
        everywhere = (layers - 1) * self.layer + self.kv if layers else 0
        cost = self.product(everywhere, tokens)
        at_read = self.head + (self.layer - self.kv if layers else 0)
        return cost + self.product(at_read, read) if read else cost


def different(rows) -> int:
    """Tokens of some rows of ids, those that are the same with all in front of them once: attention is causal."""
    return len({row[:i] for row in rows for i in range(1, len(row) + 1)})


def up_to_lookup(prompts) -> set:
    """Ids up to the subject's last token and with it, those that are the same once."""
    return {p.ids[: p.lookup + 1] for p in prompts}


# ------------------------------------------------------------------------------------------------------- an edit


def edit_cost(method, call, steps) -> Cost:
    """Of the call that `method.prepare` made ready, where edit i took steps[i] evaluations; without earlier edits."""
    shape, requests = Shape.of(call.model), call.requests
    if isinstance(method, FT):
        return Cost(nan, nan)
    if isinstance(method, ROME):  # one after another, each on the weights that the one before left
        alone = (optimising(shape, method, [one], [n]) for one, n in zip(requests, steps, strict=True))
        return sum(alone, Cost()) + rank_one(shape, method) * len(requests)
    cost = optimising(shape, method, requests, steps) + measured_again(shape, method.layers, requests)
    for layer in method.layers:
        rank = call.projection.basis(layer).shape[1] if isinstance(method, AlphaEdit) else None
        cost += closed_form(shape, len(requests), rank)
        cost += largest_changes(shape) if isinstance(method, RECT) else Cost()
    return cost


def optimising(shape, method, requests, steps) -> Cost:
    """Targets behind layer z.

    first pass   every token that differs up to layer z, and above it those in front of a subject's last token
    a step       the tails, from the subject's last token on, through the layers above z, and the head where the target
                 and the KL are read; PMET: through the MLP of layer z too, whose input δ_attn changes, at the lookups
    """
    z = method.layers[-1]
    rows = [p.ids + r.target[:-1] for r in requests for p in r.prompts]
    rows += up_to_lookup(r.kl for r in requests)
    fronts = [p.ids[: p.lookup] for r in requests for p in (*r.prompts, r.kl)]
    cost = shape.product((z + 1) * shape.layer, different(rows)) + shape.behind(z, different(fronts))
    for one, n in zip(requests, steps, strict=True):
        tail = 1 + sum(len(p.ids) - p.lookup + len(one.target) - 1 for p in one.prompts)
        step = shape.behind(z, tail, read=1 + len(one.prompts) * len(one.target))
        if isinstance(method, PMET):
            step += shape.product(shape.mlp, 1 + len(one.prompts))
        cost += Cost(step.flops * (2 * n - 1))  # the last evaluation has no gradient, which costs as much again
    return cost + Cost(0, step.bytes * (2 * max(steps) - 1))


def measured_again(shape, layers, requests) -> Cost:
    """Keys at every edited layer but the first, in all contexts, and the residual at the last one, with the clean
    prompt, on the weights so far: from the W that was written last on. A history needs no more than that (but
    RECT's): what is written in a layer or above does not reach its keys."""
    prompts, clean, z = [p for r in requests for p in r.prompts], [r.prompts[0] for r in requests], layers[-1]
    cost = Cost()
    for below, layer in pairwise(layers):
        so_far = shape.edited + (layer - below - 1) * shape.layer + shape.kv  # to the layer's keys and values
        cost += shape.product(so_far, different(up_to_lookup(prompts)))
        cost += shape.product(shape.layer - shape.kv - shape.edited, len(up_to_lookup(prompts)))
        cost += shape.product((z - layer) * shape.layer, different(up_to_lookup(clean)))
        cost += shape.product(shape.edited, len(up_to_lookup(clean)))
    return cost


def closed_form(shape, n, rank=None) -> Cost:
    """Δ = R (ρI + KᵀBK)⁻¹ (BK)ᵀ of one layer for n keys (`closed_form.py`), and W + Δ. rank: of P, where B is P/L2.

    BK         two triangular solves with the factor of C, d² each a key; with P = U₀U₀ᵀ 2·d·rank twice, or with I − P
    KᵀBK       n(n + 1)/2 products of length d, as it is symmetric
    solve      n³/3 for its Cholesky factor, and 2n² for every row of R
    W + Δ      n multiply-adds an entry; W is read and written
    """
    d, w = shape.d_ff, shape.d_model
    if rank is None:
        cost = Cost(2 * d * d * n, d * d * DOUBLE)  # half of the factor in each solve
    else:
        small = min(rank, d - rank)
        cost = Cost(4 * d * small * n, 2 * d * small * DOUBLE)
    return cost + Cost(n * (n + 1) * d + n**3 / 3 + 2 * n * n * w + 2 * n * d * w, 2 * shape.edited * shape.size)


def largest_changes(shape) -> Cost:
    """RECT's choice in one layer: |Δ / (W + 1e-8)|, two operations an entry, at least one comparison to find the
    boundary and one with it; Δ is kept until the boundary is known, and W is read for the ratio."""
    return Cost(4 * shape.edited, shape.edited * (2 * shape.math_size + shape.size))


def rank_one(shape, method) -> Cost:
    """ΔW = (v* − W k) uᵀ / (uᵀ k): C⁻¹k′ where C is used, by two triangular solves of d² each; ‖u‖ and uᵀk, 2d each;
    W + ΔW, a multiply-add an entry. r-ROME: W k̄ too, while W is at hand; W k₀ is v₀, known from the first pass."""
    d, entries = shape.d_ff, shape.edited
    cost = Cost(2 * d * d, d * d * DOUBLE) if method.mom2_adjustment else Cost()
    cost += Cost(4 * d + 2 * entries, 2 * entries * shape.size)
    return cost + Cost(2 * entries) if isinstance(method, RROME) else cost
