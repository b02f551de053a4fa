"""Methods with one thing changed: experiments about causes, not methods that anyone proposes.

    method = changed(kedit.method_for(model, "memit"), "superposed")

Each change takes one suspected cause out of a stream and leaves the rest as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from ..errors import KeditError
from ..models.suffix import Tails
from . import MEMIT, PMET, ROME
from . import padding_bug as misplaced
from .compute_k import outputs_at
from .compute_z import optimise
from .method import Call, Method, Outcome


class _Superposed:
    """Every update is worked out on the unedited model, as if it were the only one, and added: W = W₀ + Σ Δᵢ.

    What goes wrong then is the sum of single edits and nothing else: no edit answers to the ones before it.
    """

    def _apply(self, call: Call) -> Outcome:
        with call.model.temporarily():
            outcome = super()._apply(call)
        call.model.add(outcome.deltas)
        return outcome


class _FrozenTargets:
    """z is optimised on the unedited model; keys and residual are those of the edited one."""

    def _targets(self, model, requests, z):
        with model.temporarily():
            found, _ = super()._targets(model, requests, z)
        v0 = outputs_at(model, [r.prompts[0] for r in requests], self._read(model))
        return [replace(t, delta=t.z - v) for t, v in zip(found, v0, strict=True)], None


class _Healed:
    """Targets are looked for where some tokens of the prompts have the state that they have on the unedited model, in
    front of the layers above z; what is written, and where, is left as it is."""

    def _optimise(self, model, requests):
        if not self.of_stream:
            raise KeditError(f"{self.name}: needs targets that are values of the stream; use it with MEMIT")
        return optimise(model, requests, replace(self._site(model), tails=self._tails), self)

    def _tails(self, model, *prompts, **wanted):
        now, *seen = Tails.of(model, *prompts, **wanted)
        with model.temporarily():
            unedited, *_ = Tails.of(model, *prompts, **wanted)
        return self._mixed(now, unedited), *seen


class _HealedBehind(_Healed):
    """The tokens behind the subject, where the answer is read."""

    def _mixed(self, now: Tails, unedited: Tails) -> Tails:
        return replace(now, hidden=torch.cat([now.hidden[:, :1], unedited.hidden[:, 1:]], 1))


class _HealedBefore(_Healed):
    """The tokens in front of the subject's last."""

    def _mixed(self, now: Tails, unedited: Tails) -> Tails:
        return replace(now, prefix=unedited.prefix)


class _CleanKeys:
    """The clean prompt is the only context: the key of the update is the key that the residual is measured at."""

    def contexts(self, model, given=None) -> list[str]:
        return ["{}"]


class _ThreeContexts:
    """The clean prompt and the first two sampled contexts."""

    def contexts(self, model, given=None) -> list[str]:
        return super().contexts(model, given)[:3]


class _TwentyOneContexts:
    """ROME's contexts: the clean prompt and twenty sampled ones, shorter and longer."""

    context_style: ClassVar[str] = "rome"


class _LinearShare:
    """PMET with MEMIT's share of the residual, R/(m − i) for R/√(m − i)."""

    def _share(self, i: int) -> float:
        return MEMIT._share(self, i)


class _StartInTarget:
    """The start token of the sequence is left in front of the target, as in the public log of a PMET run."""

    def _requests(self, model, edits, contexts):
        start = model.tokenizer.bos_token_id
        if start is None:
            raise KeditError(f"start in target: the tokenizer of {model.name} has no start token; use another model")
        return [replace(r, target=(start, *r.target)) for r in super()._requests(model, edits, contexts)]


class _LeftPadded:
    """Prompts are padded in front and looked up as if padded behind, as in public code that ran PMET on Llama; for one
    edit at a time, whose clean prompt alone has no padding when the residual is measured."""

    def _optimise(self, model, requests):
        places = (self._read(model), *([] if self.of_stream else [model.attn_out(self.layers[-1])]))
        v0 = outputs_at(model, [r.prompts[0] for r in requests], self._read(model))
        found = [misplaced.optimise(model, r, places, self) for r in requests]
        return [replace(t, delta=t.z - v) for t, v in zip(found, v0, strict=True)], None

    def _keys(self, call: Call, layers):
        prompts = [p for r in call.requests for p in r.prompts]
        return {i: self._mean(k, call) for i, k in misplaced.keys_at(call.model, prompts, layers).items()}


class _AsInTheLog(_StartInTarget, _LeftPadded):
    """Both bugs: the start token in the target, and prompts padded in front but looked up as if behind."""


CHANGES = {
    "superposed": (_Superposed, (MEMIT, PMET, ROME)),
    "frozen z": (_FrozenTargets, (MEMIT, PMET, ROME)),
    "healed behind": (_HealedBehind, (MEMIT,)),
    "healed before": (_HealedBefore, (MEMIT,)),
    "clean keys": (_CleanKeys, (MEMIT, PMET, ROME)),
    "three contexts": (_ThreeContexts, (MEMIT, PMET, ROME)),
    "twenty-one contexts": (_TwentyOneContexts, (MEMIT, PMET)),
    "linear share": (_LinearShare, (PMET,)),
    "start in target": (_StartInTarget, (MEMIT, PMET, ROME)),
    "left padded": (_LeftPadded, (PMET, MEMIT)),
    "both bugs": (_AsInTheLog, (PMET, MEMIT)),
}


def changed(method: Method, change: str) -> Method:
    """`method` with its hyperparameters and one of CHANGES; its name says which.

    KeditError for an unknown change, or one that means nothing for this method.
    """
    if change not in CHANGES:
        raise KeditError(f"change {change!r}: is unknown; there are {', '.join(CHANGES)}")
    mixin, fits = CHANGES[change]
    if not isinstance(method, fits):
        raise KeditError(f"change {change!r}: means nothing for {method.name}; use it with {fits[0].__name__}")
    cls = type(f"{method.name} {change}", (mixin, type(method)), {"__doc__": mixin.__doc__})
    return cls(**method.model_dump())
