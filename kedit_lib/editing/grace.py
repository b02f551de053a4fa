"""GRACE (Hartvigsen et al. 2023, arXiv 2211.11031), a baseline outside the family: no weight is changed. A codebook at
one layer holds keys kᵢ, each with a radius εᵢ and a value vᵢ that stands in for what the layer's MLP adds.

    k   what enters the map that leaves the MLP, at the last token of the edit's prompt
    v   n_iter steps of Adam on −(1/|t|) Σ_j log p(t_j), from a random start in [0, 1)
    at every token: i = argmin ‖k − kᵢ‖, and vᵢ in place of the map's output where ‖k − kᵢ‖ ≤ εᵢ

    an edit at the distance d from its nearest entry i
    adds      an entry of radius eps where d > eps + εᵢ
    expands   εᵢ to d where it is less, and goes on with vᵢ, if both have one target
    splits    otherwise: its own entry has radius d/2, and εᵢ becomes d/2 − 1e-5

as in the authors' code (Thartvigsen/GRACE) and EasyEdit's, with "euc", "cold", "sgd", "coverage" and "replace_last". It
deviates in three things: all tokens are looked up, not the prompt's last and generated ones; targets are compared by
their ids, not the mean of them; an edit of the same prompt to another target (d = 0), lost there, takes the entry over.
"""

from math import exp, isfinite

import torch
from pydantic import Field

from ..errors import KeditError
from ..models.tokenization import Prompt
from .codebook import Codebook, InCodebook
from .compute_z import Target
from .engine import Request, Site, Suffix
from .method import Call, Outcome

SAME = 1e-3  # ‖k − kᵢ‖/‖k‖ below which two prompts are one: half precision moves a key by less


def placed(book: Codebook, k: torch.Tensor, target: tuple[int, ...], eps: float) -> tuple[Codebook, int]:
    """The codebook with an entry for an edit with key k [d_ff], and which one that is."""
    n, radii, k = len(book.targets), book.reaches.clone(), k.double()
    if n:
        d, i = (x.item() for x in torch.cdist(k[None], book.keys).min(-1))
        close = d <= eps + radii[i]
        if d <= SAME * k.norm() or (close and target == book.targets[i]):
            radii[i] = max(radii[i].item(), d)
            return book._replace(reaches=radii, targets=(*book.targets[:i], target, *book.targets[i + 1 :])), i
        if close:
            radii[i], eps = d / 2 - 1e-5, d / 2
    start = torch.rand(1, book.values.shape[1], generator=torch.Generator().manual_seed(n))[0]
    return book._replace(reaches=radii).and_one(k, torch.tensor(eps, dtype=torch.float64), start, target), n


class GRACE(InCodebook):
    """GRACE: a codebook at one layer replaces its MLP's output. edit_lr, n_iter: Adam's. eps: radius of a new entry."""

    clean_only = one_by_one = True
    parts = ("keys", "radii", "values")
    precision = torch.float64
    replaces = True
    edit_lr: float = Field(1.0, gt=0)
    n_iter: int = Field(50, ge=1)
    eps: float = Field(1.0, gt=0)

    @staticmethod
    def answering(x, book):
        distance, i = torch.cdist(x.flatten(0, -2).double(), book.keys).min(-1)
        return (distance <= book.reaches[i]).view(x.shape[:-1]), i.view(x.shape[:-1])

    def _apply(self, call: Call) -> Outcome:
        self.recall(call.model, call.history)
        return self._outcome(call, [self._edited(call.model, request) for request in call.requests])

    def _edited(self, model, request: Request) -> Target:
        """One more edit in the codebook; the target's first loss is the model's before it."""
        ids, (layer,) = request.prompts[0].ids, self.layers
        last, module = Prompt(ids, len(ids) - 1), model.mlp_out(layer)
        site = Site(layer, model.n_layers - 1, (module,), module, inside=True)
        engine = Suffix(model, [Request((last,), last, request.target, request.subject)], site)
        v0, one, seen = engine.v0, torch.arange(1, device=model.device), []
        book, i = placed(self._book(model), engine.keys[0, 0], request.target, self.eps)
        value = book.values[i].clone().requires_grad_()
        adam = torch.optim.Adam([value], lr=self.edit_lr)
        for step in range(self.n_iter + 2):  # the first one, of the model as it is, and the last one only measure
            nll, _, wrong = engine.loss_terms((value - v0) * (step > 0), one)
            seen.append((nll.item(), not wrong))
            if not isfinite(seen[-1][0]):
                raise KeditError(f"edit of {request.subject!r}: its value gave NaN or inf; lower edit_lr")
            if 0 < step <= self.n_iter:
                (value.grad,) = torch.autograd.grad(nll.sum(), [value])
                adam.step()
        (losses, said), value = zip(*seen, strict=True), value.detach()
        self._hold(model, book._replace(values=book.values.index_put((torch.tensor(i),), value)))
        p = [exp(-loss) for loss in losses]
        return Target(value, value - v0[0, 0], [*losses], p, v0.norm().item(), False, said[0])
