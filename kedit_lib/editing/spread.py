"""MEMIT's walk over the layers, which the methods that edit a batch share. For each edited layer i = 0 … m−1, on the
weights so far, with K its keys and R = Z − H what is missing of the targets,

    Δ = (R / (m − i)) Kᵀ (B⁻¹ + K Kᵀ)⁻¹

and a history adds M = Σ k kᵀ over the keys of the earlier batches to B⁻¹. Methods differ in B (`_fixed`, `sigma`), the
share of R that falls to a layer, and what their history keeps.

The length of Δ depends on λ and the history, not on what the edit needs, and every other fact gets its share of what is
written beyond that. A line search writes W + αΔ: α is a margin times the smallest number, found by doubling and
bisection (to 1/16, above 2 to 1/8), with which all tokens of a batch's targets are the most probable in every context.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..errors import KeditError
from ..models.hooks import logits_at
from .closed_form import update, with_memory
from .compute_k import Reading, context_mean
from .engine import Request
from .locate_then_edit import Targeted
from .method import Call, Outcome, as_matrix, off_unless_given, same_as, write

LONGEST = 4  # multiples of Δ at most
HALVINGS = 4


class Spread(Targeted):
    """Methods that spread a batch of edits over layers. line_search: its margin (None: the update as it is)."""

    # Whether a history's keys are measured again where a filter or a line search has written all layers again.
    keys_after: ClassVar[bool] = True
    sigma = same_as("mom2_update_weight")  # λ where B is (λC)⁻¹, L2 where it is P/L2
    line_search: float | None = off_unless_given(None, ge=1)

    def _check(self, call):
        norm = call.model.layout.mlp_norm
        if norm is not None and not self._site(call.model).inside:
            where = f"values of the residual stream, and {call.model.name} has a norm ({norm}) before it"
            raise KeditError(f"{self.name}: its targets are {where}; use ROME or PMET, whose are the map's own output")
        return super()._check(call)

    def _apply(self, call: Call) -> Outcome:
        if self.line_search and (call.filters or self.history_kind != "keys"):
            fit = "goes with MEMIT, PMET, EMMET or AlphaEdit"
            raise KeditError(f"{self.name}: line_search = {self.line_search}: {fit}")
        model, later = call.model, [f for f in call.filters if not f.each_layer]
        again, (targets, keys) = later or self.line_search, self._targets(call)
        outcome = Outcome(self.name, call.edits, {}, targets)
        before = model.snapshot() if again else None
        self._edit_layers(call, outcome, keys)
        if later:  # they see the weights at entry
            raw, outcome.deltas = outcome.deltas, {}
            model.load_snapshot(before)
            for layer in self.layers:
                write(call, layer, as_matrix(model, raw[model.weight_name(layer)]), outcome.deltas, later)
        if self.line_search:
            outcome.deltas = searched(model, call.requests, before, outcome.deltas, self.line_search)
        if call.filters or self.line_search:
            outcome.written = {}  # no longer known
        if call.history is not None:
            used = {layer: outcome.keys(layer) for layer in self.layers}
            written = self.keys_after and again and self._keys(call, Reading(model, call.prompts), self.layers)
            self._remember(call, outcome, written or used)
        return outcome

    def _edit_layers(self, call: Call, outcome: Outcome, first_keys: Tensor | None) -> None:
        """first_keys [N, contexts, d_ff]: of the first layer, where they are known already."""
        model, targets = call.model, outcome.targets
        scale = 1 if self._site(model).inside else model.mlp_scale  # what the stream gets of the map's output
        z, missing = torch.stack([t.z for t in targets]), torch.stack([t.delta for t in targets])  # H is v₀ at first
        prompts, clean = Reading(model, call.prompts), Reading(model, call.clean)
        for i, layer in enumerate(self.layers):  # below `layer` nothing changes any more
            measured = first_keys is not None and i == 0
            k = self._mean(first_keys, call) if measured else self._keys(call, prompts, [layer], layer)[layer]
            missing = z - self._values(clean, layer) if i else missing
            delta = self._solve(call, layer, k, missing * self._share(i) / scale, outcome)
            write(call, layer, delta, outcome.deltas, [f for f in call.filters if f.each_layer])
            for target, key in zip(targets, k, strict=True):
                target.key_per_layer[layer] = key

    def _keys(self, call: Call, prompts: Reading, layers, settled: int = 0) -> dict[int, Tensor]:
        return {layer: self._mean(k, call) for layer, k in prompts.keys(layers, settled).items()}

    def _mean(self, k: Tensor, call: Call) -> Tensor:
        return context_mean(k, len(call.requests[0].prompts), grouped=True)

    def _share(self, i: int) -> float:
        """The fraction of the residual that the i-th edited layer writes."""
        return 1 / (len(self.layers) - i)

    def _solve(self, call: Call, layer: int, k: Tensor, r: Tensor, outcome: Outcome) -> Tensor:
        """Δ [d_model, d_ff] for keys k [N, d_ff] and this layer's share r [N, d_model] of the residuals."""
        ridge = self._ridge(len(k))
        delta, g = update(k, r, self._products(call, layer, k, outcome), ridge)
        outcome.written[layer] = g / (ridge + g)
        return delta

    def _products(self, call: Call, layer: int, k: Tensor, outcome: Outcome) -> Tensor:
        """(B⁻¹ + M)⁻¹ K as rows [N, d_ff]; M is that of the earlier edits."""
        name, times = self._fixed(call)
        fixed = times(layer, k)
        if self.shift is not None:
            outcome.s[layer] = (k.double() * fixed).sum(1)
        if call.history is None or not call.history.edits:
            return fixed / self.sigma
        past = call.history.recall(layer, name, times, self.sigma)
        return with_memory(fixed / self.sigma, *(part.to(fixed.device) for part in past))

    def _fixed(self, call: Call):
        """The matrix σB, which no edit changes, here (C + shift·I)⁻¹: its name, and times(layer, k)."""
        inverse = f"(C + {self.shift!r})⁻¹" if self.shift else "C⁻¹"
        return f"{inverse} of moments {call.moments.identity}", lambda i, k: call.moments.solve(i, k, self.shift)

    @property
    def shift(self) -> float | None:
        """η/λ, for methods whose B is (λC + ηI)⁻¹ = (λ (C + shift·I))⁻¹."""
        return getattr(self, "update_norm_lambda", 0.0) / self.sigma

    def _ridge(self, n: int) -> float:
        """ρ of the closed form for a batch of n."""
        return 1.0

    def _remember(self, call: Call, outcome: Outcome, keys: dict[int, Tensor]) -> None:
        call.history.remember(call.model, keys)


def searched(model, requests: list[Request], before: dict, deltas: dict, margin: float) -> dict[str, Tensor]:
    """αΔ, which the model then holds; α is at most LONGEST, 1 where that is not enough. before: weights without Δ."""

    def write(alpha: float) -> dict[str, Tensor]:
        model.load_snapshot(before)
        scaled = {name: alpha * delta for name, delta in deltas.items()}
        model.add(scaled)
        return scaled

    def enough(alpha: float) -> bool:
        write(alpha)
        return says(model, requests)

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > LONGEST:
            return write(1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return write(min(margin * high, LONGEST))


def says(model, requests: list[Request]) -> bool:
    """Whether all tokens of each request's target are the most probable ones after its prompt in every context."""
    asked = [(p.ids + r.target[:-1], r.target) for r in requests for p in r.prompts]
    places = [range(len(text) - len(new), len(text)) for text, new in asked]
    for part, logits in logits_at(model, [text for text, _ in asked], places):
        wanted = torch.tensor([token for i in part for token in asked[i][1]], device=logits.device)
        if not torch.equal(logits.argmax(-1), wanted):
            return False
    return True
