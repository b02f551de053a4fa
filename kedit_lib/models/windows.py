"""Texts of any length, in pieces that a model has positions for."""

import math

from ..errors import KeditError
from .tokenization import encode


def positions_of(config) -> float:
    """How many tokens a model takes; inf without a limit (ALiBi, or angles that are stretched on the way)."""
    config = config.get_text_config()
    stretched = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
    limit = getattr(config, "max_position_embeddings", None)
    return math.inf if stretched or getattr(config, "alibi", False) or not limit else limit


def windows(tokenizer, text: str, limit: float) -> list[tuple[int, ...]]:
    """Ids of `text` in pieces of at most `limit`, none twice; each begins as a text does, with BOS if there is one."""
    ids = encode(tokenizer, text)
    if len(ids) <= limit:
        return [tuple(ids)] if ids else []
    begin = encode(tokenizer, "")
    begin = begin if ids[: len(begin)] == begin else []
    ids, step = ids[len(begin) :], int(limit) - len(begin)
    return [(*begin, *ids[i : i + step]) for i in range(0, len(ids), step)]


def longer_than(tokenizer, text: str, limit: float) -> bool:
    """Whether a text has more tokens than that; a short one is not tokenised, for none has more tokens than bytes."""
    return len(text.encode()) >= limit and len(encode(tokenizer, text)) > limit


def refuse_beyond(name: str, limit: float):
    """A pre-hook of a model that raises KeditError for more tokens than it has positions."""

    def check(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        past = kwargs.get("past_key_values")
        before = past.get_seq_length() if hasattr(past, "get_seq_length") else 0
        if ids is not None and before + ids.shape[-1] > limit:
            raise KeditError(
                f"{name}: a text of {before + ids.shape[-1]} tokens is longer than the model's {int(limit)} positions; "
                "shorten the prompt, target or paraphrase, or let less be generated"
            )

    return check
