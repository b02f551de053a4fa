"""What a method carries from one call to the next: named tensors and numbers that belong to one model.

    history = method.new_history(model, moments)
    method.apply(model, [first], moments=moments, history=history)
    method.apply(model, [second], moments=moments, history=history)   # knows what `first` left behind

The keys of earlier edits are the most common one (`EditHistory`); others are a projector, an inverse, a queue or
running statistics. `run_stream` makes it, checkpoints it and resumes it, whatever it holds.
"""

from __future__ import annotations

import copy
import hashlib
import json

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.atomic import replacing
from ..errors import KeditError


class EditState:
    """Belongs to one model, and to the edits in its weights: after `model.restore()` start a new one.

    kind             which methods can read it
    edits            how many edits it knows of
    model_checksum   of their model (None while it is empty)
    tensors          {"<what>.<layer>": tensor}; a method replaces them and never writes into one
    numbers          {name: number or plain data}
    cache            what follows from all this, worked out once; neither saved nor part of the identity
    """

    kind = ""

    def __init__(self, kind: str = ""):
        self.kind = kind or type(self).kind
        self.edits, self.model_checksum = 0, None
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict = {}
        self.cache: dict = {}

    def __repr__(self) -> str:
        size = sum(t.nbytes for t in self._all_tensors().values()) / 2**20
        return f"{type(self).__name__}({self.kind}: {self.edits} edits, {size:.3g} MiB)"

    def check(self, model, layers) -> None:
        """KeditError unless it is empty or belongs to `model`."""
        if self.edits and self.model_checksum != model.checksum:
            raise KeditError(
                f"history: is of another model (checksum {self.model_checksum[:12]}, {model.name} has "
                f"{model.checksum[:12]}); start a new one for each model: method.new_history(model, moments)"
            )

    def get(self, what: str, layer: int, device=None) -> Tensor | None:
        """The tensor of that layer; None: there is none yet."""
        found = self.tensors.get(f"{what}.{layer}")
        return found if found is None else found.to(device)

    def put(self, what: str, layer: int, value: Tensor) -> None:
        self.tensors[f"{what}.{layer}"] = value.contiguous()  # as it will be read again: products round alike then

    def count(self, model, edits: int) -> None:
        """So many edits more, of this model."""
        self.edits, self.model_checksum = self.edits + edits, model.checksum

    @property
    def identity(self) -> str:
        """A hash that names this state in stores."""
        digest = hashlib.sha256(f"{self.edits} {self.model_checksum}".encode())
        self._digest(digest)
        return digest.hexdigest()[:20]

    def _digest(self, digest) -> None:
        if self.numbers:
            digest.update(json.dumps(self.numbers, sort_keys=True).encode())
        for name, value in sorted(self.tensors.items()):
            digest.update(f"{name} {value.dtype}".encode() + value.cpu().contiguous().numpy().tobytes())

    def copy(self) -> EditState:
        """One that can be added to without changing this one."""
        twin = copy.copy(self)
        vars(twin).update({name: dict(v) for name, v in vars(self).items() if isinstance(v, dict)})
        return twin

    def save(self, path) -> None:
        """One safetensors file, written atomically."""
        about = {"kind": self.kind, "edits": str(self.edits), "model_checksum": self.model_checksum or ""}
        about |= {"numbers": json.dumps(self.numbers), **self._about()}
        tensors = {name: value.cpu().contiguous() for name, value in self._all_tensors().items()}
        with replacing(path) as partial:
            save_file(tensors, str(partial), metadata=about)

    @classmethod
    def load(cls, path) -> EditState:
        """What `save` wrote, bit for bit. KeditError when the file is missing or damaged."""
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata()
                # Cloned into memory that is aligned as torch's own: products round differently elsewhere.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, this is no dict
            state = cls(about.get("kind", ""))
            state.edits, state.model_checksum = int(about["edits"]), about["model_checksum"] or None
            state.numbers = json.loads(about.get("numbers", "{}"))
            state._take(tensors, about)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KeditError(f"history file {path}: cannot be read ({error}); remove it and edit again") from error
        return state

    def _about(self) -> dict[str, str]:
        return {}

    def _all_tensors(self) -> dict[str, Tensor]:
        return self.tensors

    def _take(self, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        self.tensors = tensors
