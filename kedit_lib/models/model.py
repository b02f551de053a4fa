"""`EditableModel`: a Hugging Face causal LM, its tokenizer, and weight changes that can be taken back."""

from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import KeditError, check_kind
from .architectures import check_logits, check_owner, check_weights, digest_of, layout_of, setting_of, unwrapped
from .deltas import Deltas, save_model
from .tokenization import positions_of, refuse_beyond

FEW = 64  # tokens, of which W xᵀ takes a CPU half the time of x Wᵀ


class Snapshot(dict):
    """{parameter name: value} of everything changed, with the model's `applied` and `memory`."""

    applied, memory = None, {}


class EditableModel:
    """A model ready to be edited: evaluation mode, no gradients, originals kept of what is changed. `hf` is edited in
    place, also when it comes compiled or in DataParallel. name: what it was loaded as (None: as transformers knows it);
    folder: the local one, if it was one; layout: where its modules are. edited: {parameter name: its unedited value} of
    all that is changed, kept on the "device" or, to save its memory, the "host" (originals). applied: the method calls
    that the weights hold, as plain data, oldest first (None: changed by other means); memory: {baseline: what it
    remembers in place of weights}, never changed in place. math_dtype, which keys, targets and solves take, is float64
    for float64 weights, else float32."""

    def __init__(self, hf: nn.Module, tokenizer=None, name: str | None = None, folder=None, originals: str = "device"):
        if originals not in ("device", "host"):
            raise KeditError(f"originals {originals!r}: must be one of device, host")
        hf = unwrapped(hf, tokenizer, name or "model")
        name = name or hf.config._name_or_path or f"model-{digest_of(dict(hf.named_parameters()))[:8]}"
        self.hf, self.tokenizer, self.name = hf.eval().requires_grad_(False), tokenizer, name
        self.folder, self.originals, self.layout = folder, originals, layout_of(hf)
        self.layers = hf.get_submodule(self.layout.layers)
        self.n_layers, self.dtype = len(self.layers), self.weight(0).dtype
        self.math_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.d_model, self.d_ff = self.weight(0).shape[:: -1 if self.layout.transposed else 1]
        self.applied, self.memory, self.edited = [], {}, {}
        self._sums: dict[str, Tensor] = {}  # edited weights of less than single precision: W₀ + ΣΔ before its rounding
        check_weights(self)
        hf.register_forward_pre_hook(refuse_beyond(name, positions_of(hf.config)), with_kwargs=True)
        self.tuples = check_logits(self)  # whether its layers hand on tuples, which the stream leads

    def __repr__(self) -> str:
        calls = "changed by hand" if self.applied is None else f"edit calls: {len(self.applied)}"
        size = f"{self.n_layers} layers, d_model {self.d_model}, d_ff {self.d_ff}"
        kind = f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {calls if self.edited else 'unedited'}"
        return f"EditableModel({self.name}: {self.hf.config.model_type}, {size}, {kind})"

    @property
    def device(self) -> torch.device:
        """Where ids go, and whatever is measured comes back; layers may lie on others."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def on_one_device(self) -> bool:
        return {p.device for p in self.hf.parameters()} == {self.device}

    @cached_property
    def checksum(self) -> str:
        """sha256 over the unedited weights: names the model in caches and stores, with `setting` beside it."""
        return digest_of(dict(self.hf.named_parameters()) | self.edited)

    @cached_property
    def setting(self) -> str:
        return setting_of(self.hf, self.tokenizer)

    def check_layers(self, layers) -> list[int]:
        """`layers` as a list, or KeditError when there is none or one does not exist."""
        layers = [layers] if isinstance(layers, (int, str)) else list(layers)
        has = f"{self.name} has layers 0 to {self.n_layers - 1}"
        if not layers:
            raise KeditError(f"layers: none were given; {has}")
        if wrong := [layer for layer in layers if not isinstance(layer, int) or layer not in range(self.n_layers)]:
            raise KeditError(f"layer {wrong[0]!r}: {has}; choose among these (0-based)")
        return layers

    def mlp_out(self, layer: int) -> nn.Module:
        """The module whose weight W is edited at `layer`."""
        return self.layers[layer].get_submodule(self.layout.mlp_out)

    def mlp(self, layer: int) -> nn.Module:
        return self.layers[layer].get_submodule(self.layout.mlp)

    @property
    def head(self) -> nn.Module:
        return self.hf.get_submodule(self.layout.head)

    def weight(self, layer: int) -> nn.Parameter:
        """W as the model stores it: [d_model, d_ff], or [d_ff, d_model] for a transposed layout."""
        return self.mlp_out(layer).weight

    def weight_name(self, layer: int) -> str:
        """Name of W of `layer` among the parameters, the key of `outcome.deltas`."""
        return f"{self.layout.layers}.{layer}.{self.layout.mlp_out}.weight"

    @torch.no_grad()
    def drift(self, layer: int) -> Tensor:
        """W − W₀ of `layer`, W's own shape, in math dtype: all that is written there now; zeros when unedited."""
        weight, name = self.weight(layer).detach().to(self.device, self.math_dtype), self.weight_name(layer)
        return weight - self.edited[name].to(weight) if name in self.edited else weight * 0

    @property
    def mlp_scale(self) -> float:
        """Factor of the MLP's output where it is added to the stream; 1 but in Granite."""
        return getattr(self.hf.config, "residual_multiplier", 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        """head(norm(hidden)), from the residual stream [..., d_model] to [..., vocabulary], in math dtype; scaled
        (Cohere, Granite) or with the soft cap c·tanh(logits/c) (Gemma 2) where the family has that."""
        x, head, config = self.hf.get_submodule(self.layout.norm)(hidden), self.head, self.hf.config
        few = x.dim() == 2 and len(x) <= FEW and x.device.type == "cpu" and x.dtype.itemsize > 2
        few = few and type(head) is nn.Linear and head.bias is None and head.weight.device == x.device
        found = ((head.weight @ x.T).T if few else head(x)).to(self.device, self.math_dtype)
        scale = (getattr(config, "logit_scale", None) or 1.0) / getattr(config, "logits_scaling", 1.0)
        found = found if scale == 1 else scale * found
        cap = getattr(config, "final_logit_softcapping", None)
        return found if cap is None else cap * (found / cap).tanh()

    @torch.no_grad()
    def add(self, deltas: dict[str, Tensor]) -> None:
        """Add `deltas` ({parameter name: tensor of its shape}) to the weights; all or nothing. Half-precision weights
        are W₀ + ΣΔ rounded once, the sum kept in float32: one by one, small changes would be lost. KeditError for an
        unknown name, a wrong shape or a value that is not finite."""
        parameters, sums = dict(self.hf.named_parameters(remove_duplicate=False)), {}
        for name, delta in deltas.items():
            if name not in parameters:
                raise KeditError(f"delta {name!r}: {self.name} has no such parameter; nothing was written")
            if (parameter := parameters[name]).shape != delta.shape:
                shapes = f"shape {tuple(delta.shape)}, the parameter has {tuple(parameter.shape)}"
                raise KeditError(f"delta {name!r}: {shapes}; nothing was written")
            so_far = self._sums.get(name, parameter)
            wide = torch.promote_types(torch.promote_types(so_far.dtype, delta.dtype), self.math_dtype)
            sums[name] = so_far.to(wide) + delta.to(parameter.device, wide)
            if not torch.isfinite(sums[name].to(parameter.dtype)).all():
                where = f"holds NaN or inf, or leads to one in {self.dtype}"
                raise KeditError(f"delta {name!r}: {where}; nothing was written, check moments and learning rate")
        self._write(sums)
        if sums:
            self.applied = None

    @contextmanager
    def recording(self, record: dict):
        """Whatever is added inside counts as one more call in `applied`."""
        before = self.applied
        yield
        self.applied = None if before is None else [*before, record]

    def apply_deltas(self, deltas) -> None:
        """Add saved deltas or an outcome; all or nothing. KeditError for those of another model or another dtype."""
        self._check_deltas(deltas)
        with self.recording(deltas.record):
            self.add(deltas.deltas)

    def _check_deltas(self, deltas) -> None:
        check_kind("deltas: what is given", deltas, Deltas, "give an outcome, or kedit.load_deltas(folder)")
        check_owner(f"deltas of {deltas.method}: are", deltas.model_checksum, self, "load that one")

    def take_back(self, deltas) -> None:
        """Take deltas out again: bit for bit where nothing else was applied, else to a rounding. KeditError for those
        of another model and those that are not among `applied`."""
        self._check_deltas(deltas)
        left = list(self.applied or ())
        if deltas.record not in left:
            what = f"{deltas.method} edit of {', '.join(repr(e.subject) for e in deltas.edits[:3])}"
            raise KeditError(f"take back: {self.name} holds no {what}; apply_deltas it first, or restore() the model")
        left.remove(deltas.record)
        if not left:
            return self.restore()
        self.add({name: -delta for name, delta in deltas.deltas.items()})
        self.applied = left

    def restore(self) -> None:
        """The weights that were loaded, bit for bit."""
        self.load_snapshot({})

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of every parameter changed so far; in float32 where the model's own are of half precision."""
        found = Snapshot({n: self._sums.get(n, self.hf.get_parameter(n)).detach().clone() for n in self.edited})
        found.applied, found.memory = self.applied, self.memory
        return found

    @torch.no_grad()
    def load_snapshot(self, snapshot: dict[str, Tensor]) -> None:
        """The weights as they were at `snapshot()`."""
        self._write(snapshot)
        for name in self.edited.keys() - snapshot.keys():
            self.hf.get_parameter(name).copy_(self.edited[name])
            self._sums.pop(name, None)
            del self.edited[name]
        self.applied = getattr(snapshot, "applied", None) if snapshot else []
        self.memory = getattr(snapshot, "memory", {})

    def _write(self, values: dict[str, Tensor]) -> None:
        parameters, on_host = {n: self.hf.get_parameter(n).detach() for n in values}, self.originals == "host"
        # All are copied before any is written, so that memory which runs out here finds the weights as they were.
        new = {n: p for n, p in parameters.items() if n not in self.edited}
        self.edited.update({n: p.to("cpu" if on_host else p.device, copy=True) for n, p in new.items()})
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
            if torch.finfo(parameter.dtype).bits < 32:
                self._sums[name] = values[name].to(parameter.device, torch.float32, copy=True)

    @contextmanager
    def temporarily(self):
        """Inside: the original weights. In the end those at entry come back."""
        before = self.snapshot()
        self.restore()
        try:
            yield self
        finally:
            self.load_snapshot(before)

    save_pretrained = save_model
