"""Perplexity on plain text."""

import torch
from torch import Tensor

from ..data.files import texts_of
from ..errors import KeditError, check_editable
from ..models.hooks import by_length, pad, trace
from ..models.tokenization import positions_of, windows

ROWS = 16  # few, so that texts of like length share a batch: padding costs as much as text
MOST_TOKENS = 1 << 14  # in a pass
MOST_LOGITS = 1 << 28  # at a time: a gigabyte in float32, and as much again for their logarithms


@torch.no_grad()
def perplexity(model, texts) -> float:
    """exp of the mean negative log-probability per token over all texts. Range ≥ 1; a uniform guess gives the
    vocabulary's size.

    texts: as `SecondMoments.estimate` takes them. One longer than the model's context is read in windows, each from its
    beginning. Memory does not grow with the texts' length. KeditError when nothing is to be predicted.
    """
    check_editable(model, "perplexity")
    limit = min(positions_of(model.hf.config), MOST_TOKENS)
    rows = [row for text in texts_of(texts, "perplexity") for row in windows(model.tokenizer, text, limit)]
    lengths = [len(r) for r in rows]
    parts = by_length(lengths, max(1, min(ROWS, MOST_TOKENS // max(lengths))))
    nll = torch.cat([_nll(model, [rows[i] for i in part]).double() for part in parts])
    if not len(nll):
        raise KeditError("perplexity: no text has two tokens or more; give longer texts")
    return nll.mean().exp().item()


def _nll(model, rows: list[tuple[int, ...]]) -> Tensor:
    """−log p of every token of `rows` but each row's first."""
    ids = pad(rows, model.device)
    lengths = torch.tensor([len(r) for r in rows], device=ids.device)
    real = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    _, seen = trace(model.hf, ids, outputs=[model.layers[-1]], last=model.layers[-1])
    stream, token = seen[model.layers[-1]][:, :-1][real], ids[:, 1:][real]
    size = max(1, MOST_LOGITS // model.hf.get_input_embeddings().num_embeddings)
    parts = zip(stream.split(size), token.split(size), strict=True)
    return torch.cat([-model.logits(s).log_softmax(-1).gather(-1, t[:, None])[:, 0] for s, t in parts])
