"""A codebook at one layer, beside the weights: what GRACE and Gate share. Outside the family: no weight is changed."""

from abc import abstractmethod
from functools import partial
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from .method import Method, Outcome


class Codebook(NamedTuple):
    """keys [n, d_ff], reaches [n] and values [n, d_model] of its entries; targets: the ids of each (GRACE)."""

    keys: Tensor
    reaches: Tensor
    values: Tensor
    targets: tuple[tuple[int, ...], ...] = ()

    def and_one(self, key: Tensor, reach: Tensor, value: Tensor, *target: tuple[int, ...]) -> Self:
        grown = zip(self[:3], (key, reach, value), strict=True)
        return Codebook(*(torch.cat([old, new.to(old)[None]]) for old, new in grown), (*self.targets, *target))


class InCodebook(Method):
    """layers: the one with the codebook."""

    needs_moments = False
    keeps_history = needs_history = one_layer = True
    parts: ClassVar[tuple[str, str, str]] = ("keys", "reaches", "values")  # as histories on disk call them
    replaces: ClassVar[bool] = False  # whether a value stands in for the map's output, or is added to it
    precision: ClassVar[torch.dtype | None] = None  # of keys and reaches (None: the model's math dtype)

    @property
    def history_kind(self) -> str:
        return f"{type(self).__name__} at layer {self.layers[0]}"

    @staticmethod
    @abstractmethod
    def answering(x: Tensor, book: Codebook) -> tuple[Tensor, Tensor]:
        """Whether an entry answers x [..., d_ff], what enters the map that leaves the MLP, and which."""

    def recall(self, model, history):
        history, (layer,) = self._history(model, None, history), self.layers
        there = model.mlp_out(layer)._forward_hooks.values()
        if not any(getattr(hook, "func", None) is _answered and hook.args[1] is type(self) for hook in there):
            model.mlp_out(layer).register_forward_hook(partial(_answered, model, type(self), self.history_kind))
        if history.edits:
            parts = (history.get(part, layer, model.device) for part in self.parts)
            self._hold(model, Codebook(*parts, tuple(map(tuple, history.numbers.get("targets", ())))))

    def _book(self, model) -> Codebook:
        keys = torch.zeros(0, model.d_ff, dtype=self.precision or model.math_dtype, device=model.device)
        values = torch.zeros(0, model.d_model, dtype=model.math_dtype, device=model.device)
        return model.memory.get(self.history_kind, Codebook(keys, keys[:, 0], values))

    def _hold(self, model, book: Codebook) -> None:
        model.memory = {**model.memory, self.history_kind: book}

    def _outcome(self, call, targets) -> Outcome:
        """The codebook as it is now goes into the history."""
        history, book = call.history, self._book(call.model)
        for part, value in zip(self.parts, book[:3], strict=True):
            history.put(part, self.layers[0], value)
        if book.targets:
            history.numbers = {"targets": [[*ids] for ids in book.targets]}
        history.count(call.model, len(call.edits))
        return Outcome(self.name, call.edits, {}, targets)


def _answered(model, method: type[InCodebook], kind: str, module, args, output: Tensor) -> Tensor:
    """A forward hook: the map's output [..., d_model], changed at the tokens that an entry answers."""
    if kind not in model.memory:
        return output
    near, i = method.answering(args[0].detach().to(model.device), model.memory[kind])
    if not near.any():
        return output
    values = model.memory[kind].values[i].to(output)
    return torch.where(near[..., None].to(output.device), values if method.replaces else output + values, output)
