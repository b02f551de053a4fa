"""Prompts padded in front and looked up as if padded behind: a bug of public code that ran PMET on Llama, rebuilt, for
PMET and, as it would be there, for MEMIT.

A batch of prompts is padded to one length. With the padding in front, index l of a row is no longer the subject's last
token: in a row with q tokens of padding it is the token q places before it, or padding. There δ is added, v₀ and keys
are read, and the target is expected q places too early. Only the longest prompt of a batch is treated as meant.

Written out in full, one request at a time and every pass whole: nothing but the experiment uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.hooks import FILL, hooks, trace
from .compute_z import LOSS_STOP, PMET_KL_STOP, Request, Target


def padded_in_front(model, rows: list[tuple[int, ...]]) -> dict[str, Tensor]:
    """input_ids [n, longest] and attention_mask [n, 1, longest, longest], 0 where a token is seen.

    Where nothing is to be seen, at padding, all scores are the lowest number, so that every token there is seen alike:
    so transformers had it when the report was made. Its mask of today gives NaN at padding.
    """
    longest, device, dtype = max(map(len, rows)), model.device, model.dtype
    ids = torch.tensor([[FILL] * (longest - len(row)) + list(row) for row in rows], device=device)
    front = torch.tensor([longest - len(row) for row in rows], device=device)
    at = torch.arange(longest, device=device)
    seen = (at <= at[:, None]) & (at >= front[:, None, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return {"input_ids": ids, "attention_mask": mask[:, None]}


@torch.no_grad()
def keys_at(model, prompts, layers) -> dict[int, Tensor]:
    """`keys.keys_at` with the bug: {layer: [n, d_ff]}, all prompts in one batch."""
    batch = padded_in_front(model, [p.ids for p in prompts])
    wanted = {i: model.mlp_out(i) for i in layers}
    seen, _ = trace(model.hf, batch.pop("input_ids"), inputs=wanted.values(), **batch)
    at = torch.arange(len(prompts)), torch.tensor([p.lookup for p in prompts])
    return {i: seen[module][at].to(model.math_dtype) for i, module in wanted.items()}


def optimise(model, request: Request, modules, hp) -> Target:
    """A target with the bug, by the loss of `compute_z`; modules: those whose outputs get a δ each (MEMIT: the layer;
    PMET: the MLP's and the attention's output there)."""
    prompts, target = (*request.prompts, request.kl), torch.tensor(request.target, device=model.device)
    rows = [p.ids + request.target[:-1] for p in request.prompts] + [request.kl.ids]
    batch, n = padded_in_front(model, rows), len(rows) - 1
    row, lookup = torch.arange(len(rows)), torch.tensor([p.lookup for p in prompts])
    read = torch.tensor([len(one) for one in rows[:-1]])[:, None] - len(target) + torch.arange(len(target))

    _, seen = trace(model.hf, batch["input_ids"], outputs=modules, attention_mask=batch["attention_mask"])
    v0 = [seen[m][0, lookup[0]].to(model.math_dtype) for m in modules]
    delta = [torch.zeros_like(v, requires_grad=True) for v in v0]
    adam = torch.optim.Adam(delta, lr=hp.v_lr)

    def adding(d):
        return lambda module, args, out: _added(out, (row, lookup), d)

    scaled = getattr(hp, "nll_loss_factor", None)  # PMET's, and its rule to stop
    losses, probabilities, factor, kl_before = [], [], scaled or 1.0, None
    for step in range(hp.v_num_grad_steps):
        with hooks(*[(m, adding(d)) for m, d in zip(modules, delta, strict=True)]):
            log_p = model.hf(**batch, use_cache=False).logits.log_softmax(-1)
        at_targets = log_p[row[:-1, None], read]
        nll = -at_targets.gather(2, target.expand(n, -1)[..., None])[..., 0].mean(1)
        kl_now = log_p[-1, lookup[-1]]
        kl_before = kl_now.detach() if kl_before is None else kl_before
        kl = hp.kl_factor * (kl_now.exp() * (kl_now - kl_before)).sum()
        decay = sum(hp.v_weight_decay * d.norm() / v.norm() ** 2 for d, v in zip(delta, v0, strict=True))
        loss = factor * nll.mean() + kl + decay
        losses.append(loss.item())
        probabilities.append(nll.neg().exp().mean().item())
        learned = bool((at_targets.argmax(-1) == target).all())
        factor = scaled * (0.1 if learned else 1.0) if scaled else 1.0
        if loss < LOSS_STOP or (scaled and learned and kl <= PMET_KL_STOP) or step == hp.v_num_grad_steps - 1:
            break
        for d, gradient in zip(delta, torch.autograd.grad(loss, delta), strict=True):
            d.grad = gradient
        adam.step()
        for d, v in zip(delta, v0, strict=True):
            d.data *= min(1.0, (hp.clamp_norm_factor * v.norm() / d.norm()).item())
    own, found = delta[0].detach(), [v + d.detach() for v, d in zip(v0, delta, strict=True)]
    clamped = bool(own.norm() >= hp.clamp_norm_factor * v0[0].norm() * (1 - 1e-5))
    beside = {"z_attn": found[1], "delta_attn": delta[1].detach()} if len(found) > 1 else {}
    return Target(found[0], own, losses, probabilities, v0[0].norm().item(), clamped, False, **beside)


def _added(output, at, d: Tensor):
    """The output of a module, which may be a tuple that begins with it, with d added at some places."""
    first = output[0] if isinstance(output, tuple) else output
    changed = first.index_put(at, d.to(first.dtype).expand(len(at[0]), -1), accumulate=True)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
