"""SimIE (ICML 2025; YamingGuo98/SimIE), around any method that writes weights: edits one at a time as if made at once.

The base's edit takes W₋ to Wₑ. With X the inputs of W at all tokens of prompt and new object, on the weights before it,

    P ← P + XᵀX,    Δ = (Wₑ − W₋) XᵀX P⁻¹,    P = λ_s I at first

which keeps what the edit does to X and what earlier edits did to theirs, as least squares over all of them would. The
history is P⁻¹; edits of one call are made in turn.
"""

from dataclasses import replace

import torch
from pydantic import Field

from ..models.hooks import trace
from .filters import Wrapper
from .method import Call, Outcome, matrix, write
from .rlsedit import downdated


class SimIE(Wrapper):
    """SimIE: makes single edits as if all at once. base: the method. lamHyper: λ_s. init_model: whether X and every
    edit start from the unedited weights."""

    keeps_history = needs_history = one_by_one = True
    lamHyper: float = Field(1.0, gt=0)
    init_model: bool = False

    def prepare(self, model, edits, moments=None, contexts=None, history=None, *args, **given) -> Call:
        call = self.base.prepare(model, edits, moments, contexts, None, *args, **given)
        return replace(call, history=self._history(model, moments, history))

    def _insert(self, call: Call, outcome: Outcome) -> None:
        model, history, before = call.model, call.history, call.model.snapshot()
        old = {layer: matrix(model, layer).double().clone() for layer in self.layers}
        if self.init_model:
            model.restore()
        modules = {layer: model.mlp_out(layer) for layer in self.layers}
        ids = torch.tensor([call.requests[0].prompts[0].ids + call.requests[0].target], device=model.device)
        seen, _ = trace(model.hf, ids, modules.values(), last=modules[self.layers[-1]])
        alone = replace(call, history=self.base._history(model, call.moments, None))
        outcome.targets += self.base._apply(alone).targets
        change = {layer: matrix(model, layer).double() - old[layer] for layer in self.layers}
        model.load_snapshot(before)
        for layer, module in modules.items():
            x = seen[module][0].double()  # [tokens, d_ff]
            inverse = history.get("inverse", layer, x.device)
            if inverse is None:
                inverse = torch.eye(model.d_ff, dtype=torch.float64, device=x.device) / self.lamHyper
            inverse = downdated(inverse, x)
            history.put("inverse", layer, inverse)
            write(call, layer, change[layer] @ x.T @ (x @ inverse), outcome.deltas)
        history.count(model, 1)
