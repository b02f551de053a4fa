"""GRACE (Hartvigsen et al. 2023, arXiv 2211.11031), a baseline outside the family: no weight is changed. A codebook at
one layer holds keys kᵢ, each with a radius εᵢ and a value vᵢ that stands in for what the layer's MLP adds.

    k   what enters the map that leaves the MLP, at the last token of the edit's prompt
    v   n_iter steps of Adam on −(1/|t|) Σ_j log p(t_j), from a random start in [0, 1)
    at every token: i = argmin ‖k − kᵢ‖, and vᵢ in place of the map's output where ‖k − kᵢ‖ ≤ εᵢ

An edit at the distance d from its nearest entry i

    adds      an entry of radius eps where d > eps + εᵢ
    expands   εᵢ to d where it is less, and goes on with vᵢ, if both have one target
    splits    otherwise: its own entry has radius d/2, and εᵢ becomes d/2 − 1e-5

as in the authors' code (Thartvigsen/GRACE) and EasyEdit's, with "euc", "cold", "sgd", "coverage" and "replace_last". It
deviates in three things: all tokens are looked up, not the prompt's last and generated ones; targets are compared by
their ids, not the mean of them; an edit of the same prompt to another target (d = 0), lost there, takes the entry over.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import exp, isfinite

import torch
from pydantic import Field
from torch import Tensor

from ..errors import KeditError
from ..models.tokenization import Prompt
from .call import Call, Outcome
from .compute_z import Target
from .engine import Request, Site, Suffix
from .method import Method

PARTS = ("keys", "radii", "values")
SAME = 1e-3  # ‖k − kᵢ‖/‖k‖ below which two prompts are one: half precision moves a key by less


@dataclass(frozen=True)
class Codebook:
    """keys [n, d_ff] and radii [n] in float64, values [n, d_model]; targets: the ids of each."""

    keys: Tensor
    radii: Tensor
    values: Tensor
    targets: tuple[tuple[int, ...], ...] = ()

    def placed(self, k: Tensor, target: tuple[int, ...], eps: float) -> tuple["Codebook", int]:
        """The codebook with an entry for an edit with key k [d_ff], and which one that is."""
        n, radii, k = len(self.targets), self.radii.clone(), k.double()
        if n:
            d, i = (x.item() for x in torch.cdist(k[None], self.keys).min(-1))
            close = d <= eps + radii[i]
            if d <= SAME * k.norm() or (close and target == self.targets[i]):
                radii[i] = max(radii[i].item(), d)
                return replace(self, radii=radii, targets=(*self.targets[:i], target, *self.targets[i + 1 :])), i
            if close:
                radii[i], eps = d / 2 - 1e-5, d / 2
        start = torch.rand(1, self.values.shape[1], generator=torch.Generator().manual_seed(n))
        own = (self.keys, k[None]), (radii, radii.new_tensor([eps])), (self.values, start.to(self.values))
        return Codebook(*map(torch.cat, own), (*self.targets, target)), n


class GRACE(Method):
    """layers: the one with the codebook. edit_lr, n_iter: Adam's. eps: the radius of a new entry."""

    clean_only = True
    needs_moments = False
    keeps_history = needs_history = True
    layers: list[int] = Field(min_length=1, max_length=1)
    edit_lr: float = Field(1.0, gt=0)
    n_iter: int = Field(50, ge=1)
    eps: float = Field(1.0, gt=0)

    @property
    def history_kind(self) -> str:
        return f"GRACE at layer {self.layers[0]}"

    def recall(self, model, history):
        layer, module = self.layers[0], model.mlp_out(self.layers[0])
        if not any(getattr(hook, "func", None) is _looked_up for hook in module._forward_hooks.values()):
            module.register_forward_hook(partial(_looked_up, model, self.history_kind))
        if history.edits:
            parts = (history.get(part, layer, model.device) for part in PARTS)
            book = Codebook(*parts, tuple(map(tuple, history.numbers["targets"])))
            model.memory = {**model.memory, self.history_kind: book}

    def _apply(self, call: Call) -> Outcome:
        model, history, targets = call.model, call.history, []
        self.recall(model, history)
        for request in call.requests:
            book, target = self._edited(model, request)
            model.memory = {**model.memory, self.history_kind: book}
            targets.append(target)
        for part in PARTS:
            history.put(part, self.layers[0], getattr(book, part))
        history.numbers = {"targets": [[*ids] for ids in book.targets]}
        history.count(model, len(call.edits))
        return Outcome(self.name, call.edits, {}, targets)

    def _edited(self, model, request: Request) -> tuple[Codebook, Target]:
        """The codebook with one more edit; the target's first loss is the model's before it."""
        ids, module = request.prompts[0].ids, model.mlp_out(self.layers[0])
        last = Prompt(ids, len(ids) - 1)
        site = Site(self.layers[0], model.n_layers - 1, (module,), module, inside=True)
        engine = Suffix(model, [Request((last,), last, request.target, request.subject)], site)
        k, v0, one = engine.keys[0, 0], engine.v0, torch.arange(1, device=model.device)
        empty = Codebook(k.new_zeros(0, len(k)).double(), k.new_zeros(0).double(), k.new_zeros(0, model.d_model))
        book, i = model.memory.get(self.history_kind, empty).placed(k, request.target, self.eps)
        value = book.values[i].clone().requires_grad_()
        adam, seen = torch.optim.Adam([value], lr=self.edit_lr), []
        for step in range(self.n_iter + 2):  # the first one, of the model as it is, and the last one only measure
            nll, _, said = engine.loss_terms((value - v0) * (step > 0), one)
            seen.append((nll.item(), bool(said)))
            if not isfinite(seen[-1][0]):
                raise KeditError(f"edit of {request.subject!r}: its value gave NaN or inf; lower edit_lr")
            if 0 < step <= self.n_iter:
                (value.grad,) = torch.autograd.grad(nll.sum(), [value])
                adam.step()
        (losses, said), value = zip(*seen, strict=True), value.detach()
        facts = [*losses], [exp(-loss) for loss in losses], v0.norm().item(), False, said[0]
        book = replace(book, values=book.values.index_put((torch.tensor(i),), value))
        return book, Target(value, value - v0[0, 0], *facts)


def _looked_up(model, key: str, module, args, output: Tensor) -> Tensor:
    """A forward hook: the map's output [..., d_model], with the values of entries that its input is near to."""
    if key not in model.memory:
        return output
    book = model.memory[key]
    distance, i = torch.cdist(args[0].detach().flatten(0, -2).double(), book.keys).min(-1)
    near = (distance <= book.radii[i]).view(*output.shape[:-1], 1)
    return torch.where(near, book.values[i].to(output.dtype).view_as(output), output) if near.any() else output
