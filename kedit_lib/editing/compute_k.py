"""Keys and values at the subject's last token. k is the input of `mlp.down_proj` there. MEMIT's key is the mean of the
clean prompt's and that of sampled contexts (`compute_ks.py` of kmeng01/memit); ROME's k̄ is the mean over all contexts
(`compute_u.py` of kmeng01/rome)."""

import torch
from torch import Tensor

from ..models.hooks import pad, trace
from ..models.memory import in_parts
from ..models.suffix import layer_calls, run_layer
from ..models.tokenization import Prompt, encode_prompt

ROWS = 256  # prompts a forward pass, bounds memory


def prompts_of(model, facts) -> list[Prompt]:
    """Clean prompts to read: of edits, whose targets play no part, or of (prompt with {}, subject, …) tuples."""
    pairs = [fact[:2] if isinstance(fact, tuple) else (fact.prompt, fact.subject) for fact in facts]
    return [encode_prompt(model.tokenizer, "{}", prompt, subject) for prompt, subject in pairs]


def keys_at(model, prompts, layers) -> dict[int, Tensor]:
    """{layer: [n, d_ff]} inputs of the edited map at each prompt's lookup token; one forward for all layers."""
    return Reading(model, prompts).keys(layers)


def outputs_at(model, prompts, module) -> Tensor:
    """[n, d_model] outputs of `module` at each prompt's lookup token."""
    return Reading(model, prompts).outputs(module)


class Reading:
    """Prompts, each cut at its lookup token, that are read there on the weights at hand. `settled`: below that layer
    nothing changes any more; the stream that enters it is kept, and the next reading starts there."""

    def __init__(self, model, prompts):
        self.model, self.first, self.hidden = model, 0, None
        self.ids = pad([p.ids[: p.lookup + 1] for p in prompts], model.device)
        self.lookup = torch.tensor([p.lookup for p in prompts], device=model.device)

    def keys(self, layers, settled: int = 0) -> dict[int, Tensor]:
        modules = {i: self.model.mlp_out(i) for i in layers}
        found = self._read(modules.values(), (), self.model.mlp_out(max(layers)), settled)
        return dict(zip(modules, found, strict=True))

    def outputs(self, module, settled: int = 0) -> Tensor:
        return self._read((), [module], module, settled)[0]

    @torch.no_grad()
    def _read(self, inputs, outputs, last, settled: int) -> list[Tensor]:
        below = [self.model.layers[settled - 1]] if settled > self.first else []

        def some(begin: int, end: int) -> list[Tensor]:
            ids, lookup = self.ids[begin:end], self.lookup[begin:end]
            run = self._upper_layers(begin, end) if self.first else self.model.hf
            seen_in, seen_out = trace(run, ids, inputs, [*outputs, *below], last)
            if below and self.hidden is None:
                self.hidden = seen_out[below[0]].new_empty(*self.ids.shape, self.model.d_model)
            for module in below:
                self.hidden[begin:end] = seen_out[module]
            at = torch.arange(len(ids), device=ids.device), lookup
            return [seen_in[module][at] for module in inputs] + [seen_out[module][at] for module in outputs]

        parts = in_parts(some, [1.0] * len(self.ids), ROWS, "reading a prompt")
        self.first = max(self.first, settled)
        return [torch.cat(part).to(self.model.math_dtype) for part in zip(*parts, strict=True)]

    def _upper_layers(self, begin: int, end: int):
        """The layers from `first` on, as a function like the model."""
        calls = layer_calls(self.model, self.ids[begin:end])

        def layers(**_):
            hidden = self.hidden[begin:end]
            for i in range(self.first, self.model.n_layers):
                hidden = run_layer(self.model, i, hidden, calls[i])

        return layers


def context_mean(values: Tensor, n_contexts: int, grouped: bool) -> Tensor:
    """Mean over contexts: [n·c, d] or [n, c, d] (clean first) → [n, d]. grouped: ½ clean + ½ mean
    of the others (MEMIT, PMET); else the plain mean (ROME)."""
    values = values.reshape(-1, n_contexts, values.shape[-1])
    if not grouped or n_contexts == 1:
        return values.mean(1)
    return (values[:, 0] + values[:, 1:].mean(1)) / 2
