"""Layers of Llama's kind on the tails of prompts, with the backward pass written out: the numbers of the layers
themselves, in fewer and larger operations.

    h = x/rms(x);  q, k, v = (h·w₁) Wᵀ, q and k turned by position
    p = softmax(q kᵀ/√d + mask);  y = x + (p v) Wᵀ
    h = y/rms(y);  gate, up = (h·w₂) Wᵀ;  out = y + (silu(gate)·up) Wᵀ

The forward pass reads weights that are kept transposed, in three quarters of the time for a few tokens. Linear maps run
on the real tokens [m], attention on all [n, T], where the queries of the heads that share a key form one matrix.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from .memory import free_memory
from .suffix import Tails

silu_backward = torch.ops.aten.silu_backward
KINDS = (LlamaDecoderLayer, MistralDecoderLayer)
_transposed: WeakKeyDictionary = WeakKeyDictionary()  # layer → (the state of its weights, `_Weights`)


def written_out(model, first: int) -> bool:
    """Whether the layers from `first` on are of this kind, without hooks, in single precision (in which their norms are
    computed whatever the weights are), and on a CPU that has room for their weights once more."""
    layers, config = model.layers[first:], model.hf.config
    plain = all(type(x) in KINDS for x in layers) and not any("bias" in n for n, _ in layers.named_parameters())
    plain = plain and not any(module._forward_hooks for module in layers.modules())
    if not plain or config.hidden_act != "silu" or model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    needed = sum(p.nbytes for x in layers if x not in _transposed for p in x.parameters())
    return needed < free_memory(model.device) // 4


class _Weights:
    """What a layer's forward pass reads: its weights [d_in, d_out], those with one input side by side, times the
    weights of the norm in front."""

    def __init__(self, layer):
        attn, mlp, into, behind = layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = torch.cat([m.weight for m in (attn.q_proj, attn.k_proj, attn.v_proj)]).T * into.weight[:, None]
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).T * behind.weight[:, None]
        self.out, self.down = attn.o_proj.weight.T, mlp.down_proj.weight.T
        for name, weight in vars(self).items():
            setattr(self, name, weight.detach().contiguous())

    @classmethod
    def of(cls, layer):
        """Made once, and again after a weight has changed."""
        state = [(p.data_ptr(), p._version) for p in layer.parameters()]
        if _transposed.get(layer, (None,))[0] != state:
            _transposed[layer] = state, cls(layer)
        return _transposed[layer][1]


class LlamaTails:
    """The layers from `first` on, with the keys and values in front of `tails`; real, read: indices into n·T of the
    tokens that are there, and of those that are read after the last layer."""

    def __init__(self, tails: Tails, first: int, real: Tensor, read: Tensor):
        self.layers, config = tails.model.layers[first:], tails.model.hf.config
        self.weights = [_Weights.of(layer) for layer in self.layers]
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        (self.n, self.t, _), self.head = tails.hidden.shape, self.layers[0].self_attn.head_dim
        self.place = torch.zeros(self.n * self.t, dtype=torch.long)  # of each of the n·T tokens among the real ones
        self.place[real] = torch.arange(len(real))
        self.real, self.read, self.at = real, read, self.place[read]
        cos, sin = (x[:, :, None] for x in tails.arguments.layers[first]["position_embeddings"])
        half = self.head // 2
        self.cos, self.sin = cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)
        self.mask = self._by_key(
            tails.arguments.layers[first]["attention_mask"].movedim(1, 2).expand(-1, -1, self.heads, -1)
        )
        room = tails.hidden.new_zeros(self.n, self.kv, self.t, self.head)  # the tail's own, at every step
        self.keys, self.values = (
            [torch.cat([kept[i], room], 2) if kept else room.clone() for i in range(first, tails.model.n_layers)]
            for kept in (tails.prefix.keys, tails.prefix.values)
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, T, d_model] → the same after the last layer; 0 where nothing is read."""
        return _Run.apply(hidden, self)

    def forward(self, hidden: Tensor) -> tuple[Tensor, list]:
        """That, and what `backward` needs of every layer."""
        x, kept, top = hidden.flatten(0, 1)[self.real], [], len(self.layers) - 1
        for i, (layer, w) in enumerate(zip(self.layers, self.weights, strict=True)):
            h1, r1 = _normed(x, layer.input_layernorm)
            o, seen = self._attention(i, (h1 @ w.qkv)[self.place].view(self.n, self.t, -1, self.head))
            x = torch.addmm(x[self.at], o[self.read], w.out) if i == top else torch.addmm(x, o[self.real], w.out)
            h2, r2 = _normed(x, layer.post_attention_layernorm)
            gate, up = (h2 @ w.gate_up).chunk(2, -1)
            act = silu(gate)
            x = torch.addmm(x, act * up, w.down)
            kept.append((seen, h1, r1, h2, r2, gate, up, act))
        return self._at(self.read, x).view_as(hidden), kept

    def backward(self, grad: Tensor, kept: list) -> Tensor:
        """The gradient of `hidden` from that of the stream after the last layer."""
        g, top = grad.flatten(0, 1)[self.read], len(self.layers) - 1
        for i in range(top, -1, -1):
            attn, mlp, norm = self.layers[i].self_attn, self.layers[i].mlp, self.layers[i].post_attention_layernorm
            seen, h1, r1, h2, r2, gate, up, act = kept.pop()
            a = g @ mlp.down_proj.weight
            inner = silu_backward(a * up, gate) @ mlp.gate_proj.weight
            g = g + _normed_back(torch.addmm(inner, a * act, mlp.up_proj.weight), h2, r2, norm)
            o = self._at(self.read if i == top else self.real, g @ attn.o_proj.weight)
            inner = self._attention_back(i, o.view(self.n, self.t, -1, self.head), *seen).flatten(0, 1)[self.real]
            projections, heads = (attn.q_proj, attn.k_proj, attn.v_proj), (self.heads, self.kv, self.kv)
            inner = sum(
                part.flatten(1) @ one.weight for part, one in zip(inner.split(heads, 1), projections, strict=True)
            )
            g = g if i < top else g.new_zeros(len(self.real), g.shape[1]).index_copy_(0, self.at, g)
            g = g + _normed_back(inner, h1, r1, self.layers[i].input_layernorm)
        return self._at(self.real, g).view_as(grad)

    def _attention(self, i: int, qkv: Tensor):
        """[n, T, heads + 2 kv heads, d] → [n·T, heads · d]"""
        qk, v = qkv.split([self.heads + self.kv, self.kv], 2)
        q, k = (qk * self.cos + qk.roll(self.head // 2, -1) * self.sin).split([self.heads, self.kv], 2)
        self.keys[i][:, :, -self.t :], self.values[i][:, :, -self.t :] = k.transpose(1, 2), v.transpose(1, 2)
        q, keys, values = self._by_key(q), self.keys[i].flatten(0, 1), self.values[i].flatten(0, 1)
        p = torch.baddbmm(self.mask, q, keys.mT, alpha=self.layers[i].self_attn.scaling).softmax(-1)
        return self._by_token(p @ values).reshape(self.n * self.t, -1), (q, keys, values, p)

    def _attention_back(self, i: int, o: Tensor, q: Tensor, keys: Tensor, values: Tensor, p: Tensor) -> Tensor:
        """The gradient of qkv from that of the output, [n, T, heads, d]."""
        o = self._by_key(o)
        dp = o @ values.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * self.layers[i].self_attn.scaling
        q, k, v = ds @ keys, ds[..., -self.t :].mT @ q, p[..., -self.t :].mT @ o
        qk = torch.cat([self._by_token(q), self._by_token(k)], 2)
        qk = qk * self.cos + (qk * self.sin).roll(self.head // 2, -1)
        return torch.cat([qk, self._by_token(v)], 2)

    def _at(self, places: Tensor, x: Tensor) -> Tensor:
        """[n·T, width] with x at these places, else 0."""
        return x.new_zeros(self.n * self.t, x.shape[1]).index_copy_(0, places, x)

    def _by_key(self, q: Tensor) -> Tensor:
        """[n, T, heads, d] → [n · kv heads, queries, d]: all queries of one key's heads, T of each."""
        return q.unflatten(2, (self.kv, -1)).permute(0, 2, 3, 1, 4).reshape(self.n * self.kv, -1, q.shape[-1])

    def _by_token(self, o: Tensor) -> Tensor:
        """Back to [n, T, heads, d]."""
        return o.view(self.n, self.kv, -1, self.t, self.head).permute(0, 3, 1, 2, 4).flatten(2, 3)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, tails):
        out, ctx.kept = tails.forward(hidden)
        ctx.tails = tails
        return out

    @staticmethod
    def backward(ctx, grad):
        return ctx.tails.backward(grad, ctx.kept), None


def _normed(x: Tensor, norm) -> tuple[Tensor, Tensor]:
    """(x/rms(x), 1/rms(x))"""
    r = (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return x * r, r


def _normed_back(g: Tensor, h: Tensor, r: Tensor, norm) -> Tensor:
    """The gradient of x from that of h·w."""
    g = g * norm.weight
    return r * (g - h * (g * h).mean(-1, keepdim=True))
