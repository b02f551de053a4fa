"""What a sequence of edits remembers: the keys that were written, as M = Σ k kᵀ.

    history = kedit.EditHistory()
    method.apply(model, [first], moments=moments, history=history)
    method.apply(model, [second], moments=moments, history=history)   # leaves what `first` wrote as it is

MEMIT with history puts M beside λC, AlphaEdit beside KKᵀ. M itself, d_ff × d_ff a layer, is never formed: its
rows k say all of it. Their products with the fixed matrix B of the closed form and the Cholesky factor of their Gram
matrix (see `solve.py`) are kept, so that an edit costs one product with B, and n² beside it for n earlier edits.
"""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.atomic import replacing
from ..errors import KeditError
from .closed_form import grown_factor


class EditHistory:
    """Belongs to one model, and to the edits in its weights: after `model.restore()` start a new one.

    edits            how many edits it remembers
    keys             {layer: [edits, d_ff]} each measured on the weights after its batch
    model_checksum   whose keys they are (None while it is empty)
    """

    def __init__(self):
        self.edits, self.model_checksum = 0, None
        self.keys: dict[int, Tensor] = {}
        self._b, self._products = "", {}  # BK by layer, and the name of B
        self._ridge, self._factors = 0.0, {}  # by layer the factor of σI + KBKᵀ, of the first edits at least; and σ

    def check(self, model, layers) -> None:
        """KeditError unless it is empty or belongs to `model` and to exactly these layers."""
        if self.edits and self.model_checksum != model.checksum:
            raise KeditError(
                f"history: holds keys of another model (checksum {self.model_checksum[:12]}, {model.name} has "
                f"{model.checksum[:12]}); start a new EditHistory() for each model"
            )
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

    @property
    def identity(self) -> str:
        """A hash that names these keys in stores."""
        digest = hashlib.sha256(f"{self.edits} {self.model_checksum}".encode())
        for layer, k in sorted(self.keys.items()):
            digest.update(f"{layer} {k.dtype}".encode() + k.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:20]

    def copy(self) -> EditHistory:
        """One that can be added to without changing this one."""
        twin = EditHistory()
        twin.edits, twin.model_checksum, twin.keys = self.edits, self.model_checksum, dict(self.keys)
        twin._b, twin._products = self._b, dict(self._products)
        twin._ridge, twin._factors = self._ridge, dict(self._factors)
        return twin

    def save(self, path) -> None:
        """One safetensors file, there whole or not at all."""
        parts = {"k": self.keys, "bk": self._products, "factor": self._factors}
        tensors = {f"{part}.{i}": t.cpu().contiguous() for part, found in parts.items() for i, t in found.items()}
        about = {"edits": str(self.edits), "model_checksum": self.model_checksum or "", "b": self._b}
        about["ridge"] = self._ridge.hex()
        with replacing(path) as partial:
            save_file(tensors, str(partial), metadata=about)

    @classmethod
    def load(cls, path) -> EditHistory:
        """What `save` wrote, bit for bit. KeditError when the file is missing or damaged."""
        history = cls()
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata()
                for name in file.keys():  # noqa: SIM118, this is no dict
                    part, layer = name.split(".")
                    # Cloned into memory that is aligned as torch's own: products round differently elsewhere.
                    tensor = file.get_tensor(name).clone()
                    {"k": history.keys, "bk": history._products, "factor": history._factors}[part][int(layer)] = tensor
            history.edits, history._b = int(about["edits"]), about["b"]
            history._ridge = float.fromhex(about["ridge"])
            history.model_checksum = about["model_checksum"] or None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise KeditError(f"history file {path}: cannot be read ({error}); remove it and edit again") from error
        return history
