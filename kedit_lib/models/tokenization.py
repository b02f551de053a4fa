"""From text to ids: prompts with the place of the subject's last token, and targets.

The convention is the authors': context and prompt are joined as text and tokenised once; the target
keeps the ids it has after the prompt and is appended, never tokenised together with the prompt.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from ..data.edit import Edit, fill
from ..errors import KeditError


@dataclass(frozen=True)
class Prompt:
    """Ids of a prompt (BOS in front iff the tokenizer adds it by default) and the index of `lookup`,
    the subject's last token."""

    ids: tuple[int, ...]
    lookup: int


def encode(tokenizer, text: str) -> list[int]:
    """Ids of a text, with the special tokens that the tokenizer puts in front by default, none behind."""
    return _open(tokenizer, text, tokenizer(text).input_ids)


def encoded(tokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    """`encode` of each text, in one call."""
    return [tuple(_open(tokenizer, t, ids)) for t, ids in zip(texts, _all(tokenizer, texts), strict=True)]


def decoded(tokenizer, rows) -> list[str]:
    """The texts of rows of ids, special tokens left out; rows that are alike are decoded once."""
    texts = {ids: tokenizer.decode(ids, skip_special_tokens=True) for ids in set(map(tuple, rows))}
    return [texts[tuple(ids)] for ids in rows]


def _all(tokenizer, texts: list[str], **how) -> list[list[int]]:
    return tokenizer(texts, **how).input_ids if texts else []


def _open(tokenizer, text: str, ids: list[int]) -> list[int]:
    """Without the special token behind that the text itself does not have."""
    closed = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if closed else ids


def encode_prompt(tokenizer, context: str, prompt: str, subject: str) -> Prompt:
    """`context` around the prompt, tokenised once; the subject is found by character offsets."""
    text, start, end = fill(context, prompt, subject)
    if not tokenizer.is_fast:
        raise KeditError(f"tokenizer {type(tokenizer).__name__}: has no character offsets; load its fast version")
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = _open(tokenizer, text, encoded.input_ids)
    inside = [i for i, (a, b) in enumerate(encoded.offset_mapping[: len(ids)]) if a < end and b > start and b > a]
    if not inside:
        raise KeditError(f"edit of {subject!r}: no token of {text!r} covers the subject; check the tokenizer")
    return Prompt(tuple(ids), inside[-1])


def target_ids(tokenizer, prompt: str, target: str) -> tuple[int, ...]:
    """The ids of `target` as they follow `prompt`.

    Tokenised by itself with a leading space and no special tokens; a tokenizer that prepends its own
    word mark (`▁`, as Llama-2's) is given it without the space. Raises KeditError when the first
    token is empty text or when decoding prompt + target does not give the text back.
    """
    (found,) = targets_of(tokenizer, [prompt], [target])
    if isinstance(found, KeditError):
        raise found
    return found


def targets_of(tokenizer, prompts: list[str], targets: list[str]) -> list[tuple[int, ...] | KeditError]:
    """`target_ids` of each pair, in few calls; where one has none, the error that says why.

    Raises ValueError when there is not one target a prompt.
    """
    spaced = "" if _prepends_mark(tokenizer) else " "
    different = list(dict.fromkeys(targets))
    by_itself = _all(tokenizer, [spaced + t for t in different], add_special_tokens=False)
    ids = {t: tuple(i) for t, i in zip(different, by_itself, strict=True)}
    # The tokens of a chat's turns stay, they are text here.
    before = _all(tokenizer, prompts, add_special_tokens=False)
    whole = [[*b, *ids[t]] for b, t in zip(before, targets, strict=True)]
    said = tokenizer.batch_decode(whole, clean_up_tokenization_spaces=False) if whole else []
    empty = {t for t, i in ids.items() if not i or not tokenizer.decode(i[:1]).strip()}
    found = []
    for prompt, target, text in zip(prompts, targets, said, strict=True):
        if target in empty:
            what = "its first token is empty text; the tokenizer's space handling is unknown"
        elif _composed(text) != _composed(f"{prompt} {target}"):
            what = f"prompt + target decodes to {text!r}; give one this tokenizer can write"
        else:
            what = None
        found.append(ids[target] if what is None else KeditError(f"target {target!r}: {what}"))
    return found


def check_edit(tokenizer, edit: Edit) -> None:
    """KeditError unless this tokenizer can locate the edit's subject and write every answer of it."""
    encode_prompt(tokenizer, "{}", edit.prompt, edit.subject)
    objects = [o for o in (edit.target_new, edit.target_true) if o is not None]
    for prompt, answer in (*((edit.text, o) for o in objects), *edit.portability, *edit.locality):
        target_ids(tokenizer, prompt, answer)


def _composed(text: str) -> str:
    """Without outer spaces, accents as one character with their letter: some tokenizers (Qwen's) write them so."""
    return unicodedata.normalize("NFC", text.strip())


def _prepends_mark(tokenizer) -> bool:
    return tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)[0].startswith("▁")
