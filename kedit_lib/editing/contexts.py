"""Context templates: sampled beginnings in front of the prompt, so that an edit does not depend on one wording. Source:
`get_context_templates` of the ROME, MEMIT and EasyEdit code, which sample unseeded, once a process."""

import torch

from ..data.edit import around_places, escaped
from ..errors import KeditError, check_editable
from ..models.tokenization import encode

STARTERS = ("The", "Therefore", "Because", "I", "You")
# style -> (contexts for each starter, length in tokens with the starter but without BOS)
STYLES = {"memit": ((1, 10),), "rome": ((2, 5), (2, 10))}


@torch.no_grad()
def generate_contexts(model, seed: int = 0, style: str = "memit", top_k: int = 5) -> list[str]:
    """`{}` first, then sampled beginnings, each followed by ". {}"; braces in sampled text are doubled. style "memit":
    five of 10 tokens; "rome": ten of 5 tokens and ten of 10 (EasyEdit's five starters)."""
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
