"""From text to ids: prompts, targets, and windows of long texts. As the authors do, context and prompt are joined as
text and tokenised once; the target keeps the ids that it has after its joint (`words.joint`), and is appended."""

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
    """Ids of a prompt (BOS in front iff the tokenizer adds it); indices of the subject's last and first token."""

    ids: tuple[int, ...]
    lookup: int
    first: int = 0


def encode(tokenizer, text: str) -> list[int]:
    """Ids of a text, with the special tokens that the tokenizer puts in front by default, none after."""
    return list(encoded(tokenizer, [text])[0])


def encoded(tokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    rows = tokenizer(texts).input_ids if texts else []
    return [tuple(ids[_text_of(tokenizer, text, ids)]) for text, ids in zip(texts, rows, strict=True)]


def _text_of(tokenizer, text: str, ids: list[int]) -> slice:
    """Of the ids: no end-of-text token that the tokenizer appended, no second begin-of-text token (a chat has one)."""
    end = len(ids) - (ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(tokenizer.eos_token))
    return slice(int(end > 1 and ids[0] == ids[1] == tokenizer.bos_token_id), end)


def encode_prompt(tokenizer, context: str, prompt: str, subject: str) -> Prompt:
    """`context` around the prompt, tokenised once; the subject is found by character offsets."""
    text, start, end = fill(context, prompt, subject)
    found = tokenizer(text, return_offsets_mapping=True)
    kept = _text_of(tokenizer, text, found.input_ids)
    inside = [i for i, (a, b) in enumerate(found.offset_mapping[kept]) if a < end and b > start and b > a]
    if not inside:
        raise KeditError(f"edit of {subject!r}: no token of {text!r} covers the subject; check the tokenizer")
    return Prompt(tuple(found.input_ids[kept]), inside[-1], inside[0])


def target_ids(tokenizer, prompt: str, target: str, separator: str | None = None) -> tuple[int, ...]:
    """The ids of `target` as they follow `prompt`, the joint between them (separator; None: `words.joint`) included. A
    first token of only the space belongs to it, as Llama-3 writes " 1945"; a tokenizer with a word mark in front (`▁`,
    Llama-2's) takes it without the space. KeditError when it has no token or prompt + target changes in decoding."""
    (found,) = targets_of(tokenizer, [prompt], [target], [separator])
    if isinstance(found, KeditError):
        raise found
    return found


def targets_of(tokenizer, prompts, targets, separators=None) -> list[tuple[int, ...] | KeditError]:
    """`target_ids` of each triple (separators None: derived for all), in few calls; where one has none, its error."""
    if not prompts:
        return []
    triples, turn = list(zip(prompts, targets, separators or [None] * len(prompts), strict=True)), _turn(tokenizer)
    chat = [turn != "" and p.endswith(turn) for p in prompts]
    pairs = [("" if c and s is None else joint(p, t, s), t) for (p, t, s), c in zip(triples, chat, strict=True)]
    ids = _ids_of(tokenizer, list(dict.fromkeys(pairs)))
    # The tokens of a chat's turns stay, they are text here.
    before = tokenizer(prompts, add_special_tokens=False).input_ids
    whole = [[*b, *ids[pair]] for b, pair in zip(before, pairs, strict=True)]
    said, found = tokenizer.batch_decode(whole, clean_up_tokenization_spaces=False), []
    for prompt, own, c, pair, text in zip(prompts, before, chat, pairs, said, strict=True):
        # Some tokenizers (Llama-2's) write a space after each special token of a template: that is the prompt then.
        shown = tokenizer.decode(own, clean_up_tokenization_spaces=False) if c else prompt
        problem = None
        if not ids[pair]:
            problem = "has no token; give text"
        # Without outer spaces, accents as one character with their letter: some tokenizers (Qwen's) write them so.
        elif NFC(text.strip()) != NFC("".join([shown, *pair]).strip()):
            problem = f"prompt + target decodes to {text!r}; give one this tokenizer can write"
        found.append(KeditError(f"target {pair[1]!r}: {problem}") if problem else ids[pair])
    return found


def _turn(tokenizer) -> str:
    """What the tokenizer's chat template puts after a question, for the model to answer; "" without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    question = [{"role": "user", "content": CONTENT}]
    return tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True).rpartition(CONTENT)[2]


def _ids_of(tokenizer, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Of (joint, target). If the tokenizer always puts ▁ in front although no space is wanted, the target is encoded
    after a character it does not merge with, whose tokens are dropped."""
    tokenized = partial(tokenizer, add_special_tokens=False)
    marks = tokenizer.convert_ids_to_tokens(tokenized("a").input_ids)[0].startswith("▁")
    found = tokenized([target if marks else between + target for between, target in pairs]).input_ids
    ids = {pair: tuple(row) for pair, row in zip(pairs, found, strict=True)}
    for pair in (pair for pair in pairs if marks and not pair[0]):
        for sign in '\n("。a':
            alone, both = tokenized([sign, sign + pair[1]]).input_ids
            if both[: len(alone)] == alone:
                ids[pair] = tuple(both[len(alone) :])
                break
    return ids


def check_edit(tokenizer, edit: Edit) -> None:
    """KeditError unless this tokenizer can locate the edit's subject and write every answer of it."""
    encode_prompt(tokenizer, "{}", edit.prompt, edit.subject)
    objects = [(edit.text, o) for o in (edit.target_new, edit.target_true) if o is not None]
    for prompt, answer in (*objects, *edit.portability, *edit.locality):
        target_ids(tokenizer, prompt, answer, edit.separator)


def positions_of(config) -> float:
    """How many tokens a model takes; inf without a limit (ALiBi, or angles that are stretched on the way)."""
    config = config.get_text_config()
    stretched = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
    limit = getattr(config, "max_position_embeddings", None)
    return float("inf") if stretched or getattr(config, "alibi", False) or not limit else limit


def windows(tokenizer, text: str, limit: float) -> list[tuple[int, ...]]:
    """Ids of `text` in pieces of at most `limit`, none twice; each begins as a text does, with BOS if there is one."""
    ids = encode(tokenizer, text)
    if len(ids) <= limit:
        return [tuple(ids)] if ids else []
    begin = encode(tokenizer, "")
    begin = begin if ids[: len(begin)] == begin else []
    ids, step = ids[len(begin) :], int(limit) - len(begin)
    return [(*begin, *ids[i : i + step]) for i in range(0, len(ids), step)]


def refuse_beyond(name: str, limit: float):
    """A pre-hook of a model: KeditError for more tokens than it has positions, and for one that it does not embed."""

    def check(module, args, kwargs):
        ids, past = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        if ids is None or not ids.numel():
            return
        if (tokens := ids.shape[-1] + (past.get_seq_length() if past is not None else 0)) > limit:
            length = f"a text of {tokens} tokens is longer than the model's {int(limit)} positions"
            raise KeditError(f"{name}: {length}; shorten the prompt, target or paraphrase, or let less be generated")
        check_embedded(module, name, int(ids.max()))

    return check


def check_embedded(hf, name: str, token: int) -> None:
    """KeditError for a token that the model has no embedding of."""
    if token >= (rows := hf.get_input_embeddings().num_embeddings):
        what = f"the tokenizer writes token {token}, of which the model has no embedding (it has 0 to {rows - 1})"
        raise KeditError(f"{name}: {what}; hf.resize_token_embeddings(len(tokenizer)) and train it, or do not add it")
