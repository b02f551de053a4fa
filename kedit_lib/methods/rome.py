"""ROME (Meng et al. 2022a; kmeng01/rome) and r-ROME (Gupta et al. 2024; rebuilding-rome): rank one, one layer.

    ΔW = (v* − W k₀) uᵀ / (uᵀ k₀),      u = C⁻¹k̄ / ‖C⁻¹k̄‖   (k̄/‖k̄‖ without C)

k̄ is the mean key over contexts and k₀ the key of the clean prompt. The published code mixes the two;
r-ROME takes k̄ in every place, and the mean output over contexts for W k₀.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import KeditError
from ..keys import context_mean, keys_at, outputs_at
from ..targets import Site, optimise
from .base import Method, Outcome, write


class ROME(Method):
    """mom2_adjustment: whether u is C⁻¹k̄ (the paper) or k̄ (EasyEdit's Llama-2 configuration)."""

    context_style: ClassVar[str] = "rome"
    mean_key_everywhere: ClassVar[bool] = False

    mom2_adjustment: bool = True

    def __init__(self, **values):
        super().__init__(**values)
        if len(self.layers) != 1:
            raise KeditError(f"{self.name}: layers = {self.layers}: edits exactly one layer; give a list of one")

    @property
    def needs_moments(self) -> bool:
        return self.mom2_adjustment

    def _apply(self, model, edits, requests, moments) -> Outcome:
        """Edits of one call are made one after another, each on the weights the one before left."""
        outcome = Outcome(self.name, edits, {}, [])
        for one in requests:
            self._insert(model, one, moments, outcome)
        return outcome

    def _insert(self, model, request, moments, outcome: Outcome) -> None:
        (layer,) = self.layers
        edited = model.mlp_out(layer)
        v0 = outputs_at(model, request.prompts[:1], edited)
        # δ on the MLP's output is δ on the stream behind the layer: the MLP's output is only added to it.
        (target,) = optimise(model, [request], Site(layer + 1, model.n_layers - 1), [v0], self)

        keys = keys_at(model, request.prompts, [layer])[layer]
        k_mean, k_clean = context_mean(keys, len(keys), grouped=False)[0].double(), keys[0].double()
        target.key_per_layer[layer] = k_mean.to(keys.dtype)
        u = moments.solve(layer, k_mean[None])[0] if self.mom2_adjustment else k_mean
        if self.mom2_adjustment:
            s = (u @ k_mean)[None]
            outcome.s[layer] = s if layer not in outcome.s else s.new_tensor([*outcome.s[layer], *s])
        u = u / u.norm()
        if self.mean_key_everywhere:
            key, value = k_mean, outputs_at(model, request.prompts, edited).mean(0)
        else:
            key, value = k_clean, v0[0]
        delta = (target.z - value).double().outer(u) / (u @ key)

        deltas = {}
        write(model, layer, delta, deltas)
        for name, tensor in deltas.items():
            outcome.deltas[name] = outcome.deltas[name] + tensor if name in outcome.deltas else tensor
        outcome.targets.append(target)


class RROME(ROME):
    """r-ROME: the mean key and the mean output in every place."""

    mean_key_everywhere: ClassVar[bool] = True
