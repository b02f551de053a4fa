"""The loss that δ is optimised by, computed by what δ reaches (`Suffix`) or by the whole model (`Plain`).

    engine = Suffix(model, requests, site)              one pass, which measures v₀ and the keys
    nll, kl, said = engine.loss_terms(delta, active)    at every step

The numbers are the same but for rounding. A request's rows are its prompt in every context, each with the target after
it, and last its KL prompt.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.edit import Edit
from ..errors import KeditError
from ..models.hooks import adding, hooks, pad, trace
from ..models.llama import LlamaTails, written_out
from ..models.memory import graph_memory
from ..models.suffix import Tails, at_lookup
from ..models.tokenization import Prompt, encode_prompt, target_ids

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class Request:
    """An edit as token ids: its prompt in every context, the clean one first; subject: for messages."""

    prompts: tuple[Prompt, ...]
    kl: Prompt
    target: tuple[int, ...]
    subject: str = ""


def requests_of(tokenizer, edits: list[Edit], contexts: list[str]) -> list[Request]:
    def request_of(e: Edit) -> Request:
        prompts = tuple(encode_prompt(tokenizer, c, e.prompt, e.subject) for c in contexts)
        kl = encode_prompt(tokenizer, "{}", KL_PROMPT, e.subject)
        return Request(prompts, kl, target_ids(tokenizer, e.text, e.target_new, e.separator), e.subject)

    return [request_of(e) for e in edits]


@dataclass(frozen=True)
class Site:
    """Where δ goes, and what the first pass measures on the way there.

    layer       z: the last layer that runs unedited
    loss_layer  the nll is read after it
    values      modules in `layer`, or it itself: their outputs at the clean prompt are v₀, a vector each; z is a value
                of the first
    inside      δ is added to the outputs of these modules; else to the stream after `layer`
    keys        the edited map, no later than `layer`, whose inputs are wanted
    """

    layer: int
    loss_layer: int
    values: tuple
    keys: nn.Module
    inside: bool = False


class Engine(ABC):
    """Some requests, all with as many contexts, ready for the steps of an optimisation at `site`.

    v0     [n, values, d_model] outputs of `site.values` at the clean prompt's lookup token
    keys   [n, contexts, d_ff] inputs of `site.keys` at every prompt's lookup token, on the weights at hand
    """

    replays = False  # whether a step waits for nothing, so that a GPU can replay it

    def __init__(self, model, requests: list[Request], site: Site):
        self.model, self.site, self.requests = model, site, requests
        self._active, self._kl_before, self._replayed = torch.arange(len(requests)), None, None
        ids = [row for r in requests for row in (*(p.ids + r.target[:-1] for p in r.prompts), r.kl.ids)]
        prompts = [p for r in requests for p in (*r.prompts, r.kl)]
        # As indices into a row from its first token that is run: where a prompt ends, and where the KL is read.
        self._last = torch.tensor([[len(p.ids) - 1 - self.begin(p) for p in r.prompts] for r in requests])
        self._kl_at = torch.tensor([[r.kl.lookup - self.begin(r.kl)] for r in requests])
        self._length = torch.tensor([len(r.target) for r in requests])
        self._target = pad([r.target for r in requests], None)
        inputs, outputs = self._first_pass(ids, [p.lookup for p in prompts])
        grid = len(requests), len(requests[0].prompts) + 1
        v0 = [outputs[module].unflatten(0, grid)[:, 0] for module in site.values]
        self.v0 = torch.stack(v0, 1).to(model.math_dtype)
        self.keys = inputs[site.keys].unflatten(0, grid)[:, :-1].to(model.math_dtype)
        self._find_places()

    @staticmethod
    @abstractmethod
    def begin(prompt: Prompt) -> int:
        """Index of a prompt's first token that a step runs."""

    @abstractmethod
    def _first_pass(self, ids: list[tuple[int, ...]], lookup: list[int]) -> tuple[dict, dict]:
        """{module: its input at the lookup token of every row} of `site.keys`, and likewise outputs of `site.values`.
        Sets `width`, the tokens of a row that are run."""

    @abstractmethod
    def _streams(self, vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The residual stream [rows, width, d_model] after the loss layer and after the last one (one object, where
        these are one layer), with a vector [rows, d_model] added at each of the site's values."""

    @abstractmethod
    def _keep(self, rows: Tensor) -> None:
        """Drop all other rows."""

    @classmethod
    def shape(cls, one: Request) -> tuple[int, int]:
        """Tokens of its longest row that a step runs, and of the longest front that only the first pass runs."""
        tail = max(len(p.ids) - cls.begin(p) for p in one.prompts) + len(one.target) - 1
        return tail, max(cls.begin(p) for p in (*one.prompts, one.kl))

    @classmethod
    def tokens(cls, one: Request) -> int:
        """How many a step runs."""
        return (len(one.prompts) + 1) * cls.shape(one)[0]

    @classmethod
    def bytes(cls, model, site: Site, one: Request) -> int:
        """About what a step keeps for its backward pass: of each token some eight vectors of the stream and three of
        the MLP a layer; keys and values of all that is attended to, kept and once more with the tail's; the logits."""
        layers, rows, size = model.n_layers - site.layer, len(one.prompts) + 1, model.weight(0).element_size()
        attended = rows * sum(cls.shape(one)) * 4 * model.d_model
        read = (rows * len(one.target) + 1) * model.hf.config.vocab_size * 4
        return layers * (cls.tokens(one) * (8 * model.d_model + 3 * model.d_ff) + attended) * size + read * 4

    def loss_terms(self, delta: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With δ [n, values, d_model] of all requests, and of the m requests `active` (indices, ascending; one that was
        once left out stays out):

        nll [m, contexts]   −(1/|t|) Σ_j log p(t_j)
        kl [m]              KL(p_δ ‖ p₀) at the KL prompt's lookup token; p₀ is that of the first call, whose δ is 0
        said [m, contexts]  whether every token of the target is the argmax
        """
        if len(active) < len(self._active):
            self._leave_out_all_but(active.cpu())
        if self.replays and len(delta) == 1 and delta.is_cuda and self._kl_before is not None:
            return self._replay(delta)
        return self._terms(delta if len(active) == len(delta) else delta[active])

    def _replay(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`_terms` and its gradient as CUDA graphs, captured once: a single edit's thousands of small kernels take the
        GPU less time than Python takes to launch them."""
        if self._replayed is None:
            # Of δ itself the backward pass would end on the stream where δ was first used, which cannot be captured.
            like, pool = delta.detach().clone().requires_grad_(), graph_memory(delta.device).pool()
            self._replayed = torch.cuda.make_graphed_callables(self._terms, (like,), num_warmup_iters=0, pool=pool)
        return self._replayed(delta)

    def _terms(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`loss_terms` of the requests that are left."""
        rows = delta[:, None].expand(-1, self._last.shape[1] + 1, -1, -1).flatten(0, 1)
        at_loss, final = self._streams(rows.unbind(1))
        if at_loss is final:
            log_p, log_kl = self._log_p(final, self._both).tensor_split([self._n_read])
        else:
            log_p, log_kl = map(self._log_p, (at_loss, final), self._both.tensor_split([self._n_read]))
        right = log_p.gather(1, self._token[:, None])[:, 0]
        nll = self._by_context(right, 0.0).sum(-1) / -self._n_tokens
        said = self._by_context(log_p.argmax(-1) == self._token, True).all(-1)
        if self._kl_before is None:
            self._kl_before = log_kl.detach()
        return nll, (log_kl.exp() * (log_kl - self._kl_before)).sum(-1), said

    def _by_context(self, x: Tensor, else_: float | bool) -> Tensor:
        """Of each target token → [m, contexts, longest target]."""
        return x.new_full((self._shape.numel(),), else_).index_copy(0, self._at_token, x).view(self._shape)

    def _log_p(self, stream: Tensor, places: Tensor) -> Tensor:
        return self._logits(stream.flatten(0, 1).index_select(0, places)).log_softmax(-1)

    def _logits(self, x: Tensor) -> Tensor:
        return self.model.logits(x)

    def _leave_out_all_but(self, active: Tensor) -> None:
        here, there = torch.isin(self._active, active).nonzero()[:, 0], self.model.device
        grid = torch.arange(self._last.numel() + len(self._last)).view(len(self._last), -1)
        self._keep(grid[here].flatten().to(there))
        self._last, self._kl_at, self._length = self._last[here], self._kl_at[here], self._length[here]
        self._target, self._kl_before = self._target[here], self._kl_before[here.to(there)]
        self._active = active
        self._find_places()

    def _find_places(self) -> None:
        """As indices into rows · width: where each target token is predicted and where the KL is read; and the tokens
        that are there."""
        device, (n, contexts), j = self.model.device, self._last.shape, torch.arange(self._target.shape[1])
        start = torch.arange(n * (contexts + 1)).view(n, -1) * self.width
        there = (j < self._length[:, None])[:, None].expand(n, contexts, -1)
        read = (start[:, :-1, None] + self._last[:, :, None] + j)[there]
        self._both, self._n_read = torch.cat([read, (start[:, -1:] + self._kl_at)[:, 0]]).to(device), len(read)
        self._token, self._shape = self._target[:, None].expand_as(there)[there].to(device), there.shape
        self._at_token = there.flatten().nonzero()[:, 0].to(device)
        self._n_tokens = self._length.to(device, self.model.math_dtype)[:, None]
        self._real = (torch.arange(self.width) < self._run[:, :, None]).flatten().nonzero()[:, 0].to(device)

    @property
    def _run(self) -> Tensor:
        """[n, contexts + 1] tokens of each row that are run."""
        return torch.cat([self._last + self._length[:, None], self._kl_at + 1], 1)


class Suffix(Engine):
    """Only what δ can change: the layers above it, on the tokens from the subject's last on."""

    replays = True
    products = torch.float32  # what matrix products take where layers are written out

    @staticmethod
    def begin(prompt: Prompt) -> int:
        return prompt.lookup

    def _first_pass(self, ids, lookup):
        site, run, top = self.site, self._run.flatten().tolist(), self.model.n_layers - 1
        self._above, above = None, site.layer + 1
        self._written_out = above <= top == site.loss_layer and written_out(self.model, above, self.products)
        where = {"alone": site.inside, "inputs": [site.keys], "outputs": site.values}
        self.tails, inputs, outputs = self._tails(ids, lookup, run, site.layer + (not site.inside), **where)
        self.width = self.tails.hidden.shape[1]
        return inputs, outputs

    def _tails(self, *prompts, **where):
        return Tails.of(self.model, *prompts, **where)

    def _keep(self, rows):
        self.tails, self._above = self.tails.select(rows), None

    def _streams(self, vectors):
        site, tails, top = self.site, self.tails, self.model.n_layers - 1
        hidden = tails.hidden if site.inside else at_lookup(tails.hidden, vectors[0])
        behind, stops = {tails.first - 1: hidden}, {i for i in (site.loss_layer, top) if i >= tails.first}
        if stops:  # else δ is added above the last layer, and nothing is left to run
            added = zip(site.values, vectors, strict=True) if site.inside else ()
            if self._written_out:
                hidden = tails.run(hidden, {site.layer}, added)[site.layer] if site.inside else hidden
                self._above = self._above or LlamaTails(tails, site.layer + 1, self._real, self._both, self.products)
                behind[top] = self._above(hidden)
            else:
                behind |= tails.run(hidden, stops, added, self._only(top))
        return behind[site.loss_layer], behind[top]

    def _logits(self, x):
        return self._above.logits(x) if self._written_out else super()._logits(x)

    def _only(self, top: int) -> dict[int, Tensor]:
        """The tokens that each layer's MLP is run on: no padding, and from the loss layer on only what is read."""
        n_tokens = self.tails.hidden[..., 0].numel()
        layers = {i: self._real if i < self.site.loss_layer else self._both for i in range(self.tails.first, top + 1)}
        return {i: index for i, index in layers.items() if len(index) < n_tokens}


class Plain(Engine):
    """The whole model, on every token at every step."""

    @staticmethod
    def begin(prompt: Prompt) -> int:
        return 0

    def _first_pass(self, ids, lookup):
        self._batch, lookup = self._padded(ids), torch.tensor(lookup, device=self.model.device)
        self._at = torch.arange(len(ids), device=lookup.device), lookup
        self.width = self._batch["input_ids"].shape[1]
        seen = trace(self.model.hf, inputs=[self.site.keys], outputs=self.site.values, **self._batch)
        return tuple({module: x[self._at] for module, x in part.items()} for part in seen)

    def _padded(self, ids) -> dict[str, Tensor]:
        return {"input_ids": pad(ids, self.model.device)}

    def _keep(self, rows):
        self._batch = {name: x[rows] for name, x in self._batch.items()}
        self._at = torch.arange(len(rows), device=rows.device), self._at[1][rows]

    def _streams(self, vectors):
        layers = self.model.layers
        values = self.site.values if self.site.inside else [layers[self.site.layer]]
        with hooks(*[(module, adding(v, self._at)) for module, v in zip(values, vectors, strict=True)]):
            ends = layers[self.site.loss_layer], layers[-1]
            _, seen = trace(self.model.hf, outputs=ends, last=layers[-1], gradient=True, **self._batch)
        return seen[ends[0]], seen[ends[1]]


class Bfloat16(Suffix):
    """`Suffix` with matrix products in bfloat16: not exact."""

    products = torch.bfloat16

    def _first_pass(self, ids, lookup):
        found = super()._first_pass(ids, lookup)
        if not self._written_out:
            needs = (
                "Llama's or Mistral's class in float32, a CPU that multiplies in bfloat16, room for its weights twice"
            )
            raise KeditError(f"engine = 'bfloat16': needs a model of {needs}; leave it out")
        return found


ENGINES = {"suffix": Suffix, "plain": Plain, "bfloat16": Bfloat16}
