"""UltraEdit (Gu et al. 2025, arXiv 2505.14679; XiaojieGu/UltraEdit): a gradient in the place of an optimised target.

For each edited module, at every position that predicts a token of the new object, k is its input and g the gradient of
the loss with respect to its output. With running mean μ and deviation σ of [k, g] over all edits so far,

    [k̂, ĝ] = ([k, g] − μ) / (σ + ε),    v = −lr ‖k̂‖² ĝ,    Δ = Vᵀ (K Kᵀ + I)⁻¹ K       (rows of K, V: k and v)

One forward and backward pass of a mini-batch, no subject, no contexts, no C. As in the authors' code the loss is the
mean over all tokens of a mini-batch, the longest requests first; modules of one shape share one normaliser, whose
update adds b·s² of b rows with their unbiased variance s² (Chan's formula: (b − 1)s²); a row alone has s² = 0, not NaN.
"""

import re
from itertools import product
from math import exp, nan

import torch
from pydantic import Field
from torch import Tensor

from ..errors import KeditError, check_editable
from ..models.hooks import hooks, pad
from .closed_form import update
from .compute_z import Target
from .method import Call, Method, Outcome, as_matrix

EPS = torch.finfo(torch.float32).eps
COUNTED = ("mean", "spread", "n")  # of the rows so far: mean, sum of squares, number


class UltraEdit(Method):
    """UltraEdit: one normalised gradient step of length lr. modules: those edited. batch_size: edits per mini-batch."""

    clean_only = True
    needs_moments = False
    keeps_history = needs_history = True
    modules: list[str] = Field(min_length=1)
    lr: float = Field(1e-6, gt=0)
    batch_size: int = Field(10, ge=1)

    def __init__(self, modules=(), **values):
        numbers = [re.search(r"\.(\d+)\.", str(name)) for name in modules if isinstance(modules, list)]
        super().__init__(modules=modules, **{"layers": sorted({int(n[1]) for n in numbers if n}), **values})

    def prepare(self, model, *args, **given) -> Call:
        check_editable(model, self.name)
        there = dict(model.hf.named_modules(remove_duplicate=False))
        for name in self.modules:
            if name not in there:
                raise KeditError(f"{self.name}: {model.name} has no module {name!r}; name one of its own")
            weight = getattr(there[name], "weight", None)
            if weight is None or weight.dim() != 2:
                raise KeditError(f"{self.name}: module {name!r} has no weight matrix; name a linear map")
        return super().prepare(model, *args, **given)

    def _apply(self, call: Call) -> Outcome:
        outcome, history = Outcome(self.name, call.edits, {}, [None] * len(call.edits)), call.history
        order = sorted(range(len(call.edits)), key=lambda i: -len(_ids(call.requests[i])))
        chunks = [order[begin : begin + self.batch_size] for begin in range(0, len(order), self.batch_size)]
        found = [self._gradients(call, chunk, outcome) for chunk in chunks]
        for name, part in product(self.modules, found):  # all updates of the normalisers come before any use
            _count(history, torch.cat(part[name], 1), _shape(*part[name]))
        for name in self.modules:
            k, g = (torch.cat(each) for each in zip(*(part[name] for part in found), strict=True))
            mean, spread, n = (history.get(what, _shape(k, g), k.device) for what in COUNTED)
            normal = (torch.cat([k, g], 1) - mean) / ((spread / (n - 1 + EPS)).sqrt() + EPS)
            k_hat, g_hat = normal.split([k.shape[1], g.shape[1]], 1)
            v = -self.lr * (k_hat**2).sum(1, keepdim=True) * g_hat
            delta = as_matrix(call.model, update(k, v, k)[0]).to(call.model.math_dtype)
            outcome.deltas[f"{name}.weight"] = delta.contiguous()
        call.model.add(outcome.deltas)
        history.count(call.model, len(call.edits))
        return outcome

    def _gradients(self, call: Call, chunk: list[int], outcome: Outcome) -> dict[str, tuple[Tensor, Tensor]]:
        """{module: (k, g)} of a mini-batch, [tokens, width] each in float64; the targets of its edits are noted."""
        model, requests = call.model, [call.requests[i] for i in chunk]
        ids = pad([_ids(r) for r in requests], model.device)
        at = [(row, len(r.prompts[0].ids) - 1 + j) for row, r in enumerate(requests) for j in range(len(r.target))]
        at = tuple(torch.tensor(index, device=ids.device) for index in zip(*at, strict=True))
        answers = torch.tensor([t for r in requests for t in r.target], device=ids.device)
        seen, modules = {}, [model.hf.get_submodule(name) for name in self.modules]

        def keep(module, args, output):
            output = output if output.requires_grad else output.requires_grad_()
            seen[module] = args[0].detach(), output

        with torch.enable_grad(), hooks(*[(module, keep) for module in modules]):
            logits = model.hf(input_ids=ids, use_cache=False).logits[at].to(model.math_dtype)
            log_p = logits.log_softmax(-1).gather(1, answers[:, None])[:, 0]
            gradients = torch.autograd.grad(-log_p.mean(), [seen[module][1] for module in modules])
        lengths, right = [len(r.target) for r in requests], logits.argmax(-1) == answers
        for i, one, said in zip(chunk, log_p.detach().split(lengths), right.split(lengths), strict=True):
            mean = one.mean().item()  # nothing is optimised: what the model gave the new object before the edit
            outcome.targets[i] = Target(None, None, [-mean], [exp(mean)], nan, False, bool(said.all()))
        both = zip(self.modules, [seen[module][0] for module in modules], gradients, strict=True)
        return {name: tuple(x.to(ids.device).view(*ids.shape, -1)[at].double() for x in pair) for name, *pair in both}


def _ids(request) -> tuple[int, ...]:
    return request.prompts[0].ids + request.target[:-1]


def _shape(k: Tensor, g: Tensor) -> str:
    return f"{k.shape[1]}x{g.shape[1]}"


def _count(history, x: Tensor, shape: str) -> None:
    """The rows of x join those counted, the sum of squares as the authors have it."""
    mean, spread, n = (history.get(what, shape, x.device) for what in COUNTED)
    if n is None:
        mean, spread, n = torch.zeros_like(x[0]), torch.zeros_like(x[0]), x.new_zeros(1)
    b = len(x)
    own = b * x.var(0) if b > 1 else 0
    total, shift = n + b, x.mean(0) - mean
    history.put("mean", shape, mean + shift * b / total)
    history.put("spread", shape, spread + own + n * b * shift**2 / total)
    history.put("n", shape, total)
