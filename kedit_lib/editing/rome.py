"""ROME (Meng et al. 2022a; kmeng01/rome), r-ROME and p-ROME (Gupta et al. 2024a; rebuilding-rome): rank one, one layer.

    ΔW = (v* − W k) uᵀ / (uᵀ k),      u = C⁻¹k′ / ‖C⁻¹k′‖   (k′/‖k′‖ without C)

One formula and two choices of a key: k′, which gives the direction, and k, at which v* is written. k̄ is the mean over
contexts, k₀ the key of the clean prompt.

    ROME       k′ = k̄,   k = k₀    as published: the two differ, so W (k̄ − k₀) is not accounted for
    r-ROME     k′ = k̄,   k = k̄     W k is the mean output over contexts
    p-ROME     k′ = k₀,  k = k₀
"""

from typing import ClassVar

import torch

from .compute_k import context_mean, keys_at, outputs_at
from .engine import Site
from .locate_then_edit import Targeted
from .method import Outcome, same_as, write


class ROME(Targeted):
    """ROME: a rank-one edit of one layer. mom2_adjustment: whether u is C⁻¹k′ (the paper) or k′ (EasyEdit, Llama-2)."""

    context_style, one_layer, one_by_one = "rome", True, True
    skipped_beyond = 5
    mean_direction: ClassVar[bool] = True  # k′ is k̄, not k₀
    mean_value: ClassVar[bool] = False  # k is k̄, not k₀
    mom2_adjustment: bool = True
    needs_moments = same_as("mom2_adjustment")

    def _insert(self, call, outcome: Outcome) -> None:
        (layer,), model, prompts = self.layers, call.model, call.prompts
        (target,), keys = self._targets(call)
        keys = keys_at(model, prompts, [layer])[layer] if keys is None else keys[0]
        k_mean, k_clean = context_mean(keys, len(keys), grouped=False)[0].double(), keys[0].double()
        direction = k_mean if self.mean_direction else k_clean
        key, residual = k_clean, target.delta  # W k₀ is v₀
        if self.mean_value:
            key, residual = k_mean, target.z - outputs_at(model, prompts, model.mlp_out(layer)).mean(0)
        u = direction
        if self.mom2_adjustment:
            u = call.moments.solve(layer, direction[None])[0]
            outcome.s[layer] = torch.cat([outcome.s.get(layer, u[:0]), (u @ direction)[None]])
        u = u / u.norm()
        write(call, layer, residual.double().outer(u) / (u @ key), outcome.deltas, call.filters)
        target.key_per_layer[layer] = direction.to(keys.dtype)
        outcome.targets.append(target)

    def _site(self, model):
        (layer,) = self.layers
        # δ on the MLP's output is δ on the stream after the layer, unless a norm or a factor stands between the two.
        inside, edited = model.layout.mlp_norm is not None or model.mlp_scale != 1, model.mlp_out(layer)
        return Site(layer, model.n_layers - 1, (edited,), edited, inside)


class RROME(ROME):
    """r-ROME: the mean key and the mean output in every place."""

    mean_value = True


class PROME(ROME):
    """p-ROME: the clean prompt's key and output in every place."""

    mean_direction = False
