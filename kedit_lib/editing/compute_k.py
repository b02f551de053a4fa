"""Contexts; keys (inputs of the edited map, Llama's `mlp.down_proj`) and values at the subject's last token."""

from functools import partial

import torch
from torch import Tensor

from ..data.edit import around_places, escaped
from ..errors import KeditError, check_editable
from ..models.hooks import pad, trace
from ..models.memory import in_parts
from ..models.suffix import layer_calls, run_layer
from ..models.tokenization import Prompt, encode, encode_prompt

STARTERS = ("The", "Therefore", "Because", "I", "You")
# style -> (contexts for each starter, length in tokens with the starter but without BOS)
STYLES = {"memit": ((1, 10),), "rome": ((2, 5), (2, 10))}
ROWS = 256  # prompts per forward pass, bounds memory


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
    """Reads keys and outputs at each prompt's lookup token under the current weights. `settled`: below that layer
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
            run = partial(self._upper_layers, begin, layer_calls(self.model, ids)) if self.first else self.model.hf
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

    def _upper_layers(self, begin: int, calls: list[dict], input_ids: Tensor, **_) -> None:
        """The layers from `first` on, run in place of the model."""
        hidden = self.hidden[begin : begin + len(input_ids)]
        for i in range(self.first, self.model.n_layers):
            hidden = run_layer(self.model, i, hidden, calls[i])


def context_mean(values: Tensor, n_contexts: int, grouped: bool) -> Tensor:
    """Mean over contexts: [n·c, d] or [n, c, d] (clean first) → [n, d]. grouped: ½ clean + ½ mean of the others,
    MEMIT's key (`compute_ks.py` of kmeng01/memit); else the plain mean, ROME's k̄ (`compute_u.py` of kmeng01/rome)."""
    values = values.reshape(-1, n_contexts, values.shape[-1])
    if not grouped or n_contexts == 1:
        return values.mean(1)
    return (values[:, 0] + values[:, 1:].mean(1)) / 2


@torch.no_grad()
def generate_contexts(model, seed: int = 0, style: str = "memit", top_k: int = 5) -> list[str]:
    """`{}` first, then sampled beginnings, each followed by ". {}", so that an edit does not depend on one wording;
    braces in sampled text are doubled. style "memit": five of 10 tokens; "rome": ten of 5 tokens and ten of 10
    (EasyEdit's five starters). Source: `get_context_templates` of the ROME, MEMIT and EasyEdit code (unseeded)."""
    if style not in STYLES:
        raise KeditError(f"context style {style!r}: is unknown; use {' or '.join(map(repr, STYLES))}")
    check_editable(model, "generate_contexts")
    generator, contexts = torch.Generator().manual_seed(seed), ["{}"]
    for start, length in [(start, length) for n, length in STYLES[style] for start in STARTERS for _ in range(n)]:
        ids = encode(model.tokenizer, start)
        for _ in range(length - len(model.tokenizer(start, add_special_tokens=False).input_ids)):
            logits = model.hf(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()
            best, token = logits.topk(top_k)
            ids.append(int(token[torch.multinomial(best.softmax(-1), 1, generator=generator)]))
        text = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        contexts.append(f"{escaped(text)}. {{}}")
    return contexts


def check_contexts(contexts) -> list[str]:
    """The list with the clean context first; KeditError for none, a malformed one, or no `{}` among them."""
    if isinstance(contexts, str):
        raise KeditError(f"contexts: must be a list of strings, got one string {contexts!r}; put it in [ ]")
    contexts = list(contexts)
    for context in contexts:
        if not isinstance(context, str) or len(around_places(context)) != 2:
            raise KeditError(f"context {context!r}: needs exactly one {{}} where the prompt goes")
    if "{}" not in contexts:
        raise KeditError("contexts: the clean context '{}' is missing; put it first")
    return ["{}"] + [c for c in contexts if c != "{}"]
