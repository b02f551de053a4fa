"""Optimising the value that makes the model say the new object: v* of ROME, z of MEMIT and its kin.

    L(δ) = c · mean over contexts of −(1/|t|) Σ_j log p(t_j)        c = 1; PMET: nll_loss_factor, or a tenth of it
         + kl_factor · KL(p_δ ‖ p_0)  at the lookup token of "{subject} is a"
         + v_weight_decay · ‖δ‖ / ‖v₀‖²                              each vector of PMET has its own

Adam with v_lr; after each update ‖δ‖ is projected onto the ball of radius clamp_norm_factor·‖v₀‖;
stops before stepping when L < 0.05. Sources: `compute_v.py` of kmeng01/rome, `compute_z.py` of
kmeng01/memit and of xpq-tech/PMET. Many edits are optimised side by side, each with its own Adam
state, clamp and early stop: their losses share no parameter, so the numbers are those of one at a time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from .edits import Edit
from .errors import KeditError
from .tails import Tails, at_lookup
from .tokens import Prompt, encode_prompt, target_ids

KL_PROMPT = "{} is a"
LOSS_STOP = 0.05
PMET_KL_STOP = 0.01
EDITS_TOGETHER = 16  # edits optimised side by side; bounds memory


@dataclass
class Target:
    """The optimised value of one edit and how the optimisation went.

    z, delta            [d_model] z = v₀ + δ (PMET: of the MLP output; `z_attn`, `delta_attn` beside); FT: None
    losses              loss at each evaluation, `steps` of them (none where z was given)
    probabilities       mean over contexts of exp(−nll) at each evaluation, 0..1
    clamped             whether δ ended on the clamp ball (FT: whether a weight ended on the bound)
    v0_norm             ‖v₀‖ (FT: NaN)
    already             the unedited model already gave the target on the clean prompt
    key_per_layer       {layer: [d_ff]} filled by the method
    """

    z: Tensor | None
    delta: Tensor | None
    losses: list[float]
    probabilities: list[float]
    v0_norm: float
    clamped: bool
    already: bool
    z_attn: Tensor | None = None
    delta_attn: Tensor | None = None
    key_per_layer: dict[int, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Evaluations of the loss (one more than updates of δ)."""
        return len(self.losses)


@dataclass(frozen=True)
class Request:
    """An edit as token ids: its prompt in every context, the KL prompt, and the target; the subject for messages."""

    prompts: tuple[Prompt, ...]
    kl: Prompt
    target: tuple[int, ...]
    subject: str = ""


def request(tokenizer, edit: Edit, contexts: list[str]) -> Request:
    return Request(
        tuple(encode_prompt(tokenizer, c, edit.prompt, edit.subject) for c in contexts),
        encode_prompt(tokenizer, "{}", KL_PROMPT, edit.subject),
        target_ids(tokenizer, edit.text, edit.target_new),
        edit.subject,
    )


@dataclass(frozen=True)
class Site:
    """Where δ goes. first: the first layer that δ changes. places: the modules whose outputs get a
    vector each (empty: the stream that enters `first`). loss_layer: nll is read after it."""

    first: int
    loss_layer: int
    places: tuple = ()


def optimise(
    model, requests: list[Request], site: Site, v0: list[Tensor], hp, scaled_nll: bool = False
) -> list[Target]:
    """Optimise one vector (or one for each of `site.places`) for every request.

    v0: unedited values, a tensor [n, d_model] for each vector. hp: v_num_grad_steps, v_lr,
    v_weight_decay, clamp_norm_factor, kl_factor. scaled_nll: PMET's factor on the nll
    (hp.nll_loss_factor). Returns a Target for each request; δ in the model's math dtype.
    """
    out = []
    for begin in range(0, len(requests), EDITS_TOGETHER):
        part = slice(begin, begin + EDITS_TOGETHER)
        out += _optimise(model, requests[part], site, [v[part] for v in v0], hp, scaled_nll)
    return out


def _optimise(model, requests, site, v0, hp, scaled_nll) -> list[Target]:
    n, device = len(requests), model.device
    batch = _Batch(model, requests, site)
    start = torch.zeros(model.d_model, dtype=model.math_dtype, device=device)
    deltas = [[start.clone().requires_grad_(True) for _ in v0] for _ in range(n)]
    radius = [[hp.clamp_norm_factor * v[i].norm() for v in v0] for i in range(n)]
    decay = [[hp.v_weight_decay / v[i].norm() ** 2 for v in v0] for i in range(n)]
    adam = torch.optim.Adam([d for ds in deltas for d in ds], lr=hp.v_lr)
    factor = [hp.nll_loss_factor if scaled_nll else 1.0] * n
    losses, probabilities = [[] for _ in range(n)], [[] for _ in range(n)]
    kl_before, already = None, [False] * n
    active = list(range(n))

    for step in range(hp.v_num_grad_steps):
        nll, says, kl_now = batch.evaluate([[deltas[i][j] for i in active] for j in range(len(v0))])
        if kl_before is None:
            kl_before = kl_now.detach()
            already = [bool(said[0]) for said in says]
        kl = (kl_now.exp() * (kl_now - kl_before[active])).sum(-1)
        wd = torch.stack([sum(c * d.norm() for c, d in zip(decay[i], deltas[i], strict=True)) for i in active])
        scaled = torch.stack([f * each.mean() for f, each in zip([factor[i] for i in active], nll, strict=True)])
        loss = scaled + hp.kl_factor * kl + wd

        go_on = []
        for a, i in enumerate(active):
            losses[i].append(loss[a].item())
            probabilities[i].append((-nll[a].detach()).exp().mean().item())
            stop = losses[i][-1] < LOSS_STOP or step == hp.v_num_grad_steps - 1
            if scaled_nll:
                said = bool(says[a].all())
                factor[i] = hp.nll_loss_factor * (0.1 if said else 1.0)
                stop = stop or (said and hp.kl_factor * kl[a].item() <= PMET_KL_STOP)
            if not stop:
                go_on.append(i)
        if not go_on:
            break
        going = [deltas[i] for i in go_on]
        flat = [d for ds in going for d in ds]
        for d, grad in zip(flat, torch.autograd.grad(loss[[active.index(i) for i in go_on]].sum(), flat), strict=True):
            d.grad = grad
        adam.step()  # edits that stopped have no gradient and stay as they are
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for i in go_on:
                for d, r in zip(deltas[i], radius[i], strict=True):
                    if (norm := d.norm()) > r:
                        d.mul_(r / norm)
        if len(go_on) < len(active):
            batch = batch.keep([active.index(i) for i in go_on])
            active = go_on

    for i, one in enumerate(requests):
        if not all(torch.isfinite(d).all() for d in deltas[i]) or not isfinite(losses[i][-1]):
            raise KeditError(
                f"edit of {one.subject!r}: the optimisation of its target gave NaN or inf; lower v_lr or check the "
                "model's weights"
            )
    return [_target(v0, deltas[i], i, losses[i], probabilities[i], radius[i], already[i]) for i in range(n)]


def _target(v0, deltas, i, losses, probabilities, radius, already) -> Target:
    deltas = [d.detach() for d in deltas]
    pairs = [(v[i] + d, d) for v, d in zip(v0, deltas, strict=True)]
    return Target(
        *pairs[0],
        losses,
        probabilities,
        v0[0][i].norm().item(),
        bool(deltas[0].norm() >= radius[0] * (1 - 1e-5)),
        already,
        *(pairs[1] if len(pairs) > 1 else ()),
    )


def finished(z: Tensor, v0: Tensor) -> Target:
    """A target that was given, not optimised here."""
    return Target(z, z - v0, [], [], v0.norm().item(), clamped=False, already=False)


class _Batch:
    """The tails of all prompts of some requests: contexts of request 0, its KL prompt, contexts of 1, …"""

    def __init__(self, model, requests: list[Request], site: Site, tails: Tails | None = None):
        self.model, self.requests, self.site = model, requests, site
        ids, lookup, length, self.owner = [], [], [], []
        index, self.rows_of, self.kl_rows = 0, [], []
        for r, one in enumerate(requests):
            rows = []
            for p in one.prompts:
                ids.append(p.ids + one.target[:-1])
                lookup.append(p.lookup)
                length.append(len(ids[-1]) - p.lookup)
                rows.append(index)
                index += 1
            self.rows_of.append(rows)
            ids.append(one.kl.ids)
            lookup.append(one.kl.lookup)
            length.append(1)  # the KL is read at the lookup token itself
            self.kl_rows.append(index)
            index += 1
            self.owner += [r] * (len(one.prompts) + 1)
        self.tails = tails or Tails.of(model, ids, lookup, length, site.first)
        # Where each target token is predicted, context by context.
        row, place, token, self.split = [], [], [], []
        for one, rows in zip(requests, self.rows_of, strict=True):
            for p, at in zip(one.prompts, rows, strict=True):
                first = len(p.ids) - 1 - p.lookup
                row += [at] * len(one.target)
                place += range(first, first + len(one.target))
                token += one.target
            self.split.append(len(one.prompts) * len(one.target))
        device = model.device
        self.row, self.place = torch.tensor(row, device=device), torch.tensor(place, device=device)
        self.token = torch.tensor(token, device=device)
        self.kl_index, self.owner = torch.tensor(self.kl_rows, device=device), torch.tensor(self.owner, device=device)

    def keep(self, which: list[int]) -> _Batch:
        """The same for some of the requests."""
        wanted = torch.tensor(which, device=self.owner.device)
        rows = torch.cat([(self.owner == w).nonzero()[:, 0] for w in wanted])
        return _Batch(self.model, [self.requests[w] for w in which], self.site, self.tails.select(rows))

    def evaluate(self, deltas: list[list[Tensor]]):
        """deltas[j][r]: vector j of request r. Returns

        nll    a tensor [contexts] for each request: −(1/|t|) Σ log p(t_j)
        says   a bool tensor [contexts] for each request: every target token is the argmax
        kl     [requests, vocabulary] log-probabilities at the KL prompt's lookup token
        """
        vectors = [torch.stack(ds)[self.owner] for ds in deltas]
        top = self.model.n_layers - 1
        hidden = self.tails.hidden
        if self.site.places:
            added = list(zip(self.site.places, vectors, strict=True))
        else:
            added, hidden = [], at_lookup(hidden, vectors[0])
        if self.site.first > top:  # δ is added above the last layer: nothing is left to run
            final = at_loss = hidden
        else:
            final = self.tails.run(hidden, top, added)
            at_loss = final if self.site.loss_layer == top else self.tails.run(hidden, self.site.loss_layer, added)
        log_p = self.model.logits(at_loss[self.row, self.place]).log_softmax(-1)
        right = log_p.gather(1, self.token[:, None])[:, 0]
        said = log_p.argmax(-1) == self.token
        nll, says = [], []
        for one, picked, hit in zip(self.requests, right.split(self.split), said.split(self.split), strict=True):
            nll.append(-picked.view(len(one.prompts), -1).mean(1))
            says.append(hit.view(len(one.prompts), -1).all(1))
        kl = self.model.logits(final[self.kl_index, 0]).log_softmax(-1)
        return nll, says, kl


class AlreadyKnown(UserWarning):
    """The model gave an edit's target before the edit."""


def warn_if_known(edits: list[Edit], targets: list[Target]) -> None:
    """A warning for each edit whose target the model already gave."""
    for edit, target in zip(edits, targets, strict=True):
        if target.already:
            message = f"edit of {edit.subject!r}: the model already answers {edit.target_new!r}"
            warnings.warn(message, AlreadyKnown, stacklevel=3)
