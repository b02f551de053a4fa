"""ROME's target behind a gate, outside the family: no weight is changed.

    ROME    W x + δ · (uᵀx)/(uᵀk)             every x gets its share of δ
    Gate    W x + δ · [cos(x, k) ≥ τ]         only what is near the key does

x is what enters the map that leaves the MLP, at every token; δ is optimised as by ROME, k is MEMIT's mean key of the
edit's contexts. τ is `threshold`, or less where the edit's own prompt is not that near to k. Of the entries that reach
x the nearest answers. An edit whose prompt an entry answers already is optimised on top of it and adds its δ to it.

A subject that is the first token of a text has the key that this token has with nothing before it: far from its own in
other texts and near to those of other first tokens. It gets two entries, one for exactly that key and one for the mean
of the other contexts; texts that begin with the same token open the first.

GRACE and HoReN (Fang et al. 2026, arXiv 2605.08143) have keys of a prompt's last tokens, and values in place of the
output. Here the key is that of the subject's last token, so that paraphrases find their entry, and δ is added.
"""

import torch
from pydantic import Field
from torch.nn.functional import normalize

from ..errors import KeditError
from .codebook import InCodebook
from .compute_k import context_mean, keys_at
from .engine import Site
from .locate_then_edit import Targeted
from .method import Call, Outcome

SLACK = 1e-3  # by which half precision may move a cosine


class Gate(InCodebook, Targeted):
    """Gate: adds ROME's δ where a key is near, at one layer. threshold: τ, cosine from which an entry answers, 0..1."""

    threshold: float = Field(0.8, gt=0, le=1)

    def _site(self, model):
        edited = model.mlp_out(self.layers[0])
        return Site(self.layers[0], self._loss_layer(model), (edited,), edited, inside=True)

    @staticmethod
    def answering(x, book):
        cosine = normalize(x.to(book.keys.dtype), dim=-1) @ book.keys.T  # keys have length 1; a reach is an entry's τ
        nearest, i = cosine.where(cosine >= book.reaches, -torch.inf).max(-1)
        return nearest.isfinite(), i

    def _apply(self, call: Call) -> Outcome:
        model, (layer,), n_contexts = call.model, self.layers, len(call.requests[0].prompts)
        self.recall(model, call.history)
        targets, found = self._targets(call)
        found = keys_at(model, call.prompts, [layer])[layer] if found is None else found.flatten(0, 1)
        keys, clean = normalize(context_mean(found, n_contexts, grouped=True), dim=-1), found[::n_contexts]
        reaches = ((normalize(clean, dim=-1) * keys).sum(-1) - SLACK).clamp(max=self.threshold)
        book, exact = self._book(model), reaches.new_tensor(1 - SLACK)
        for i, (target, k, x, reach) in enumerate(zip(targets, keys, clean, reaches, strict=True)):
            if not target.delta.isfinite().all():
                raise KeditError(f"layer {layer}: δ holds NaN or inf; nothing was written, check the learning rate")
            entries = [(x, k, reach)]
            if call.clean[i].lookup == 0 and n_contexts > 1:
                others = normalize(found.unflatten(0, (-1, n_contexts))[i, 1:].mean(0), dim=-1)
                entries = [(x, normalize(x, dim=-1), exact), (others, others, exact.new_tensor(self.threshold))]
            for asked, key, reached in entries:
                near, at = self.answering(asked, book) if len(book.keys) else (False, 0)
                if near:
                    book = book._replace(values=book.values.index_add(0, at[None], target.delta[None]))
                else:
                    book = book.and_one(key, reached, target.delta)
            target.key_per_layer[layer] = k
        self._hold(model, book)
        return self._outcome(call, targets)
