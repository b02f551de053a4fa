"""PRUNE (Ma et al. 2024, "Perturbation-Restrained Sequential Model Editing"): a bound on the sum of all edits.

    W ← W₀ + U diag(s′) Vᵀ,      W − W₀ = U diag(s) Vᵀ,      s′ = ln s − ln σ + σ where s > σ = σ_max(W₀), else s

`prune` acts once, after the last edit of a sequence, on every edited matrix. `PRUNE` is MEMIT with that bound on W − W₀
after every batch, which can be compensated (see `filters.py`).
"""

import pandas as pd
import torch

from ..errors import KeditError, check_editable
from .filters import FilteredMEMIT
from .method import drift


class PRUNE(FilteredMEMIT):
    """PRUNE: MEMIT with a bound on the sum of all edits. compensation: the next batch makes up for the rest."""

    def kept(self, model, layer, delta):
        before = drift(model, layer)
        sigma = self._from_unedited(model, layer, lambda w: torch.linalg.matrix_norm(w, 2))
        u, s, vt = torch.linalg.svd(before + delta.double(), full_matrices=False)
        return (u * restrained(s, sigma)) @ vt - before


def restrained(s: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The singular values s of a total update, those above sigma lowered."""
    return torch.where(s > sigma, s.log() - sigma.log() + sigma, s)


@torch.no_grad()
def prune(model) -> pd.DataFrame:
    """Restrain the total update of `model` in place. A row per edited matrix: parameter; largest singular values, of W₀
    (sigma_max) and of the total update (before, after); reduced, how many were lowered. KeditError without edits."""
    check_editable(model, "prune")
    rows, changes = [], {}
    for name, original in ((name, value) for name, value in model.edited.items() if value.dim() == 2):
        weight = model.hf.get_parameter(name).double()
        u, s, vt = torch.linalg.svd(weight - original.to(weight), full_matrices=False)
        sigma = torch.linalg.matrix_norm(original.to(weight), 2)
        bounded, lowered = restrained(s, sigma), int((s > sigma).sum())
        rows.append((name, float(sigma), float(s[0]), float(bounded[0]), lowered))
        if lowered:
            changes[name] = (u * (bounded - s)) @ vt
    if not rows:
        raise KeditError(f"prune: {model.name} holds no edits; apply a method first, prune after the last edit")
    with model.recording({"method": "PRUNE", "hyperparameters": {}, "edits": []}):
        model.add(changes)
    return pd.DataFrame(rows, columns=["parameter", "sigma_max", "before", "after", "reduced"])
