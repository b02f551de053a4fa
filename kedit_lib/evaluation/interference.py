"""Interference: how much an edit changes the layer's output on ordinary text."""

from __future__ import annotations


def interference(model, deltas: dict, moments) -> float:
    """Σ over edited layers of tr(Δ C Δᵀ) = E‖Δk‖² over the text that C was measured on.

    deltas   {parameter name: Δ of the parameter's own shape}, as in `outcome.deltas`
    moments  with C [d_ff, d_ff] at every layer edited

    In squared units of the residual stream, so layers add up; 0 for no change, no upper bound. What ROME and
    MEMIT minimise under their constraints. Source: Meng et al. 2022 (ROME), appendix A; Meng et al. 2023, eq. 10.
    """
    total = 0.0
    for layer in range(model.n_layers):
        if (delta := deltas.get(model.weight_name(layer))) is not None:
            delta = (delta.T if model.layout.transposed else delta).double().cpu()
            total += ((delta @ moments.tensors[layer].double().cpu()) * delta).sum().item()
    return total
