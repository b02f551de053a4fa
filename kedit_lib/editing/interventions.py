"""Methods with one thing changed: experiments that take one suspected cause out of a stream."""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import KeditError
from ..models.hooks import FILL, trace
from . import MEMIT, PMET, ROME
from .compute_k import Reading
from .engine import Plain
from .method import Method


def changed(method: Method, change: str) -> Method:
    """`method` with one of CHANGES, which its name says too. KeditError for one that is unknown or does not apply."""
    if change not in CHANGES:
        raise KeditError(f"change {change!r}: is unknown; there are {', '.join(CHANGES)}")
    mixin, fits = CHANGES[change]
    if not isinstance(method, fits):
        raise KeditError(f"change {change!r}: does not apply to {method.name}; use it with {fits[0].__name__}")
    return type(f"{method.name} {change}", (mixin, type(method)), {})(**dict(method))


def _with(*bases, **attributes) -> type:
    return type("", bases, attributes)


class _Superposed:
    """Every update is computed on the unedited model and added: W = W₀ + Σ Δᵢ. No edit responds to those before it."""

    def _apply(self, call):
        with call.model.temporarily():
            outcome = super()._apply(call)
        call.model.add(outcome.deltas)
        return outcome


class _FrozenTargets:
    """z is optimised on the unedited model; keys and residual are those of the edited one."""

    def _targets(self, call):
        with call.model.temporarily():
            found, _ = super()._targets(call)
        return _as_now(self, call, found), None


def _as_now(method, call, targets) -> list:
    """The targets with the same z, whose δ is what is missing on the weights so far."""
    delta = torch.stack([t.z for t in targets]) - method._values(Reading(call.model, call.clean))
    return [replace(t, delta=d) for t, d in zip(targets, delta, strict=True)]


class _StartInTarget:
    """The start token of the sequence is left in front of the target, as in the public log of a PMET run."""

    def prepare(self, model, *given, **named):
        start = model.tokenizer.bos_token_id
        if start is None:
            raise KeditError(f"start in target: the tokenizer of {model.name} has no start token; use another model")
        call = super().prepare(model, *given, **named)
        return replace(call, requests=[replace(r, target=(start, *r.target)) for r in call.requests])


def padded_in_front(model, rows: list[tuple[int, ...]]) -> dict[str, Tensor]:
    """input_ids [n, longest] and attention_mask [n, 1, longest, longest], 0 where a token is seen; at padding all
    scores are the lowest number, as in the transformers of that time."""
    longest, device, dtype = max(map(len, rows)), model.device, model.dtype
    ids = torch.tensor([[FILL] * (longest - len(row)) + list(row) for row in rows], device=device)
    front = torch.tensor([longest - len(row) for row in rows], device=device)
    at = torch.arange(longest, device=device)
    seen = (at <= at[:, None]) & (at >= front[:, None, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return {"input_ids": ids, "attention_mask": mask[:, None]}


def misplaced_keys(model, prompts, layers) -> dict[int, Tensor]:
    """`compute_k.keys_at` with the bug, all prompts in one batch."""
    wanted = {i: model.mlp_out(i) for i in layers}
    seen, _ = trace(model.hf, inputs=wanted.values(), **padded_in_front(model, [p.ids for p in prompts]))
    at = torch.arange(len(prompts)), torch.tensor([p.lookup for p in prompts])
    return {i: seen[module][at].to(model.math_dtype) for i, module in wanted.items()}


class _LeftPadded:
    """Prompts padded on the left and indexed as if padded on the right: a bug of public code that ran PMET on Llama. In
    a row with q tokens of padding δ is added, v₀ and keys are read and the target is expected q places too early. Edits
    are made one at a time; the residual is measured on the clean prompt alone, without padding."""

    engine = _with(Plain, _padded=lambda engine, ids: padded_in_front(engine.model, ids))

    def _optimise(self, call):
        each = [call.part(i, i + 1) for i in range(len(call.edits))]
        alone = [super(_LeftPadded, self)._optimise(one)[0][0] for one in each]
        return [replace(t, already=False) for t in _as_now(self, call, alone)], None

    def _keys(self, call, prompts, layers, settled=0):
        return {i: self._mean(k, call) for i, k in misplaced_keys(call.model, call.prompts, layers).items()}


# {change: (what goes in front of the method's class, the classes that it fits)}
CHANGES = {
    "superposed": (_Superposed, (MEMIT, PMET, ROME)),
    "frozen z": (_FrozenTargets, (MEMIT, PMET, ROME)),
    "clean keys": (_with(clean_only=True), (MEMIT, PMET, ROME)),  # the clean prompt is the only context
    "three contexts": (_with(contexts=lambda self, *given: Method.contexts(self, *given)[:3]), (MEMIT, PMET, ROME)),
    "twenty-one contexts": (_with(context_style="rome"), (MEMIT, PMET)),
    "linear share": (_with(_share=MEMIT._share), (PMET,)),  # R/(m − i) for R/√(m − i)
    "start in target": (_StartInTarget, (MEMIT, PMET, ROME)),
    "left padded": (_LeftPadded, (PMET, MEMIT)),
    "both bugs": (_with(_StartInTarget, _LeftPadded), (PMET, MEMIT)),
}
