"""The loss that δ is optimised by, computed by what δ reaches (`Suffix`) or by the whole model (`Plain`).
Both give the same numbers but for rounding. Making one takes a pass, which measures v₀ and the keys; each step calls
`loss_terms`. A request's rows are its prompt in every context, each followed by the target, and last its KL prompt."""

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
    found = []
    for e in edits:
        prompts = tuple(encode_prompt(tokenizer, c, e.prompt, e.subject) for c in contexts)
        kl = encode_prompt(tokenizer, "{}", KL_PROMPT, e.subject)
        found.append(Request(prompts, kl, target_ids(tokenizer, e.text, e.target_new, e.separator), e.subject))
    return found


@dataclass(frozen=True)
class Site:
    """Where δ goes, and what the first pass measures on the way there."""

    layer: int  # the last that runs unedited
    loss_layer: int  # the nll is read after it
    values: tuple  # modules in `layer`, or it itself: v₀ is their output at the clean prompt, z a value of the first
    keys: nn.Module  # the edited map, no later than `layer`, whose inputs are wanted
    inside: bool = False  # whether δ is added to the outputs of `values`; else to the stream after `layer`


class Suffix:
    """Requests with equally many contexts, ready for an optimisation at `site`. A step runs only what δ can change: the
    layers above it, from the subject's last token on. On the weights at hand, v0 [n, values, d_model]: outputs of
    `site.values` at the clean prompt's lookup token; keys [n, contexts, d_ff]: inputs of `site.keys` at every one."""

    whole = False  # whether a step runs the whole model
    replays = True  # whether a step waits for nothing, so that a GPU can replay it
    products = torch.float32  # what matrix products take where layers are written out

    def __init__(self, model, requests: list[Request], site: Site):
        self.model, self.site, self.requests, self._logits = model, site, requests, model.logits
        self._active, self._kl_before, self._replayed = torch.arange(len(requests)), None, None
        self._replays = self.replays and model.device.type == "cuda" and model.on_one_device
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

    @classmethod
    def begin(cls, prompt: Prompt) -> int:
        """Index of a prompt's first token that a step runs."""
        return 0 if cls.whole else prompt.lookup

    def _first_pass(self, ids: list[tuple[int, ...]], lookup: list[int]) -> tuple[dict, dict]:
        """{module: its input at the lookup token of every row} of `site.keys`, and likewise outputs of `site.values`.
        Sets `width`, the tokens of a row that are run."""
        site, run, top = self.site, self._run.flatten().tolist(), self.model.n_layers - 1
        self._above, above = None, site.layer + 1
        self._written_out = above <= top == site.loss_layer and written_out(self.model, above, self.products)
        if self.products == torch.bfloat16 and not self._written_out:
            needs = "Llama's or Mistral's class in float32, a CPU with bfloat16 products, room for the weights twice"
            raise KeditError(f"engine = 'bfloat16': needs a model of {needs}; leave it out")
        where = {"alone": site.inside, "inputs": [site.keys], "outputs": site.values}
        self.tails, *found = Tails.of(self.model, ids, lookup, run, site.layer + (not site.inside), **where)
        self.width = self.tails.hidden.shape[1]
        return tuple(found)

    def _keep(self, rows: Tensor) -> None:
        self._above, self._logits = None, self.model.logits  # which held all rows
        self.tails = self.tails.select(rows)

    def _streams(self, vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The residual stream [rows, width, d_model] after the loss layer and after the last one (one object, where
        these are one layer), with a vector [rows, d_model] added at each of the site's values."""
        site, tails, top = self.site, self.tails, self.model.n_layers - 1
        hidden = tails.hidden if site.inside else at_lookup(tails.hidden, vectors[0])
        behind, stops = {tails.first - 1: hidden}, {i for i in (site.loss_layer, top) if i >= tails.first}
        if stops:  # else δ is added above the last layer, and nothing is left to run
            added = zip(site.values, vectors, strict=True) if site.inside else ()
            if self._written_out:
                hidden = tails.run(hidden, {site.layer}, added)[site.layer] if site.inside else hidden
                self._above = self._above or LlamaTails(tails, site.layer + 1, self._real, self._both, self.products)
                behind[top] = self._above(hidden)
                self._logits = self._above.logits
            else:  # MLPs skip padding, and from the loss layer on all that is not read
                run_on = {i: self._real if i < site.loss_layer else self._both for i in range(tails.first, top + 1)}
                some = {i: index for i, index in run_on.items() if len(index) < hidden.shape[:2].numel()}
                behind |= tails.run(hidden, stops, added, some)
        return behind[site.loss_layer], behind[top]

    @classmethod
    def shape(cls, one: Request) -> tuple[int, int]:
        """Tokens of its longest row that a step runs, and of the longest front that only the first pass runs."""
        tail = max(len(p.ids) - cls.begin(p) for p in one.prompts) + len(one.target) - 1
        return tail, max(cls.begin(p) for p in (*one.prompts, one.kl))

    @classmethod
    def needs(cls, model, site: Site, one: Request) -> tuple[int, int]:
        """The tokens that a step runs, and about the bytes that it keeps for its backward pass: of each token eight
        vectors of the stream and three of the MLP a layer; twice the keys and values attended to; the logits."""
        layers, rows, size = model.n_layers - site.layer, len(one.prompts) + 1, model.weight(0).element_size()
        tail, front = cls.shape(one)
        attended = rows * (tail + front) * 4 * model.d_model
        read = (rows * len(one.target) + 1) * model.hf.config.vocab_size * 4
        return rows * tail, layers * (rows * tail * (8 * model.d_model + 3 * model.d_ff) + attended) * size + read * 4

    def loss_terms(self, delta: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """nll [m, contexts] = −(1/|t|) Σ_j log p(t_j); kl [m] = KL(p_δ ‖ p₀) at the KL prompt's lookup token, p₀ from
        the first call, whose δ is 0; wrong [m, contexts]: how many tokens of the target are not the argmax. delta is δ
        of all requests, [n, values, d_model]; active: ascending indices of m of them; one left out once stays out."""
        if len(active) < len(self._active):
            self._leave_out_all_but(active.cpu())
        if self._replays and len(delta) == 1 and self._kl_before is not None:
            return self._replay(delta)
        return self._terms(delta if len(active) == len(delta) else delta[active])

    def _replay(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`_terms` and its gradient as CUDA graphs, captured once: Python is slow to launch a single edit's kernels."""
        if self._replayed is None:
            # Of δ itself the backward pass would end on the stream where δ was first used, which cannot be captured.
            like, pool = delta.detach().clone().requires_grad_(), graph_memory(delta.device).pool()
            self._replayed = torch.cuda.make_graphed_callables(self._terms, (like,), num_warmup_iters=0, pool=pool)
        return self._replayed(delta)

    def _terms(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = delta[:, None].expand(-1, self._last.shape[1] + 1, -1, -1).flatten(0, 1)
        at_loss, final = self._streams(rows.unbind(1))
        if at_loss is final:
            log_p, log_kl = self._log_p(final, self._both).tensor_split([self._n_read])
        else:
            log_p, log_kl = map(self._log_p, (at_loss, final), self._both.tensor_split([self._n_read]))
        right = log_p.gather(1, self._token[:, None])[:, 0]
        nll = self._by_context(right, 0.0).sum(-1) / -self._n_tokens
        wrong = self._by_context(log_p.argmax(-1) != self._token, False).sum(-1)
        if self._kl_before is None:
            self._kl_before = log_kl.detach()
        return nll, (log_kl.exp() * (log_kl - self._kl_before)).sum(-1), wrong

    def _by_context(self, x: Tensor, else_: float | bool) -> Tensor:
        """Of each target token → [m, contexts, longest target]."""
        return x.new_full((self._shape.numel(),), else_).index_copy(0, self._at_token, x).view(self._shape)

    def _log_p(self, stream: Tensor, places: Tensor) -> Tensor:
        return self._logits(stream.flatten(0, 1).index_select(0, places)).log_softmax(-1)

    def _leave_out_all_but(self, active: Tensor) -> None:
        here, there = torch.isin(self._active, active).nonzero()[:, 0], self.model.device
        grid = torch.arange(self._last.numel() + len(self._last)).view(len(self._last), -1)
        self._keep(grid[here].flatten().to(there))
        self._last, self._kl_at, self._length = self._last[here], self._kl_at[here], self._length[here]
        self._target, self._kl_before = self._target[here], self._kl_before[here.to(there)]
        self._active = active
        self._find_places()

    def _find_places(self) -> None:
        """Indices into rows · width: where each target token is predicted and the KL is read, and all real tokens."""
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


class Plain(Suffix):
    """The whole model, on every token at every step."""

    whole, replays = True, False

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


ENGINES = {"suffix": Suffix, "plain": Plain, "bfloat16": Bfloat16}
