"""Fine-tuning of the edited maps, the baseline: FT-L (Meng et al. 2022a) and FT-M (Zhang et al. 2024, EasyEdit).

    min over W of mean over edits of −(1/|t|) Σ_j log p(t_j),      |W − W₀| ≤ ε in every entry

    FT-L   objective_optimization "prompt_last": every target token is read at the last token of the prompt
    FT-M   "target_new": target token j is read after the prompt and t_1 … t_{j−1}, as a language model is trained

Adam on W, clipped after every step to the box around the weights W₀ at the start of the call. An epoch takes a step for
each `batch_size` edits, none where their loss is below 0.01; it is the last one when the loss over all edits is.
Source: `ft_main.py` of kmeng01/rome, EasyEdit.
"""

from functools import partial
from math import inf, nan
from typing import Literal

import torch
from pydantic import Field

from ..errors import KeditError
from ..models.hooks import hooks
from ..models.suffix import Tails
from .compute_z import Target
from .method import Call, Method, Outcome, matrix, write

LOSS_STOP = 0.01


class FT(Method):
    """FT: fine-tunes the edited maps. num_steps: epochs. lr, weight_decay: Adam's. norm_constraint: ε (None: no bound).
    batch_size: edits per step."""

    clean_only = True
    needs_moments = False
    num_steps: int = Field(25, ge=1)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    norm_constraint: float | None = Field(None, gt=0)
    objective_optimization: Literal["prompt_last", "target_new"] = "prompt_last"
    batch_size: int = Field(1, ge=1)

    def _apply(self, call: Call) -> Outcome:
        model, bound = call.model, self.norm_constraint or inf
        w0 = {layer: matrix(model, layer).clone() for layer in self.layers}
        w = {layer: start.clone().requires_grad_(True) for layer, start in w0.items()}
        adam = torch.optim.Adam(w.values(), lr=self.lr, weight_decay=self.weight_decay)
        parts = [call.requests[i : i + self.batch_size] for i in range(0, len(call.edits), self.batch_size)]
        batches = [(part, _tails(model, part, self.layers[0])) for part in parts]
        epochs = []  # (nll, said) at each, [n]
        for epoch in range(self.num_steps + 1):  # the last one only measures
            seen = []
            for requests, tails in batches:
                nll, said = evaluated(requests, tails, w, self.objective_optimization == "prompt_last")
                seen.append((nll.detach(), said))
                if epoch < self.num_steps and nll.mean().item() >= LOSS_STOP:
                    adam.zero_grad()
                    nll.mean().backward()
                    adam.step()
                    for layer, each in w.items():
                        each.data.clamp_(w0[layer] - bound, w0[layer] + bound)
            epochs.append([torch.cat(part) for part in zip(*seen, strict=True)])
            if sum(epochs[-1][0].tolist()) / len(call.edits) < LOSS_STOP:
                break
        outcome, bounded = Outcome(self.name, call.edits, {}, []), False
        for layer in self.layers:
            delta = w[layer].detach() - w0[layer]
            bounded |= bool((delta.abs() >= bound * (1 - 1e-5)).any())
            write(call, layer, delta, outcome.deltas)
        for losses, known in zip(torch.stack([nll for nll, _ in epochs], 1), epochs[0][1].tolist(), strict=True):
            p = losses.double().neg().exp().tolist()
            outcome.targets.append(Target(None, None, losses.tolist(), p, nan, bounded, known))
        return outcome


def evaluated(requests, tails: Tails, w, at_last: bool) -> list[torch.Tensor]:
    """nll [n] of each edit under the weights w, and said [n]: every target token is the argmax in its place."""
    model, top, found = tails.model, tails.model.n_layers - 1, []
    with hooks(*[(model.mlp_out(layer), partial(_with_weight, each)) for layer, each in w.items()]):
        final = tails.run(tails.hidden, [top])[top]
    for row, request in zip(final, requests, strict=True):
        target = torch.tensor(request.target, device=row.device)
        j = torch.arange(len(target), device=row.device)
        log_p = model.logits(row[len(request.prompts[0].ids) - 1 + j]).log_softmax(-1)
        nll = -log_p[torch.zeros_like(j) if at_last else j, target].mean()
        if not nll.isfinite():
            problem = "its fine-tuning gave NaN or inf; lower lr or check the model's weights"
            raise KeditError(f"edit of {request.subject!r}: {problem}")
        found.append((nll, (log_p.argmax(-1) == target).all()))
    return [torch.stack(part) for part in zip(*found, strict=True)]


def _tails(model, requests, first: int) -> Tails:
    """Prompt and target of some edits, run from layer `first` on; nothing is a fixed prefix, and the tail is all."""
    ids = [r.prompts[0].ids + r.target[:-1] for r in requests]
    return Tails.of(model, ids, [0] * len(ids), [len(row) for row in ids], first)[0]


def _with_weight(w: torch.Tensor, module, args, output) -> torch.Tensor:
    """A forward hook: the output that the module would have with the weight w [d_model, d_ff]."""
    bias = None if module.bias is None else module.bias.to(w.dtype)
    return torch.nn.functional.linear(args[0].to(w.dtype), w.to(args[0].device), bias).to(output.dtype)
