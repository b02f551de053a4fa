"""PRUNE (Ma et al. 2024, "Perturbation-Restrained Sequential Model Editing"): a bound on the sum of all edits.

    W ← W₀ + U diag(s′) Vᵀ,      W − W₀ = U diag(s) Vᵀ,      s′ = ln s − ln σ + σ where s > σ = σ_max(W₀), else s

It acts once, after the last edit of a sequence, on every edited matrix (`prune`): no singular value of the total update
may tower over the original's largest, which bounds how ill-conditioned the edited matrix gets. Smaller ones stay.
`PRUNE` is MEMIT with that bound on W − W₀ after every batch, which can be compensated (see `compensation.py`).
"""

from __future__ import annotations

import pandas as pd
import torch
from pydantic import PrivateAttr
from torch import Tensor

from ..errors import KeditError
from .call import as_matrix, matrix
from .compensation import Filtered


class PRUNE(Filtered):
    """MEMIT's hyperparameters; compensation: whether what is lost is made up for at the next batch."""

    _sigma: dict = PrivateAttr(default_factory=dict)  # largest singular value of unedited weights

    def filtered(self, model, layer: int, delta: Tensor) -> Tensor:
        drift, known = as_matrix(model, model.drift(layer)).double(), (model.checksum, layer)
        if known not in self._sigma:
            self._sigma[known] = torch.linalg.matrix_norm(matrix(model, layer).double() - drift, 2)
        u, s, vt = torch.linalg.svd(drift + delta.double(), full_matrices=False)
        return (u * restrained(s, self._sigma[known])) @ vt - drift


def restrained(s: Tensor, sigma: Tensor) -> Tensor:
    """The singular values s of a total update, those above sigma lowered."""
    return torch.where(s > sigma, s.log() - sigma.log() + sigma, s)


@torch.no_grad()
def prune(model) -> pd.DataFrame:
    """Restrain the total update of `model` in place; `model.restore()` still gives the original weights.

    Returns a row an edited matrix: parameter, sigma_max (of the unedited weight), before and after (largest singular
    value of the total update), reduced (how many singular values were lowered; 0: the matrix is untouched, bit for
    bit). KeditError when the model holds no edits.
    """
    edited = {name: original for name, original in model.edited.items() if original.dim() == 2}
    if not edited:
        raise KeditError(f"prune: {model.name} holds no edits; apply a method first, prune after the last edit")
    rows, changes = [], {}
    for name, original in edited.items():
        weight = model.hf.get_parameter(name).double()
        original = original.to(weight)
        u, s, vt = torch.linalg.svd(weight - original, full_matrices=False)
        sigma = torch.linalg.matrix_norm(original, 2)
        bounded = restrained(s, sigma)
        if lowered := int((s > sigma).sum()):
            changes[name] = (u * (bounded - s)) @ vt
        found = {"sigma_max": float(sigma), "before": float(s[0]), "after": float(bounded[0]), "reduced": lowered}
        rows.append({"parameter": name, **found})
    with model.recording({"method": "PRUNE", "hyperparameters": {}, "edits": []}):
        model.add(changes)
    return pd.DataFrame(rows)
