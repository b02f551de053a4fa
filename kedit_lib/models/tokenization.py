"""From text to ids: prompts with the place of the subject's last token, targets, and windows of long texts. As the
authors do, context and prompt are joined as text and tokenised once; the target keeps the ids that it has after its
joint (`words.joint`), and is appended, never tokenised together with the prompt."""

import math
import unicodedata
from dataclasses import dataclass
from functools import partial

from ..data.edit import Edit, fill
from ..data.words import joint
from ..errors import KeditError

CONTENT = "?"  # of a question, to see what a chat template puts around it
NFC = partial(unicodedata.normalize, "NFC")


@dataclass(frozen=True)
class Prompt:
    """Ids of a prompt (BOS in front iff the tokenizer adds it) and `lookup`, the index of the subject's last token."""

    ids: tuple[int, ...]
    lookup: int


def encode(tokenizer, text: str) -> list[int]:
    """Ids of a text, with the special tokens that the tokenizer puts in front by default, none after."""
    return list(encoded(tokenizer, [text])[0])


def encoded(tokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    whole = [_open(tokenizer, t, ids) for t, ids in zip(texts, _all(tokenizer, texts), strict=True)]
    return [tuple(ids[_doubled(tokenizer, ids) :]) for ids in whole]


def decoded(tokenizer, rows) -> list[str]:
    """The texts of rows of ids, special tokens left out; rows that are alike are decoded once."""
    texts = {ids: tokenizer.decode(ids, skip_special_tokens=True) for ids in set(map(tuple, rows))}
    return [texts[tuple(ids)] for ids in rows]


def _all(tokenizer, texts: list[str], **how) -> list[list[int]]:
    return tokenizer(texts, **how).input_ids if texts else []


def _open(tokenizer, text: str, ids: list[int]) -> list[int]:
    """The ids without an end-of-text token that the tokenizer appended."""
    closed = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if closed else ids


def _doubled(tokenizer, ids: list[int]) -> int:
    """1 where the text of a chat begins with the token that the tokenizer puts in front as well, else 0."""
    return int(len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id)


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
    skip = _doubled(tokenizer, ids)
    return Prompt(tuple(ids[skip:]), inside[-1] - skip)


def target_ids(tokenizer, prompt: str, target: str, separator: str | None = None) -> tuple[int, ...]:
    """The ids of `target` as they follow `prompt`, the joint between them included. separator: the joint (None:
    `words.joint`). A first token that is only the space belongs to the target, as Llama-3 or SmolLM2 write " 1945"; a
    tokenizer that puts a word mark in front (`▁`, Llama-2's) is given it without the space. KeditError when the target
    has no token or when decoding prompt + target does not give the text back."""
    (found,) = targets_of(tokenizer, [prompt], [target], [separator])
    if isinstance(found, KeditError):
        raise found
    return found


def targets_of(
    tokenizer, prompts: list[str], targets: list[str], separators=None
) -> list[tuple[int, ...] | KeditError]:
    """`target_ids` of each triple (separators None: derived for all), in few calls; where one has none, its error."""
    given, turn = [None] * len(prompts) if separators is None else separators, _turn(tokenizer)
    chat = [turn != "" and p.endswith(turn) for p in prompts]
    given = ["" if c and s is None else s for c, s in zip(chat, given, strict=True)]
    joints = [joint(p, t, s) for p, t, s in zip(prompts, targets, given, strict=True)]
    ids = _joined(tokenizer, list(dict.fromkeys(zip(joints, targets, strict=True))))
    # The tokens of a chat's turns stay, they are text here.
    before = _all(tokenizer, prompts, add_special_tokens=False)
    whole = [[*b, *ids[j, t]] for b, j, t in zip(before, joints, targets, strict=True)]
    said = tokenizer.batch_decode(whole, clean_up_tokenization_spaces=False) if whole else []
    # Some tokenizers (Llama-2's) write a space after each special token of a template: that is the prompt then.
    shown = [
        tokenizer.decode(b, clean_up_tokenization_spaces=False) if c else p
        for p, b, c in zip(prompts, before, chat, strict=True)
    ]
    found = []
    for prompt, between, target, text in zip(shown, joints, targets, said, strict=True):
        found.append(ids[between, target])
        if not ids[between, target]:
            found[-1] = KeditError(f"target {target!r}: has no token; give text")
        # Without outer spaces, accents as one character with their letter: some tokenizers (Qwen's) write them so.
        elif NFC(text.strip()) != NFC(f"{prompt}{between}{target}".strip()):
            what = f"prompt + target decodes to {text!r}; give one this tokenizer can write"
            found[-1] = KeditError(f"target {target!r}: {what}")
    return found


def check_edit(tokenizer, edit: Edit) -> None:
    """KeditError unless this tokenizer can locate the edit's subject and write every answer of it."""
    encode_prompt(tokenizer, "{}", edit.prompt, edit.subject)
    objects = [o for o in (edit.target_new, edit.target_true) if o is not None]
    for prompt, answer in (*((edit.text, o) for o in objects), *edit.portability, *edit.locality):
        target_ids(tokenizer, prompt, answer, edit.separator)


def _joined(tokenizer, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, ...]]:
    marks = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)[0].startswith("▁")
    texts = [target if marks else f"{between}{target}" for between, target in pairs]
    found = _all(tokenizer, texts, add_special_tokens=False)
    ids = {pair: tuple(i) for pair, i in zip(pairs, found, strict=True)}
    return {p: _unmarked(tokenizer, p[1], i) if marks and not p[0] else i for p, i in ids.items()}


def _unmarked(tokenizer, target: str, marked: tuple[int, ...]) -> tuple[int, ...]:
    """The ids of a target without a space in front, though the tokenizer puts a word mark before every text: cut off
    behind a sign that it does not merge with."""
    for sign in '\n("。a':
        alone, both = _all(tokenizer, [sign, sign + target], add_special_tokens=False)
        if both[: len(alone)] == alone:
            return tuple(both[len(alone) :])
    return marked


def _turn(tokenizer) -> str:
    """What the tokenizer's chat template puts after a question, for the model to answer; "" without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    question = [{"role": "user", "content": CONTENT}]
    return tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True).rpartition(CONTENT)[2]


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
    """A pre-hook of a model that raises KeditError for more tokens than it has positions, and for one that it does not
    embed."""

    def check(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        past = kwargs.get("past_key_values")
        before = past.get_seq_length() if hasattr(past, "get_seq_length") else 0
        if ids is not None and before + ids.shape[-1] > limit:
            length = f"a text of {before + ids.shape[-1]} tokens is longer than the model's {int(limit)} positions"
            raise KeditError(f"{name}: {length}; shorten the prompt, target or paraphrase, or let less be generated")
        if ids is not None and ids.numel():
            check_embedded(module, name, int(ids.max()))

    return check


def check_embedded(hf, name: str, token: int) -> None:
    """KeditError for a token that the model has no embedding of."""
    if token >= (rows := hf.get_input_embeddings().num_embeddings):
        what = f"the tokenizer writes token {token}, of which the model has no embedding (it has 0 to {rows - 1})"
        raise KeditError(f"{name}: {what}; hf.resize_token_embeddings(len(tokenizer)) and train it, or do not add it")
