"""What an edit sequence remembers of its earlier edits: a method's own state, such as a projector or an inverse, or
their keys, whose M = Σ k kᵀ is never formed: kept are the rows, BK and the factor of σI + KBKᵀ (`closed_form.py`)."""

import copy
import hashlib
import json
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.atomic import replacing
from ..errors import KeditError, explained
from ..models.architectures import check_owner
from .closed_form import grown_factor

DERIVED = ("bk", "factor")  # from the keys: BK, and the Cholesky factor of σI + KBKᵀ (maybe of the first edits only)


class EditHistory:
    """Made by `method.new_history(model, moments)` and given to successive calls of `apply`. It belongs to one model
    and to the edits in its weights: after `model.restore()` start a new one. Methods of one kind read each other's.
    edits: how many it remembers; model_checksum: of their model (None while it is empty). tensors {"<what>.<layer>":
    tensor} and numbers {name: plain data} are replaced, never changed in place: for methods that keep keys "k" [edits,
    d_ff] and what is DERIVED of it, or a method's own. cache: neither saved nor part of the identity."""

    def __init__(self, kind: str = "keys"):
        self.kind, self.edits, self.model_checksum = kind, 0, None
        self.tensors: dict[str, Tensor] = {}
        self.numbers, self.cache = {}, {}
        self._b, self._ridge = "", 0.0  # the name of B, and σ

    def __repr__(self) -> str:
        size = sum(t.nbytes for t in self.tensors.values()) / 2**20
        return f"EditHistory({self.kind}: {self.edits} edits, {size:.3g} MiB)"

    @property
    def keys(self) -> dict[int, Tensor]:
        """{layer: [edits, d_ff]}"""
        return {int(name[2:]): k for name, k in self.tensors.items() if name.startswith("k.")}

    def check(self, model, layers) -> None:
        """KeditError unless it is empty or belongs to `model` and, where it keeps keys, to exactly these layers."""
        remedy = "start a new one for each model: method.new_history(model, moments)"
        check_owner("history: is", self.model_checksum, model, remedy)
        if self.keys and sorted(self.keys) != sorted(layers):
            holds = f"holds the keys of layers {sorted(self.keys)}, not of {sorted(layers)}"
            raise KeditError(f"history: {holds}; start a new EditHistory() for other layers")

    def recall(self, layer: int, b: str, times, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """(K, BK, L): rows [edits, d_ff] of all edits so far, and the factor of σI + KBKᵀ [edits, edits]. b names the
        matrix B, times(layer, k) multiplies by it, ridge is σ; only what is new, or of another B or σ, is computed."""
        stale = DERIVED if b != self._b else DERIVED[1:] if ridge != self._ridge else ()
        self.tensors = {name: t for name, t in self.tensors.items() if name.split(".")[0] not in stale}
        self._b, self._ridge = b, ridge
        k, bk = self.get("k", layer), self.get("bk", layer)
        if bk is None:
            bk = times(layer, k)
        elif len(bk) < len(k):
            bk = torch.cat([bk, times(layer, k[len(bk) :]).to(bk)])
        factor = grown_factor(self.get("factor", layer), k.to(bk.device), bk, ridge)
        self.tensors |= {f"bk.{layer}": bk, f"factor.{layer}": factor}
        return k, bk, factor

    def remember(self, model, keys: dict[int, Tensor]) -> None:
        """The keys {layer: [N, d_ff]} of a finished batch."""
        for layer, k in keys.items():
            self.append("k", layer, k)
        self.count(model, len(k))

    def count(self, model, edits: int) -> None:
        self.edits, self.model_checksum = self.edits + edits, model.checksum

    def get(self, what: str, layer, device=None) -> Tensor | None:
        found = self.tensors.get(f"{what}.{layer}")
        return found if found is None else found.to(device)

    def put(self, what: str, layer, value: Tensor) -> None:
        self.tensors[f"{what}.{layer}"] = value.contiguous()  # as a file gives it back: products then round alike

    def append(self, what: str, layer, rows: Tensor) -> None:
        past = self.get(what, layer, rows.device)
        self.put(what, layer, rows if past is None else torch.cat([past, rows]))

    @property
    def identity(self) -> str:
        """A hash, for stores."""
        digest = hashlib.sha256(f"{self.edits} {self.model_checksum}".encode())

        def add(named) -> None:
            for name, tensor in sorted(named.items()):
                digest.update(f"{name} {tensor.dtype}".encode() + tensor.cpu().contiguous().numpy().tobytes())

        add(self.keys)
        if self.numbers:
            digest.update(json.dumps(self.numbers, sort_keys=True).encode())
        add({name: t for name, t in self.tensors.items() if name.split(".")[0] not in ("k", *DERIVED)})
        return digest.hexdigest()[:20]

    def copy(self) -> Self:
        twin = copy.copy(self)
        vars(twin).update({name: dict(v) for name, v in vars(self).items() if isinstance(v, dict)})
        return twin

    def save(self, path) -> None:
        """Write one safetensors file, atomically."""
        about = {"kind": self.kind, "edits": str(self.edits), "model_checksum": self.model_checksum or ""}
        about |= {"numbers": json.dumps(self.numbers), "b": self._b, "ridge": float(self._ridge).hex()}
        with replacing(path) as partial:
            save_file({name: t.cpu().contiguous() for name, t in self.tensors.items()}, str(partial), metadata=about)

    @classmethod
    def load(cls, path) -> Self:
        """What `save` wrote, bit for bit. KeditError when the file is missing or damaged."""
        damaged = explained(f"history file {path}: cannot be read", "remove it and edit again")
        with damaged, safe_open(str(path), "pt") as file:
            about = file.metadata()
            found = cls(about.get("kind", "keys"))
            # Cloned into memory that is aligned as torch's own: products round differently elsewhere.
            found.tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            found.edits, found.model_checksum = int(about["edits"]), about["model_checksum"] or None
            found.numbers = json.loads(about.get("numbers", "{}"))
            found._b, found._ridge = about.get("b", ""), float.fromhex(about.get("ridge", "0"))
            return found
