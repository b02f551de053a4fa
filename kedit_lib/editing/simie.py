"""SimIE (ICML 2025; YamingGuo98/SimIE): edits one at a time as if all had been made at once.

It is put round any method that writes weights.

The base's edit takes W₋ to Wₑ. With X the inputs of W at all tokens of prompt and new object, on the weights before it,

    P ← P + XᵀX,    Δ = (Wₑ − W₋) XᵀX P⁻¹,    P = λ_s I at first

so that what the edit does to X is kept, and what earlier edits did to theirs is left alone, as least squares over all
of them would. init_model=True takes X and the edit from the unedited weights: Wₑ is W₀ + the edit alone.
P⁻¹ is kept, a d_ff × d_ff matrix a layer; edits of one call are made one after another. The base remembers nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from ..errors import KeditError
from ..models.hooks import trace
from .call import Call, Outcome, matrix, write
from .method import Sequential
from .rlsedit import downdated
from .state import EditState
from .wrapper import Wrapper


class SimIE(Sequential, Wrapper):
    """base: the method; lamHyper: λ_s; init_model: whether every edit starts from the unedited weights."""

    lamHyper: float = Field(1.0, gt=0)
    init_model: bool = False

    def prepare(self, model, edits, moments=None, contexts=None, history=None, *args, **given) -> Call:
        call = self.base.prepare(model, edits, moments, contexts, None, *args, **given)
        history = self.new_history(model) if history is None else history
        if not isinstance(history, EditState) or history.kind != self.history_kind:
            raise KeditError(f"{self.name}: its history is none of its own; pass method.new_history(model, moments)")
        history.check(model, self.layers)
        return replace(call, history=history)

    def _apply(self, call: Call) -> Outcome:
        outcome = Outcome(self.name, call.edits, {}, [])
        for i in range(len(call.edits)):
            self._insert(call, i, outcome)
        return outcome

    def _insert(self, call: Call, i: int, outcome: Outcome) -> None:
        model, before = call.model, call.model.snapshot()
        old = {layer: matrix(model, layer).double().clone() for layer in self.layers}
        if self.init_model:
            model.restore()
        x = self._inputs(call, i)
        found = self.base._apply(replace(call.part(i, i + 1), history=None))
        new = {layer: matrix(model, layer).double().clone() for layer in self.layers}
        model.load_snapshot(before)
        for layer in self.layers:
            inverse = call.history.get("inverse", layer, x[layer].device)
            if inverse is None:
                inverse = torch.eye(model.d_ff, dtype=torch.float64, device=x[layer].device) / self.lamHyper
            inverse = downdated(inverse, x[layer])
            call.history.put("inverse", layer, inverse)
            deltas = {}
            write(model, layer, (new[layer] - old[layer]) @ x[layer].T @ (x[layer] @ inverse), deltas)
            for name, delta in deltas.items():
                outcome.deltas[name] = outcome.deltas[name] + delta if name in outcome.deltas else delta
        call.history.count(model, 1)
        outcome.targets += found.targets

    def _inputs(self, call: Call, i: int) -> dict[int, Tensor]:
        """{layer: [tokens, d_ff]} of prompt and new object."""
        model, request = call.model, call.requests[i]
        ids = torch.tensor([request.prompts[0].ids + request.target], device=model.device)
        modules = {layer: model.mlp_out(layer) for layer in self.layers}
        seen, _ = trace(model.hf, ids, modules.values(), last=modules[self.layers[-1]])
        return {layer: seen[module][0].double() for layer, module in modules.items()}
