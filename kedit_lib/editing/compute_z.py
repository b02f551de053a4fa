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
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite, log

import torch
from torch import Tensor, nn

from ..data.edit import Edit
from ..errors import KeditError
from ..models.memory import free_memory, in_parts
from ..models.suffix import Tails, at_lookup
from ..models.tokenization import Prompt, encode_prompt, target_ids

KL_PROMPT = "{} is a"
LOSS_STOP = 0.05
PMET_KL_STOP = 0.01
FROZEN = 0.1  # |ln p_last/p_first| below which an optimisation has done nothing
MOST_TOKENS = 2048  # that a step runs: beyond, matrix products gain nothing by more
MOST_BYTES = 5 << 29  # 2.5 GiB, likewise: what else an edit needs stays below 5.5 GiB at 7B


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

    @property
    def frozen(self) -> bool:
        """Whether more than one step of it did nothing (`did_nothing`); not of fine-tuning, which has no v₀."""
        return self.steps > 1 and isfinite(self.v0_norm) and did_nothing(self.probabilities[0], self.probabilities[-1])


def did_nothing(first: float, last: float) -> bool:
    """Whether an optimisation that took the probability from `first` to `last` ended where it began, short of its aim:
    |ln last/first| < FROZEN and last < ½."""
    return last < 0.5 and (first == last or (min(first, last) > 0 and abs(log(last / first)) < FROZEN))


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
        target_ids(tokenizer, edit.text, edit.target_new, edit.separator),
        edit.subject,
    )


@dataclass(frozen=True)
class Site:
    """Where δ goes, and what the first pass measures on the way there.

    layer       z: the last layer that runs unedited
    loss_layer  the nll is read after it
    values      modules in `layer`, or it itself: their outputs at the clean prompt are v₀, a vector each
    inside      δ is added to the outputs of these modules; else to the stream behind `layer`
    keys        the edited map, no later than `layer`, whose inputs are wanted
    tails       runs the prompts up to there, called as `Tails.of` is (None: that); experiments hand in another
    """

    layer: int
    loss_layer: int
    values: tuple
    keys: nn.Module
    inside: bool = False
    tails: Callable | None = None


def optimise(model, requests: list[Request], site: Site, hp, scaled_nll: bool = False) -> tuple[list[Target], Tensor]:
    """Optimise one vector for every request, or one for each of `site.values`.

    hp: v_num_grad_steps, v_lr, v_weight_decay, clamp_norm_factor, kl_factor. scaled_nll: PMET's factor on the nll
    (hp.nll_loss_factor). Returns a Target for each request, δ in the model's math dtype, and the keys
    [n, contexts, d_ff] at `site.keys`, on the weights at hand. All requests have as many contexts.

    Requests are optimised side by side, those with tails of like length together, as many as memory allows.
    """
    order = sorted(range(len(requests)), key=lambda i: (_tail(requests[i]), _longest_prefix(requests[i])))
    room = min(MOST_BYTES, free_memory(model.device) // 2)
    costs = [max(_tokens(one) / MOST_TOKENS, _bytes(model, site, one) / room) for one in (requests[i] for i in order)]

    def some(begin: int, end: int):
        return _optimise(model, [requests[i] for i in order[begin:end]], site, hp, scaled_nll)

    parts = in_parts(some, costs, 1.0, "optimising the target of an edit")
    targets = dict(zip(order, (t for found, _ in parts for t in found), strict=True))
    keys = torch.cat([k for _, k in parts])
    return [targets[i] for i in range(len(requests))], keys[torch.tensor(order, device=keys.device).argsort()]


def _tail(one: Request) -> int:
    """Tokens of its longest tail."""
    return max(len(p.ids) - p.lookup for p in one.prompts) + len(one.target) - 1


def _longest_prefix(one: Request) -> int:
    return max(p.lookup for p in (*one.prompts, one.kl))


def _tokens(one: Request) -> int:
    """Tokens that a step runs."""
    return (len(one.prompts) + 1) * _tail(one)


def _bytes(model, site: Site, one: Request) -> int:
    """About what a step keeps for its backward pass: of each token some eight vectors of the stream and three of the
    MLP a layer; keys and values of all that is attended to, kept and once more with the tail's; the logits."""
    layers, rows, size = model.n_layers - site.layer, len(one.prompts) + 1, model.weight(0).element_size()
    attended = rows * (_longest_prefix(one) + _tail(one)) * 4 * model.d_model
    read = (rows * len(one.target) + 1) * model.hf.config.vocab_size * 4
    return layers * (_tokens(one) * (8 * model.d_model + 3 * model.d_ff) + attended) * size + read * 4


class _Adam:
    """Adam (Kingma & Ba 2015) with torch's defaults and its order of operations, over rows that can leave."""

    def __init__(self, x: Tensor, lr: float):
        self.lr, self.steps = lr, 0
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)

    def keep(self, rows: Tensor) -> None:
        self.mean, self.square = self.mean[rows], self.square[rows]

    def step(self, x: Tensor, gradient: Tensor) -> None:
        """One update of x, in place."""
        self.steps += 1
        self.mean.lerp_(gradient, 1 - 0.9)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        scale = (self.square.sqrt() / (1 - 0.999**self.steps) ** 0.5).add_(1e-8)
        x.addcdiv_(self.mean, scale, value=-self.lr / (1 - 0.9**self.steps))


def _optimise(model, requests, site, hp, scaled_nll) -> tuple[list[Target], Tensor]:
    """The requests side by side. Of a vector [d_model] there is one a request and value: δ is [active, values, d_model]
    and loses the rows of requests that stop."""
    batch, v0, keys = _Batch.of(model, requests, site)
    v0_norm = v0.norm(dim=-1)
    radius, decay = hp.clamp_norm_factor * v0_norm, hp.v_weight_decay / v0_norm**2
    delta, best = torch.zeros_like(v0, requires_grad=True), torch.zeros_like(v0)
    adam, factor = _Adam(v0, hp.v_lr), [hp.nll_loss_factor if scaled_nll else 1.0] * len(requests)
    losses, probabilities = [[] for _ in requests], [[] for _ in requests]
    active, kl_before, already = list(range(len(requests))), None, []
    led = [0] * len(requests)  # steps at which the target led in every context but the clean one

    for step in range(hp.v_num_grad_steps):
        nll, said, kl_now = batch.evaluate(delta)
        if kl_before is None:
            kl_before, already = kl_now.detach(), said[:, 0].tolist()
        kl = hp.kl_factor * (kl_now.exp() * (kl_now - kl_before)).sum(-1)
        loss = nll.mean(1) * nll.new_tensor([factor[i] for i in active]) + kl + (decay * delta.norm(dim=-1)).sum(-1)
        seen = [loss, nll.neg().exp().mean(1), kl, said.all(1), said[:, min(1, said.shape[1] - 1) :].all(1)]
        seen = torch.stack(seen).detach().T.tolist()

        go_on = []
        for place, (i, (loss_i, probability, kl_i, learned, leads)) in enumerate(zip(active, seen, strict=True)):
            losses[i].append(loss_i)
            probabilities[i].append(probability)
            led[i] += leads
            stop = loss_i < LOSS_STOP or step == hp.v_num_grad_steps - 1 or hp.led_enough(led[i], probability)
            if scaled_nll:
                factor[i] = hp.nll_loss_factor * (0.1 if learned else 1.0)
                stop = stop or (learned and kl_i <= PMET_KL_STOP)
            if not stop:
                go_on.append(place)
        best[active] = delta.detach()
        if not go_on:
            break
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        delta = delta.detach()
        if len(go_on) < len(active):
            rows, active = torch.tensor(go_on, device=v0.device), [active[place] for place in go_on]
            batch, delta, gradient = batch.keep(rows), delta[rows], gradient[rows]
            adam.keep(rows)
            radius, decay, kl_before = radius[rows], decay[rows], kl_before[rows]
        adam.step(delta, gradient)
        norm = delta.norm(dim=-1)
        delta *= torch.where(norm > radius, radius / norm, 1.0)[..., None]
        delta.requires_grad_(True)

    finite = best.isfinite().all(-1).all(-1).tolist()
    for i, one in enumerate(requests):
        if not finite[i] or not isfinite(losses[i][-1]):
            raise KeditError(
                f"edit of {one.subject!r}: the optimisation of its target gave NaN or inf; lower v_lr or check the "
                "model's weights"
            )
    clamped = best[:, 0].norm(dim=-1) >= hp.clamp_norm_factor * v0_norm[:, 0] * (1 - 1e-5)
    z, facts = v0 + best, zip(losses, probabilities, v0_norm[:, 0].tolist(), clamped.tolist(), already, strict=True)
    also = [(z[i, 1], best[i, 1]) if len(site.values) > 1 else () for i in range(len(requests))]
    return [Target(z[i, 0], best[i, 0], *fact, *also[i]) for i, fact in enumerate(facts)], keys


def finished(z: Tensor, v0: Tensor) -> Target:
    """A target that was given, not optimised here."""
    return Target(z, z - v0, [], [], v0.norm().item(), clamped=False, already=False)


class _Batch:
    """The tails of some requests' prompts as a grid of rows: a request's contexts, and last its KL prompt."""

    def __init__(self, model, site: Site, tails: Tails, last: Tensor, target: Tensor, length: Tensor):
        """last [n, contexts] index in its tail of each prompt's last token; target [n, L] ids, length [n] of them
        count. These three lie on the host."""
        self.model, self.site, self.tails = model, site, tails
        self.last, self.target, self.length = last, target, length
        (n, contexts), (_, t, _) = last.shape, tails.hidden.shape
        self.rows = torch.arange(n * (contexts + 1)).view(n, contexts + 1)
        j = torch.arange(target.shape[1])
        there = (j < length[:, None])[:, None].expand(n, contexts, -1)
        # As indices into n·T: where each target token is predicted, where the KL is read, and what is no padding.
        read = (self.rows[:, :-1, None] * t + last[:, :, None] + j)[there]
        both = torch.cat([read, self.rows[:, -1] * t])
        tail = torch.cat([last + length[:, None], torch.ones_like(length)[:, None]], 1)  # the KL: the lookup itself
        real = (torch.arange(t) < tail[:, :, None]).flatten().nonzero()[:, 0]
        token = target[:, None].expand_as(there)[there]
        self.both, self.n_read, self.real = both.to(model.device), len(read), real.to(model.device)
        self.token, self.there = token.to(model.device), there.to(model.device)
        self.n_tokens = length.to(model.device, model.math_dtype)[:, None]

    @classmethod
    def of(cls, model, requests: list[Request], site: Site) -> tuple[_Batch, Tensor, Tensor]:
        """The batch, v₀ [n, values, d_model] and the keys [n, contexts, d_ff]."""
        ids, lookup, tail = [], [], []
        for one in requests:
            for p in one.prompts:
                ids.append(p.ids + one.target[:-1])
                tail.append(len(ids[-1]) - p.lookup)
            ids.append(one.kl.ids)
            tail.append(1)
            lookup += [p.lookup for p in (*one.prompts, one.kl)]
        first, where = site.layer + (not site.inside), {"inputs": [site.keys], "outputs": site.values}
        tails, inputs, outputs = (site.tails or Tails.of)(model, ids, lookup, tail, first, alone=site.inside, **where)
        grid = len(requests), len(requests[0].prompts) + 1
        v0 = torch.stack([outputs[m].unflatten(0, grid)[:, 0] for m in site.values], 1).to(model.math_dtype)
        keys = inputs[site.keys].unflatten(0, grid)[:, :-1].to(model.math_dtype)
        last = torch.tensor([[len(p.ids) - 1 - p.lookup for p in one.prompts] for one in requests])
        length = torch.tensor([len(one.target) for one in requests])
        target = torch.tensor([one.target + (0,) * (int(length.max()) - len(one.target)) for one in requests])
        return cls(model, site, tails, last, target, length), v0, keys

    def keep(self, which: Tensor) -> _Batch:
        """The same for some of the requests."""
        here = which.cpu()
        rows = self.rows[here].flatten().to(which.device)
        return _Batch(
            self.model, self.site, self.tails.select(rows), self.last[here], self.target[here], self.length[here]
        )

    def evaluate(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta [n, values, d_model] → nll [n, contexts], −(1/|t|) Σ log p(t_j); said [n, contexts], whether every
        target token is the argmax; log-probabilities [n, vocabulary] at the KL prompt's lookup token."""
        site, top, contexts = self.site, self.model.n_layers - 1, self.last.shape[1]
        vectors = delta[:, None].expand(-1, contexts + 1, -1, -1).flatten(0, 1).unbind(1)
        hidden = self.tails.hidden if site.inside else at_lookup(self.tails.hidden, vectors[0])
        behind, stops = {self.tails.first - 1: hidden}, {i for i in (site.loss_layer, top) if i >= self.tails.first}
        if stops:  # else δ is added above the last layer, and nothing is left to run
            added = zip(site.values, vectors, strict=True) if site.inside else ()
            behind |= self.tails.run(hidden, stops, added, self._only(top))
        final, at_loss = (behind[i].flatten(0, 1) for i in (top, site.loss_layer))
        if site.loss_layer == top:
            log_p, kl = self._log_p(final[self.both]).tensor_split([self.n_read])
        else:
            log_p, kl = self._log_p(at_loss[self.both[: self.n_read]]), self._log_p(final[self.both[self.n_read :]])
        right = log_p.gather(1, self.token[:, None])[:, 0]
        nll = right.new_zeros(self.there.shape).masked_scatter(self.there, right).sum(-1) / -self.n_tokens
        said = torch.ones_like(self.there).masked_scatter(self.there, log_p.argmax(-1) == self.token).all(-1)
        return nll, said, kl

    def _only(self, top: int) -> dict[int, Tensor]:
        """The tokens that each layer's MLP is run on: no padding, and from the loss layer on only what is read."""
        n_tokens = self.rows.numel() * self.tails.hidden.shape[1]
        layers = {i: self.real if i < self.site.loss_layer else self.both for i in range(self.tails.first, top + 1)}
        return {i: index for i, index in layers.items() if len(index) < n_tokens}

    def _log_p(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden).log_softmax(-1)


class Doubtful(UserWarning):
    """An edit that can be made, and may not be worth it."""


class AlreadyKnown(Doubtful):
    """The model gave an edit's target before the edit."""


class Frozen(Doubtful):
    """The optimisation of an edit's target did not move it."""


def warn_if_doubtful(edits: list[Edit], targets: list[Target]) -> None:
    """A warning for each edit whose target the model already gave, and for each whose optimisation did nothing."""
    for edit, target in zip(edits, targets, strict=True):
        if target.already:
            message = f"edit of {edit.subject!r}: the model already answers {edit.target_new!r}"
            warnings.warn(message, AlreadyKnown, stacklevel=3)
        if target.frozen:
            message = (
                f"edit of {edit.subject!r}: {target.steps} steps left the probability of {edit.target_new!r} at "
                f"{target.probabilities[-1]:.2g} (‖v₀‖ is {target.v0_norm:.3g}); look for a bug in padding or lookup, "
                "and begin again with the unedited model: more or longer steps do not mend this one"
            )
            warnings.warn(message, Frozen, stacklevel=3)
