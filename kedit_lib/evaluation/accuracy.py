"""Whether the model says the answer by itself."""

from __future__ import annotations

import re
import unicodedata

from ..data.words import places
from ..errors import KeditError
from ..models.generation import continuations, sentence
from ..models.tokenization import decoded, encoded, targets_of
from .teacher_forcing import Forced, score

ROOM = {"exact": 1, "begins": 3, "contains": 12}  # tokens beyond those of the longest answer


def generation_accuracy(
    model,
    prompts: list[str],
    answers: list[str],
    match: str = "exact",
    forced: Forced | None = None,
    separators: list[str | None] | None = None,
) -> list[bool]:
    """For each prompt: free greedy decoding, no token of the answer handed over, says the answer.

    match "exact"     the answer and nothing else up to the natural stop behind it: a full stop, a line end or
                      the end of the text. Normalised by stripping spaces; case counts. Full stops inside
                      the answer ("St. Louis") do not end it
    match "begins"    the text begins with the answer, as words of its own, whatever goes on behind it; a leading "the"
                      (of text or answer) does not count, nor do case, Unicode form and spacing. For models that
                      write on ("France, and it is the …")
    match "contains"  the answer begins within the first sentence, as words of its own; case, Unicode
                      form and spacing do not count

    forced: `teacher_forced` of the same prompts and answers, when it is there already; separators as there.

    Greedy decoding writes the tokens of the answer as long as each is the most probable one, and a pass over prompt and
    answer knows that of all of them at once; what it leaves open is written out token by token. The verdict is that of
    writing out everything (the answer as the draft of speculative decoding, Leviathan et al. 2023).

    Floor of a model that knows the relation but not the subject: one over the number of objects.
    """
    if match not in ROOM:
        raise KeditError(f"generation_accuracy: match = {match!r}; use {' or '.join(map(repr, ROOM))}")
    found = _settled(model, prompts, answers, match, forced, separators)
    if still := [i for i, right in enumerate(found) if right is None]:
        longest = max(map(len, model.tokenizer([" " + a for a in answers], add_special_tokens=False).input_ids))
        past = match != "exact" or any("." in a for a in answers)
        asked = [prompts[i] for i in still]
        written = continuations(model.hf, model.tokenizer, asked, longest + ROOM[match], past_full_stops=past)
        right = {"exact": _says, "begins": _begins, "contains": _mentions}[match]
        for i, (text, ended) in zip(still, written, strict=True):
            found[i] = right(text, ended, answers[i].strip())
    return found


def _settled(model, prompts, answers, match: str, forced: Forced | None, separators) -> list[bool | None]:
    """For each prompt what the pass over prompt and answer knows of the verdict; None: nothing."""
    tokenizer, found = model.tokenizer, [None] * len(prompts)
    if forced is None:
        targets = targets_of(tokenizer, prompts, answers, separators)
        asked = [i for i, target in enumerate(targets) if not isinstance(target, KeditError)]
        forced = score(model, encoded(tokenizer, [prompts[i] for i in asked]), [targets[i] for i in asked])
    else:
        asked = range(len(prompts))
    texts = decoded(tokenizer, forced.begun)
    for i, ids, said, text in zip(asked, forced.begun, forced.said, texts, strict=True):
        ended, answer = ids[-1] == tokenizer.eos_token_id, answers[i].strip()
        if match != "exact":
            behind = len(ids) > len(said) and (ended or len(_plain(text)) > len(_plain(answer)))
            right = _mentions if match == "contains" else _begins
            found[i] = True if behind and "\ufffd" not in text and right(text, ended, answer) else None
            if match == "begins" and found[i] is None and not _may_begin(text, answer):
                found[i] = False
        # Text that the answer goes on from may still become it, tokenised in another way.
        elif ended or not answer.startswith(text.strip().rstrip("\ufffd")):
            found[i] = _says(text, ended, answer)
    return found


def _says(text: str, ended: bool, answer: str) -> bool:
    said, stopped = sentence(text, [answer])
    return said == answer and (stopped or ended)


def _mentions(text: str, ended: bool, answer: str) -> bool:
    first = len(_plain(re.split(r"[.\n]", text.strip())[0]))
    return any(start <= first for start in places(_plain(text), _plain(answer)))


def _begins(text: str, ended: bool, answer: str) -> bool:
    return 0 in places(_bare(text), _bare(answer))


def _may_begin(text: str, answer: str) -> bool:
    """Whether a text that goes on from this one can still begin with the answer."""
    begun = _plain(text.rstrip("\ufffd"))
    return "the".startswith(begun) or _bare(answer).startswith(_bare(begun)) or _plain(answer).startswith(begun)


def _bare(text: str) -> str:
    return _plain(text).removeprefix("the ")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
