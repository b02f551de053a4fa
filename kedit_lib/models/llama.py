"""Layers of Llama's kind on the tails of prompts, forward and backward written out: their numbers in fewer operations.

    h = x/rms(x);  q, k, v = (h·w₁) Wᵀ, q and k turned by position
    p = softmax(q kᵀ/√d + mask);  y = x + (p v) Wᵀ
    h = y/rms(y);  gate, up = (h·w₂) Wᵀ;  out = y + (silu(gate)·up) Wᵀ

Both directions read weights `in_order`, so these are kept once more: a few tokens take three quarters of the time. They
may be kept in bfloat16 instead: then matrix products take bfloat16, all else stays in float32. Linear maps run on the
real tokens [m]; attention on [n, T], where the queries of the heads that share a key form one matrix.
"""

from types import SimpleNamespace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlamaForCausalLM, MistralForCausalLM

from .memory import free_memory
from .suffix import Tails

LARGE = 1 << 20  # entries of a weight that is worth it
KINDS = (LlamaForCausalLM, MistralForCausalLM)
silu_backward, softmax_backward = torch.ops.aten.silu_backward, torch.ops.aten._softmax_backward_data
_kept: WeakKeyDictionary = WeakKeyDictionary()  # layer or head → {dtype: (the state of its weights, `weights_of` it)}


def written_out(model, first: int, dtype: torch.dtype) -> bool:
    """Whether the layers from `first` on are of this kind, without hooks, in single precision (in which their norms are
    computed whatever the weights are), and on a CPU that has products in `dtype` and room for the weights in it."""
    layers, config = [*model.layers[first:], model.head], model.hf.config
    plain = type(model.hf) in KINDS and not any("bias" in name for x in layers for name, _ in x.named_parameters())
    plain = plain and not any(module._forward_hooks for x in layers for module in x.modules())
    plain = plain and model.device.type == "cpu" and model.on_one_device and model.dtype == torch.float32
    if not plain or config.hidden_act != "silu":
        return False
    if dtype == torch.bfloat16 and not multiplies_in_bfloat16():
        return False
    needed = sum(p.numel() for x in layers if dtype not in _kept.get(x, {}) for p in x.parameters())
    return 2 * needed * dtype.itemsize < free_memory(model.device) // 2


def multiplies_in_bfloat16() -> bool:
    """Whether this CPU does, through oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def weights_of(part, dtype: torch.dtype) -> SimpleNamespace:
    """What the passes of a layer or the head multiply by, [d_in, d_out] (`…_back`: transposed); anew after a change."""
    state, kept = [(p.data_ptr(), p._version) for p in part.parameters()], _kept.setdefault(part, {})
    if kept.get(dtype, (None,))[0] != state:
        made = {}
        for name, weight in ({"head": part.weight} if isinstance(part, nn.Linear) else side_by_side(part)).items():
            large = name == "head" and weight.numel() >= LARGE and torch.backends.mkldnn.is_available()
            for direction, w in ((name, weight.detach().T), (f"{name}_back", weight.detach())):
                if large or dtype == torch.bfloat16:  # as oneDNN reads it fastest for some tens of tokens
                    made[direction] = torch.ops.mkldnn._reorder_linear_weight(w.T.to(dtype).contiguous(), 48)
                else:
                    made[direction] = in_order(w)
        kept[dtype] = state, SimpleNamespace(**made)
    return kept[dtype][1]


def side_by_side(layer) -> dict[str, Tensor]:
    """A layer's weights, those with one input as one matrix, times the weights of the norm in front; q scaled by 1/√d;
    in q and k the two halves of a head's pairs, which positions turn, next to each other."""
    attn, mlp = layer.self_attn, layer.mlp
    q, k = (in_pairs(m.weight, attn.head_dim) for m in (attn.q_proj, attn.k_proj))
    qkv = torch.cat([q * attn.scaling, k, attn.v_proj.weight]) * layer.input_layernorm.weight
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * layer.post_attention_layernorm.weight
    return {"qkv": qkv, "out": attn.o_proj.weight, "gate_up": gate_up, "down": mlp.down_proj.weight}


class LlamaTails:
    """The layers from `first` on, on `tails`; real, read: indices into n·T of the tokens that are there, and of those
    that are read after the last layer; dtype: of the matrix products."""

    def __init__(self, tails: Tails, first: int, real: Tensor, read: Tensor, dtype: torch.dtype):
        model, config = tails.model, tails.model.hf.config
        self.layers, self.norm = model.layers[first:], model.hf.get_submodule(model.layout.norm)
        self.weights = [weights_of(layer, dtype) for layer in self.layers]
        self.vocabulary = weights_of(model.head, dtype)
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        (self.n, self.t, self.d), self.head = tails.hidden.shape, self.layers[0].self_attn.head_dim
        self.real, self.read = real, read
        self._find_rows()
        given, prefix = tails.arguments[first], tails.prefix
        cosine, sine = (x.flatten(0, 1)[real, None, : self.head // 2] for x in given["position_embeddings"])
        self.turn, mask = torch.complex(cosine, sine), given["attention_mask"].expand(-1, self.kv, -1, -1)
        self.mask = mask.repeat(1, 1, self.heads // self.kv, 1).flatten(0, 1)  # [n · kv, queries of a key, P + T]
        room = tails.hidden.new_zeros(2, self.n, self.kv, self.t, self.head)  # the tail's own, at every step
        self.kept = [room.clone() for _ in self.layers]
        for i in [i for i in prefix.keys if i >= first]:
            front = torch.stack([in_pairs(prefix.keys[i].mT, self.head, 2).mT, prefix.values[i]])
            self.kept[i - first] = torch.cat([front, room], 3)

    def _find_rows(self):
        """As indices into the [·, d_head] rows of one tensor: what attention takes of the real tokens' [m, heads + 2 kv
        heads], and what these and the read ones take of what it returns. Padding takes a real token's rows, and in the
        backward pass a row of zeros, one behind the last."""
        n, t, heads, kv, m = self.n, self.t, self.heads, self.kv, len(self.real)
        place, each = torch.full((n * t,), m), heads + 2 * kv
        place[self.real] = torch.arange(m)
        self.at, place = place[self.read], place.view(n, 1, t)
        self.queries = (place % m * each + torch.arange(heads)[:, None]).flatten()
        self.pairs = (place % m * each + heads + torch.arange(2 * kv)[:, None]).flatten()
        spots = torch.arange(n * heads * t).view(n, heads, t).transpose(1, 2).reshape(n * t, heads)
        both = torch.arange(n * 2 * kv * t).view(n, 2 * kv, t).transpose(1, 2).reshape(n * t, 2 * kv) + spots.numel()
        self.tokens = torch.cat([spots, both], 1)[self.real].flatten()
        self.outputs, self.gradients = [], []  # of a layer below the last, and of the last
        for tokens in (self.real, self.read):
            where = torch.full((n * t,), len(tokens))
            where[tokens] = torch.arange(len(tokens))
            self.outputs.append(spots[tokens].flatten())
            self.gradients.append((where.view(n, 1, t) * heads + torch.arange(heads)[:, None]).flatten())

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, T, d_model] → the same after the last layer; 0 where nothing is read."""
        return _Written.apply(hidden, self._forward, self._backward)

    def logits(self, x: Tensor) -> Tensor:
        """[m, d_model] → [m, vocabulary]"""
        return _Written.apply(x, self._head, self._head_back)

    def _head(self, x: Tensor) -> tuple[Tensor, tuple]:
        h, r = _normed(x, self.norm)
        return times(h * self.norm.weight, self.vocabulary.head), (h, r)

    def _head_back(self, grad: Tensor, kept: tuple) -> Tensor:
        inner = times(grad, self.vocabulary.head_back) * self.norm.weight
        return normed_back(torch.zeros_like(kept[0]), inner, *kept)

    def _forward(self, hidden: Tensor) -> tuple[Tensor, list]:
        """The stream after the last layer, and what `_backward` needs of every layer."""
        x, kept, top = hidden.flatten(0, 1)[self.real], [], len(self.layers) - 1
        for i, (layer, w) in enumerate(zip(self.layers, self.weights, strict=True)):
            h1, r1 = _normed(x, layer.input_layernorm)
            o, seen = self._attention(i, times(h1, w.qkv))
            x = plus_times(x[self.at] if i == top else x, o, w.out)
            h2, r2 = _normed(x, layer.post_attention_layernorm)
            gate, up = times(h2, w.gate_up).chunk(2, -1)
            act = silu(gate)
            x = plus_times(x, act * up, w.down)
            kept.append((seen, h1, r1, h2, r2, gate, up, act))
        return hidden.new_zeros(self.n * self.t, self.d).index_copy_(0, self.read, x).view_as(hidden), kept

    def _backward(self, grad: Tensor, kept: list) -> Tensor:
        """The gradient of `hidden` from that of the stream after the last layer."""
        g, top = grad.flatten(0, 1)[self.read], len(self.layers) - 1
        for i in range(top, -1, -1):
            w, (seen, h1, r1, h2, r2, gate, up, act) = self.weights[i], kept.pop()
            a = times(g, w.down_back)
            inner = torch.cat([silu_backward(a * up, gate), a.mul_(act)], 1)
            normed_back(g, times(inner, w.gate_up_back), h2, r2)
            inner = times(self._attention_back(i, times(g, w.out_back), *seen), w.qkv_back)
            g = g if i < top else g.new_zeros(len(self.real), self.d).index_copy_(0, self.at, g)
            normed_back(g, inner, h1, r1)
        return grad.new_zeros(self.n * self.t, self.d).index_copy_(0, self.real, g).view_as(grad)

    def _attention(self, i: int, qkv: Tensor):
        """[m, (heads + 2 kv heads) · d] → [m, or in the last layer the read ones, heads · d]"""
        rows = qkv.view(len(qkv), -1, self.head)
        turned(rows[:, : self.heads + self.kv]).mul_(self.turn)
        rows = rows.flatten(0, 1)
        q = rows.index_select(0, self.queries).view(self.n * self.kv, -1, self.head)
        own = rows.index_select(0, self.pairs).view(self.n, 2, self.kv, self.t, self.head)
        self.kept[i][..., -self.t :, :] = own.transpose(0, 1)
        keys, values = self.kept[i].flatten(1, 2)
        p = torch.baddbmm(self.mask, q, keys.mT).softmax(-1)
        o = (p @ values).view(-1, self.head).index_select(0, self.outputs[i == len(self.layers) - 1])
        return o.view(-1, self.heads * self.head), (q, keys, values, p)

    def _attention_back(self, i: int, o: Tensor, q: Tensor, keys: Tensor, values: Tensor, p: Tensor) -> Tensor:
        """The gradient of qkv from that of the output."""
        o = torch.cat([o, o.new_zeros(1, o.shape[1])]).view(-1, self.head)
        o = o.index_select(0, self.gradients[i == len(self.layers) - 1]).view_as(q)
        ds = softmax_backward(o @ values.mT, p, -1, p.dtype)
        k, v = ds[..., -self.t :].mT @ q, p[..., -self.t :].mT @ o
        own = torch.stack([k, v]).view(2, self.n, self.kv, self.t, self.head).transpose(0, 1)
        rows = torch.cat([(ds @ keys).view(-1, self.head), own.reshape(-1, self.head)]).index_select(0, self.tokens)
        rows = rows.view(len(self.real), -1, self.head)
        turned(rows[:, : self.heads + self.kv]).mul_(self.turn.conj())
        return rows.flatten(1)


class _Written(torch.autograd.Function):
    """forward(x) → (its value, what is kept); backward(gradient, what was kept) → the gradient of x."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        out, ctx.kept = forward(x)
        ctx.back = backward
        return out

    @staticmethod
    def backward(ctx, grad):
        return ctx.back(grad, ctx.kept), None, None


def in_pairs(weight: Tensor, head: int, dim: int = 0) -> Tensor:
    """Entries j and j + d/2 of each head of dimension `dim`, which positions turn together, next to each other."""
    return weight.unflatten(dim, (-1, 2, head // 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 2)


def turned(rows: Tensor) -> Tensor:
    """[m, heads, d] as complex numbers [m, heads, d/2]: a turn is a product."""
    return torch.view_as_complex(rows.unflatten(-1, (-1, 2)))


def in_order(weight: Tensor) -> Tensor:
    """[d_in, d_out], its rows one after another; with a gap where they would all fall on the same lines of a cache."""
    d_in, d_out = weight.shape
    gap = 16 if weight.numel() >= LARGE and d_out * weight.element_size() % 4096 == 0 else 0
    return weight.contiguous() if not gap else weight.new_empty(d_in, d_out + gap)[:, :d_out].copy_(weight)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x W in x's dtype, W maybe as oneDNN has it."""
    if not weight.is_mkldnn:
        return x @ weight
    return torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight, None, "none", [], "").to(x.dtype)


def plus_times(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x + y W, in the place of x."""
    return x.add_(times(y, weight)) if weight.is_mkldnn else x.addmm_(y, weight)


def _normed(x: Tensor, norm) -> tuple[Tensor, Tensor]:
    """(x/rms(x), 1/rms(x))"""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    r = (r.square() / x.shape[-1] + norm.variance_epsilon).rsqrt()
    return x * r, r


def normed_back(g: Tensor, inner: Tensor, h: Tensor, r: Tensor) -> Tensor:
    """g, to which the gradient of x is added from `inner`, that of h = x/rms(x)."""
    return g.addcmul_(inner.addcmul_(h, (inner * h).mean(-1, keepdim=True), value=-1), r)
