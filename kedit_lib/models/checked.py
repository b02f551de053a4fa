"""What is looked at once, when a model is handed over: a fault is one line, not a wrong number later."""

from __future__ import annotations

import torch

from ..errors import KeditError
from .hooks import hooks

ROUNDINGS = 16  # of the model's dtype, relative to its largest logit: what two ways to the same logits may differ by


def check_finite(model) -> None:
    for name, parameter in model.hf.named_parameters():
        if not torch.isfinite(parameter).all():
            raise KeditError(f"{model.name}: weight {name!r} holds NaN or inf; reload or re-download the model")


@torch.no_grad()
def check_logits(model) -> bool:
    """KeditError unless `model.logits` of the last layer's stream are the model's own logits, on a few tokens.

    Returns whether the layers return tuples, which the stream leads.
    """
    ids = torch.arange(min(4, model.hf.get_input_embeddings().num_embeddings), device=model.device)[None]
    seen = []
    with hooks((model.layers[-1], lambda module, args, output: seen.append(output))):
        own = model.hf(input_ids=ids, use_cache=False).logits.to(model.math_dtype)
    tuples = isinstance(seen[0], tuple)
    off = (model.logits(seen[0][0] if tuples else seen[0]) - own).abs().max() / own.abs().max().clamp(min=1e-30)
    if not off <= ROUNDINGS * torch.finfo(model.dtype).eps:
        raise KeditError(
            f"{model.name}: head(norm(stream)) is {off:.2g} of the largest off the model's own logits; model type "
            f"{model.hf.config.model_type!r} does more behind its last layer, its entry in LAYOUTS must say what"
        )
    return tuples
