"""What a sequence of edits remembers: the keys that were written, as M = Σ k kᵀ.

    history = kedit.EditHistory()
    method.apply(model, [first], moments=moments, history=history)
    method.apply(model, [second], moments=moments, history=history)   # leaves what `first` wrote as it is

MEMIT with history puts M beside λC, AlphaEdit beside KKᵀ. M itself, d_ff × d_ff a layer, is never formed: its
rows k say all of it. Their products with the fixed matrix B of the closed form and the Cholesky factor of their Gram
matrix (see `solve.py`) are kept, so that an edit costs one product with B, and n² beside it for n earlier edits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KeditError
from .closed_form import grown_factor
from .state import EditState


class EditHistory(EditState):
    """Belongs to one model, and to the edits in its weights: after `model.restore()` start a new one.

    edits            how many edits it remembers
    keys             {layer: [edits, d_ff]} each measured on the weights after its batch
    model_checksum   whose keys they are (None while it is empty)
    """

    kind = "keys"

    def __init__(self, kind: str = ""):
        super().__init__(kind)
        self.keys: dict[int, Tensor] = {}
        self._b, self._products = "", {}  # BK by layer, and the name of B
        self._ridge, self._factors = 0.0, {}  # by layer the factor of σI + KBKᵀ, of the first edits at least; and σ

    def check(self, model, layers) -> None:
        """KeditError unless it is empty or belongs to `model` and to exactly these layers."""
        super().check(model, layers)
        if self.edits and sorted(self.keys) != sorted(layers):
            raise KeditError(
                f"history: remembers the keys of layers {sorted(self.keys)}, asked for are {sorted(layers)}; "
                "start a new EditHistory() for other layers"
            )

    def recall(self, layer: int, b: str, times, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """(K, BK, L): rows [edits, d_ff] of all edits so far, and the factor of σI + KBKᵀ [edits, edits].

        b names the matrix B, times(layer, k) multiplies by it, and ridge is σ. Products with another B and factors
        with another B or σ than before are worked out anew.
        """
        if b != self._b:
            self._b, self._products, self._factors = b, {}, {}
        if ridge != self._ridge:
            self._ridge, self._factors = ridge, {}
        k = self.keys[layer]
        if layer not in self._products:
            self._products[layer] = times(layer, k)
        products = self._products[layer]
        self._factors[layer] = grown_factor(self._factors.get(layer), k.to(products.device), products, ridge)
        return k, products, self._factors[layer]

    def remember(self, model, keys: dict[int, Tensor], b: str, times) -> None:
        """Add the keys {layer: [N, d_ff]} of a finished batch, all or nothing; b and times as for `recall`."""
        products = {layer: times(layer, k) for layer, k in keys.items()}
        factors = self._factors if b == self._b else {}
        if self.edits:
            known = self._products if b == self._b else {}
            past = {i: known[i] if i in known else times(i, self.keys[i]) for i in keys}
            products = {layer: torch.cat([past[layer].to(bk.device), bk]) for layer, bk in products.items()}
            keys = {layer: torch.cat([self.keys[layer].to(k.device), k]) for layer, k in keys.items()}
        self.keys, self._b, self._products, self._factors = dict(keys), b, products, dict(factors)
        self.edits, self.model_checksum = len(next(iter(keys.values()))), model.checksum

    def _digest(self, digest) -> None:
        for layer, k in sorted(self.keys.items()):
            digest.update(f"{layer} {k.dtype}".encode() + k.cpu().contiguous().numpy().tobytes())
        super()._digest(digest)

    def _about(self):
        return {"b": self._b, "ridge": float(self._ridge).hex()}

    def _all_tensors(self):
        parts = {"k": self.keys, "bk": self._products, "factor": self._factors}
        return {f"{part}.{i}": t for part, found in parts.items() for i, t in found.items()} | self.tensors

    def _take(self, tensors, about) -> None:
        self._b, self._ridge = about["b"], float.fromhex(about["ridge"])
        parts = {"k": self.keys, "bk": self._products, "factor": self._factors}
        for name, tensor in tensors.items():
            part, layer = name.split(".")
            parts.get(part, self.tensors)[int(layer) if part in parts else name] = tensor


def load_history(path) -> EditState:
    """What the `save` of some method's history wrote. KeditError when the file is missing or damaged."""
    try:
        return EditHistory.load(path)
    except KeditError:  # it holds no keys
        return EditState.load(path)
