"""Generation accuracy: whether free greedy decoding gives the answer, and which facts a model knows."""

import re
import unicodedata

from ..data.config import LAB_MODELS
from ..data.edit import Edit, check_edits
from ..data.words import SENTENCE_ENDS, places
from ..errors import KeditError, check_editable
from ..models.generation import continuations, sentence
from ..models.tokenization import encoded, targets_of
from .teacher_forcing import Forced, forced_ids

ROOM = {"exact": 1, "begins": 3, "contains": 12}  # tokens beyond those of the answer


def generation_accuracy(
    model, prompts: list[str], answers: list[str], match: str = "exact", forced: Forced | None = None, separators=None
) -> list[bool]:
    """For each prompt whether free greedy decoding, without any token of the answer, says the answer. Floor of a model
    that knows only the relation: one over the number of objects. match:

    "exact"     the answer and nothing else up to the stop after it: a full stop, a line end or the end of the text.
                Outer spaces are stripped; case counts. Full stops inside the answer do not end it
    "begins"    the text begins with the answer, as words of its own, whatever follows; a leading "the" of either, case,
                Unicode form and spacing do not count. For models that write on ("France, and it is the …")
    "contains"  the answer begins within the first sentence, as words of its own; case, form and spacing as above

    forced: `teacher_forced` of the same prompts and answers, when it is there already; separators as there. The answer
    is the draft of speculative decoding (Leviathan et al. 2023): what one pass over prompt and answer leaves open is
    written out token by token, no further than its verdict needs.
    """
    if match not in ROOM:
        raise KeditError(f"generation_accuracy: match = {match!r}; use {' or '.join(map(repr, ROOM))}")
    tokenizer, found, asked = model.tokenizer, [None] * len(prompts), range(len(prompts))
    if forced is None:
        targets = targets_of(tokenizer, prompts, answers, separators)
        asked = [i for i, target in enumerate(targets) if not isinstance(target, KeditError)]
        forced = forced_ids(model, encoded(tokenizer, [prompts[i] for i in asked]), [targets[i] for i in asked])
    for i, ids in zip(asked, forced.begun, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        found[i] = settled(match, text, ids[-1] == tokenizer.eos_token_id, answers[i].strip())
    if still := [i for i, right in enumerate(found) if right is None]:
        sought = [answers[i].strip() for i in still]
        alone = tokenizer([" " + a for a in sought], add_special_tokens=False).input_ids
        room, some = [len(ids) + ROOM[match] for ids in alone], [prompts[i] for i in still]

        def enough(k: int, text: str) -> bool:
            return settled(match, text, False, sought[k]) is not None

        written = continuations(model.hf, tokenizer, some, room, enough=enough)
        for i, (text, ended), answer in zip(still, written, sought, strict=True):
            found[i] = verdict(match, text, ended, answer)
    return found


def known_edits(model, edits: list[Edit], match: str | None = None) -> tuple[list[Edit], int]:
    """The edits whose target_true the model generates after the edit prompt, in order, and the number of the others
    (those without target_true too): only known facts can be edited away. match: as in `generation_accuracy`; None:
    "exact" for the lab's models, which were trained on such sentences, "begins" for all others, which write on."""
    check_editable(model, "known_edits")
    match = match or ("exact" if model.name in LAB_MODELS else "begins")
    edits = check_edits(edits, "known_edits")
    asked = [e for e in edits if e.target_true is not None]
    true, separators = [e.target_true for e in asked], [e.separator for e in asked]
    right = generation_accuracy(model, [e.text for e in asked], true, match, separators=separators)
    known = [e for e, says in zip(asked, right, strict=True) if says]
    return known, len(edits) - len(known)


def verdict(match: str, text: str, ended: bool, answer: str) -> bool:
    """Whether a text says the answer; ended: the model ended the text there."""
    if match == "exact":
        said, stopped = sentence(text, [answer])
        return said == answer and (stopped or ended)
    if match == "begins":
        return 0 in places(_bare(text), _bare(answer))
    return _mentioned(text, answer)[0] is not None


def settled(match: str, text: str, ended: bool, answer: str) -> bool | None:
    """The verdict of a text that may go on, None while it is open."""
    if ended:
        return verdict(match, text, True, answer)
    text = text.rstrip("\ufffd")  # a character of which some bytes are still to come
    plain, wanted = _plain(text), _plain(answer)
    if match == "exact":
        open_ = answer.startswith(text.strip()) and "\n" not in text.lstrip()
    elif match == "begins":
        open_ = "the".startswith(plain) or _bare(answer).startswith(_bare(text)) or wanted.startswith(plain)
    else:
        at, end = _mentioned(text, answer)
        # Behind the first sentence only an answer that began in it goes on; an accent may still change the last letter.
        begun = at is not None or len(plain) <= end or any(wanted.startswith(plain[i:-1]) for i in range(end + 1))
        open_ = begun and len(plain) <= (end if at is None else at) + len(wanted)
    return None if open_ else verdict(match, text, False, answer)


def _mentioned(text: str, answer: str) -> tuple[int | None, int]:
    """Where in the plain text the answer begins within the first sentence, and where that sentence ends."""
    end = len(_plain(re.split(f"[{re.escape(SENTENCE_ENDS)}\n]", text.strip())[0]))
    return next((start for start in places(_plain(text), _plain(answer)) if start <= end), None), end


def _bare(text: str) -> str:
    return _plain(text).removeprefix("the ")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
