"""Whether the model says the answer by itself."""

from __future__ import annotations

from ..errors import KeditError
from ..models.generation import continuations
from ..models.tokenization import decoded, encoded, targets_of
from .teacher_forcing import Forced, score
from .verdict import RULES, settled

ROOM = {"exact": 1, "begins": 3, "contains": 12}  # tokens beyond those of the answer


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
    writing out everything (the answer as the draft of speculative decoding, Leviathan et al. 2023); a text is written
    no further than its verdict needs.

    Floor of a model that knows the relation but not the subject: one over the number of objects.
    """
    if match not in ROOM:
        raise KeditError(f"generation_accuracy: match = {match!r}; use {' or '.join(map(repr, ROOM))}")
    found = _settled(model, prompts, answers, match, forced, separators)
    if still := [i for i, right in enumerate(found) if right is None]:
        sought = [answers[i].strip() for i in still]
        lengths = map(len, model.tokenizer([" " + a for a in sought], add_special_tokens=False).input_ids)
        written = continuations(
            model.hf,
            model.tokenizer,
            [prompts[i] for i in still],
            [length + ROOM[match] for length in lengths],
            past_full_stops=True,
            enough=lambda k, text: settled(match, text, False, sought[k]) is not None,
        )
        for i, (text, ended), answer in zip(still, written, sought, strict=True):
            found[i] = RULES[match](text, ended, answer)
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
    for i, ids, text in zip(asked, forced.begun, texts, strict=True):
        found[i] = settled(match, text, ids[-1] == tokenizer.eos_token_id, answers[i].strip())
    return found
