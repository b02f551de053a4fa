"""A second device, "second:0", for machines that have none: its tensors lie on the CPU, and it refuses to compute with
those of another device, as a GPU does. Imported in a process of its own: torch takes it for an accelerator."""

from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import accelerate
import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

import kedit_lib as kedit

INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # by indices on the CPU, too


class There(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        shape = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.shape, device="second:0", **shape)
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return computed(op, *args, **(kwargs or {}))

    def tolist(self):
        return self.raw.tolist()

    def new_tensor(self, value):
        return There(self.raw.new_tensor(value))


def computed(op, *args, **kwargs):
    """What the CPU makes of it, on the device where torch would have it."""
    name, seen = op._schema.name, []

    def raw(x):
        if isinstance(x, torch.Tensor) and (x.dim() or not seen):
            seen.append(x.device.type)
        return x.raw if isinstance(x, There) else x

    bare, named = tree_map(raw, (args, kwargs))
    if name == "aten::_local_scalar_dense":
        return bare[0].item()
    if name == "aten::copy_":
        bare[0].copy_(bare[1])
        return args[0]
    asked = named.pop("device", None)
    if asked is not None or name == "aten::_to_copy":
        named["device"], there = "cpu", (asked or args[0].device).type == "second"
    else:
        seen = seen[:1] + [x for x in seen[1:] if x != "cpu"] if name in INDEXED else seen
        if len(set(seen)) > 1:
            raise RuntimeError(f"{name}: tensors on two devices")
        there = "second" in seen
    out = op(*bare, **named)
    for argument, given in zip(op._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return given
    return tree_map(lambda x: There(x) if there and isinstance(x, torch.Tensor) else x, out)


_setup_privateuseone_for_python_backend("second", hook=_DummyPrivateUse1Hook())
library = torch.library.Library("_", "IMPL")
library.fallback(computed, "PrivateUse1")


def moved(make, *args, device=None, **named):
    made = make(*args, **named)
    return made if device is None else made.to(device)


@contextmanager
def present():
    """Inside, what torch makes of numbers on a device is made on the CPU and moved."""
    with ExitStack() as stack:
        for name in ("tensor", "arange", "eye"):
            stack.enter_context(patch.object(torch, name, partial(moved, getattr(torch, name))))
        yield


def spread(model, home: str, other: str, lower: int):
    """The model with its embeddings and `lower` layers at home, the rest on the other device."""
    layout, hf = model.layout, model.hf
    embeddings = next(n for n, m in hf.named_modules() if m is hf.get_input_embeddings())
    base = layout.layers.rsplit(".", 1)[0]
    places = {f"{base}.{name}": home for name, _ in hf.get_submodule(base).named_children()} | {layout.head: other}
    tied = model.head.weight is hf.get_input_embeddings().weight
    places |= {embeddings: home, layout.norm: other, layout.head: home if tied else other}
    del places[layout.layers]
    places |= {f"{layout.layers}.{i}": home if i < lower else other for i in range(model.n_layers)}
    moved = accelerate.dispatch_model(hf, places, main_device="cpu", force_hooks=True)
    return kedit.EditableModel(moved, model.tokenizer)
