"""Retrieval in the prompt, a baseline outside the family: no weight is changed. Edits are kept as sentences, and the
nearest one is put before every text that names its subject (as in IKE, Zheng et al. 2023, arXiv 2305.12740, without its
demonstrations): the one whose prompt shares most of its words with the text; of several the one of the longest subject,
then the newest. Probes and all else that asks through the model's tokenizer are reminded; methods that edit it are not.
"""

import re
from math import log, nan

import torch
from pydantic import Field

from ..data.words import joint, places
from ..models.tokenization import encode
from .compute_z import Target
from .method import Call, Method, Outcome


class Retrieval(Method):
    """Retrieval: puts the nearest edit before a text, as a sentence. overlap: share of the words of an edit's prompt,
    without its subject, that a text to be reminded has, 0..1."""

    clean_only = True
    needs_moments = False
    keeps_history = needs_history = True
    layers: list[int] = [0]  # none is edited; every method names one
    overlap: float = Field(0.0, ge=0, le=1)

    def recall(self, model, history):
        if not isinstance(model.tokenizer, Reminding):
            model.tokenizer = Reminding(model)
        if history.edits:
            facts = tuple((*fact, self.overlap) for fact in history.numbers["facts"])
            model.memory = {**model.memory, self.name: facts}

    def _apply(self, call: Call) -> Outcome:
        model, history, targets = call.model, call.history, []
        self.recall(model, history)
        before = [_probability(model, r.prompts[0].ids, r.target) for r in call.requests]
        facts = [list(fact[:3]) for fact in model.memory.get(self.name, ())]
        for e in call.edits:
            sentence = e.text + joint(e.text, e.target_new, e.separator) + e.target_new
            facts.append([e.prompt.replace("{}", " "), e.subject, f"{sentence.removesuffix('.')}."])
        history.numbers = {"facts": facts}  # [prompt without its subject, subject, sentence] each
        history.count(model, len(call.edits))
        self.recall(model, history)
        for edit, request, (p, said) in zip(call.edits, call.requests, before, strict=True):
            q, _ = _probability(model, encode(model.tokenizer, edit.text), request.target)
            losses = [-log(max(each, 1e-300)) for each in (p, q)]
            targets.append(Target(None, None, losses, [p, q], nan, False, said))
        return Outcome(self.name, call.edits, {}, targets)


class Reminding:
    """A model's tokenizer that puts the nearest sentence of its memory before a text that gets special tokens."""

    def __init__(self, model):
        self.model, self.plain = model, model.tokenizer

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def __call__(self, text, *args, **options):
        whole = options.get("add_special_tokens", True) and not options.get("return_offsets_mapping")
        if whole and (memory := self.model.memory.get("Retrieval")):
            text = reminded(memory, text) if isinstance(text, str) else [reminded(memory, one) for one in text]
        return self.plain(text, *args, **options)


def reminded(memory, text: str) -> str:
    """`text`, the nearest sentence before it. memory: (prompt, subject, sentence, overlap), the oldest first."""
    found = []
    for age, (prompt, subject, sentence, overlap) in enumerate(memory):
        if subject in text and places(text, subject):
            asked, words = ({word.lower() for word in re.findall(r"\w+", one)} for one in (prompt, text))
            share = len(asked & words) / len(asked) if asked else 1.0
            found += [(share, len(subject), age, sentence)] if share >= overlap else []
    return f"{max(found)[-1]} {text}" if found else text


@torch.no_grad()
def _probability(model, prompt, target) -> tuple[float, bool]:
    """(the geometric mean of the target's token probabilities, whether each is the model's own choice)"""
    ids = torch.tensor([[*prompt, *target]], device=model.device)
    logits = model.hf(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].to(model.math_dtype)
    answer = torch.tensor(target, device=ids.device)
    each = logits.log_softmax(-1).gather(1, answer[:, None])
    return each.mean().exp().item(), bool((logits.argmax(-1) == answer).all())
