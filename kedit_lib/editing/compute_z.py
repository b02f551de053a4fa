"""Optimising the value that makes the model say the new object: v* of ROME, z of MEMIT and its kin.

    L(δ) = c · mean over contexts of −(1/|t|) Σ_j log p(t_j)        c = 1; PMET: `PMET.weighed`
         + kl_factor · KL(p_δ ‖ p_0)  at the lookup token of "{subject} is a"
         + v_weight_decay · ‖δ‖ / ‖v₀‖²                              each vector of PMET has its own

Adam with v_lr; after each update δ is projected onto the ball of radius clamp_norm_factor·‖v₀‖; stops before stepping
when L < 0.05. Sources: `compute_v.py` of kmeng01/rome, `compute_z.py` of kmeng01/memit and of xpq-tech/PMET. Edits are
optimised side by side; their losses share no parameter, so that the numbers are those of one at a time.
"""

import warnings
from dataclasses import dataclass, field
from math import isfinite, log

import torch
from torch import Tensor

from ..data.edit import Edit
from ..errors import KeditError
from ..models.memory import free_memory, in_parts
from .engine import Request, Site, Suffix

FROZEN = 0.1  # |ln p_last/p_first| below which an optimisation has done nothing
MOST_TOKENS = 2048  # per step; more no longer speed up the matrix products
MOST_BYTES = 5 << 29  # 2.5 GiB, likewise: what else an edit needs stays below 5.5 GiB at 7B


@dataclass
class Target:
    """The optimised value of one edit and how the optimisation went."""

    z: Tensor | None  # [d_model] v₀ + δ (PMET: of the MLP's output; FT: None)
    delta: Tensor | None  # [d_model] δ
    losses: list[float]  # at each evaluation (none where z was given)
    probabilities: list[float]  # likewise the mean over contexts of exp(−nll), 0..1
    v0_norm: float  # ‖v₀‖ (FT: NaN)
    clamped: bool  # whether δ ended on the clamp ball (FT: whether a weight ended on the bound)
    already: bool  # whether the model gave the target on the clean prompt before the edit
    key_per_layer: dict[int, Tensor] = field(default_factory=dict)  # {layer: [d_ff]}, filled by the method

    @property
    def steps(self) -> int:
        """Evaluations of the loss (one more than updates of δ)."""
        return len(self.losses)

    @property
    def frozen(self) -> bool:
        """Whether its steps did nothing; never of fine-tuning, which has no v₀."""
        return self.steps > 1 and isfinite(self.v0_norm) and did_nothing(self.probabilities[0], self.probabilities[-1])

    def __repr__(self) -> str:
        p = f", p {self.probabilities[0]:.3g} → {self.probabilities[-1]:.3g}" if self.steps else ""
        delta = "" if self.delta is None else f", ‖δ‖/‖v₀‖ {self.delta.norm().item() / self.v0_norm:.3g}"
        return f"Target({self.steps} steps{p}{delta})"


def compute_z(engine: Suffix, hp) -> list[Target]:
    """Adam on L(δ) from δ = 0, n requests side by side, a vector for every value of the site. hp: a `Targeted`."""
    v0, n = engine.v0, len(engine.v0)
    v0_norm = v0.norm(dim=-1)
    radius, decay = hp.clamp_norm_factor * v0_norm, hp.v_weight_decay / v0_norm**2
    delta, found = torch.zeros_like(v0, requires_grad=True), torch.zeros_like(v0)  # [n, values, d_model]
    adam = torch.optim.Adam([delta], lr=hp.v_lr)  # a hand-written one changes a lab edit's time by ±2 % only
    losses, probabilities = v0.new_zeros(2, hp.v_num_grad_steps, n)
    active = torch.arange(n, device=v0.device)  # the requests that go on
    lengths = torch.tensor([len(request.target) for request in engine.requests], device=v0.device)
    steps, led, leads = torch.zeros_like(active), torch.zeros_like(active), torch.zeros_like(active, dtype=torch.bool)

    for step in range(hp.v_num_grad_steps):
        nll, kl, wrong = engine.loss_terms(delta, active)
        kl = hp.kl_factor * kl
        loss = hp.weighed(nll.mean(1), leads[active]) + kl + (decay * delta.norm(dim=-1)).sum(-1)[active]  # L(δ)
        p = nll.detach().neg().exp().mean(1)
        leads[active] = (wrong == 0).all(1)  # the target is the argmax in every context
        led[active] += hp.leading(wrong[:, min(1, wrong.shape[1] - 1) :], lengths[active])
        if step == 0:
            already = wrong[:, 0] == 0
        losses[step, active], probabilities[step, active] = loss.detach(), p
        steps[active], found[active] = step + 1, delta.detach()[active]

        done = hp.done(loss.detach(), kl.detach(), p, leads[active], led[active])
        active = active[~(done | hp.stuck(losses[: step + 1, active], p))]
        if not len(active) or step + 1 == hp.v_num_grad_steps:
            break
        adam.zero_grad()
        hp.total(loss).backward()
        adam.step()
        with torch.no_grad():  # ‖δ‖ ≤ clamp_norm_factor · ‖v₀‖
            norm = delta.norm(dim=-1)
            delta *= torch.where(norm > radius, radius / norm, 1.0)[..., None]

    z, clamped = v0 + found, (found.norm(dim=-1) >= radius * (1 - 1e-5))[:, 0].tolist()
    finite = found.isfinite().flatten(1).all(1).tolist()
    losses, probabilities = losses.T.tolist(), probabilities.T.tolist()
    targets = []
    for i, (last, norm, known) in enumerate(zip(steps.tolist(), v0_norm[:, 0].tolist(), already.tolist(), strict=True)):
        if not finite[i] or not isfinite(losses[i][last - 1]):
            problem = "the optimisation of its target gave NaN or inf; lower v_lr or check the model's weights"
            raise KeditError(f"edit of {engine.requests[i].subject!r}: {problem}")
        facts = losses[i][:last], probabilities[i][:last], norm, clamped[i], known
        targets.append(Target(z[i, 0], found[i, 0], *facts))
    return targets


def optimise(model, requests: list[Request], site: Site, hp, engine=Suffix) -> tuple[list[Target], Tensor]:
    """`compute_z` for any number of requests, all with as many contexts: those with rows of like length together, as
    many as memory allows. Returns a Target for each, and the keys [n, contexts, d_ff] on the weights at hand."""
    order = sorted(range(len(requests)), key=lambda i: engine.shape(requests[i]))
    room, sorted_ = min(MOST_BYTES, free_memory(model.device) // 2), [requests[i] for i in order]
    needs = [engine.needs(model, site, one) for one in sorted_]
    costs = [max(tokens / MOST_TOKENS, size / room) for tokens, size in needs]

    def some(begin: int, end: int):
        ready = engine(model, sorted_[begin:end], site)
        return compute_z(ready, hp), ready.keys

    parts = in_parts(some, costs, 1.0, "optimising the target of an edit")
    targets = dict(zip(order, (t for found, _ in parts for t in found), strict=True))
    keys = torch.cat([k for _, k in parts])
    return [targets[i] for i in range(len(requests))], keys[torch.tensor(order, device=keys.device).argsort()]


def did_nothing(first: float, last: float) -> bool:
    """Whether an optimisation from probability `first` to `last` failed: |ln last/first| < FROZEN and last < ½."""
    return last < 0.5 and (first == last or (min(first, last) > 0 and abs(log(last / first)) < FROZEN))


class Doubtful(UserWarning):
    """Warning: an edit was made but is suspect: the model already gave its target, or its optimisation did not move."""


def warn_if_doubtful(edits: list[Edit], targets: list[Target]) -> None:
    for edit, target in zip(edits, targets, strict=True):
        about = f"edit of {edit.subject!r}:"
        if target.already:
            warnings.warn(f"{about} the model already answers {edit.target_new!r}", Doubtful, stacklevel=4)
        if target.frozen:
            left = f"{target.steps} steps left the probability of {edit.target_new!r} at {target.probabilities[-1]:.2g}"
            why = "the model may have taken too many edits (restore it), v_lr may be too small for it (compare "
            why += "v_lr·√d_model with ‖v₀‖), or it cannot produce this answer"
            warnings.warn(f"{about} {left} (‖v₀‖ is {target.v0_norm:.3g}): {why}", Doubtful, stacklevel=4)
