"""Generation accuracy: whether free greedy decoding gives the answer, and which facts a model knows."""

from __future__ import annotations

from ..data.config import LAB_MODELS
from ..data.edit import Edit, check_edits
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
    """For each prompt: whether free greedy decoding, without any token of the answer, says the answer.

    match "exact"     the answer and nothing else up to the natural stop after it: a full stop, a line end or the end
                      of the text. Outer spaces are stripped; case counts. Full stops inside the answer ("St. Louis") do
                      not end it
    match "begins"    the text begins with the answer, as words of its own, whatever follows; a leading "the" of either,
                      case, Unicode form and spacing do not count. For models that write on ("France, and it is the …")
    match "contains"  the answer begins within the first sentence, as words of its own; case, Unicode form and spacing
                      do not count

    forced: `teacher_forced` of the same prompts and answers, when it is there already; separators as there.

    Greedy decoding writes the tokens of the answer as long as each is the most probable one, and a pass over prompt and
    answer knows that of all of them at once; what it leaves open is written out token by token, no further than its
    verdict needs. The verdict is that of writing out everything (the answer as the draft of speculative decoding,
    Leviathan et al. 2023). Floor of a model that knows only the relation: one over the number of objects.
    """
    if match not in ROOM:
        raise KeditError(f"generation_accuracy: match = {match!r}; use {' or '.join(map(repr, ROOM))}")
    tokenizer, found = model.tokenizer, [None] * len(prompts)
    asked = range(len(prompts))
    if forced is None:
        targets = targets_of(tokenizer, prompts, answers, separators)
        asked = [i for i, target in enumerate(targets) if not isinstance(target, KeditError)]
        forced = score(model, encoded(tokenizer, [prompts[i] for i in asked]), [targets[i] for i in asked])
    for i, ids, text in zip(asked, forced.begun, decoded(tokenizer, forced.begun), strict=True):
        found[i] = settled(match, text, ids[-1] == tokenizer.eos_token_id, answers[i].strip())
    if still := [i for i, right in enumerate(found) if right is None]:
        sought = [answers[i].strip() for i in still]
        lengths = map(len, tokenizer([" " + a for a in sought], add_special_tokens=False).input_ids)
        written = continuations(
            model.hf,
            tokenizer,
            [prompts[i] for i in still],
            [length + ROOM[match] for length in lengths],
            past_full_stops=True,
            enough=lambda k, text: settled(match, text, False, sought[k]) is not None,
        )
        for i, (text, ended), answer in zip(still, written, sought, strict=True):
            found[i] = RULES[match](text, ended, answer)
    return found


def known_edits(model, edits: list[Edit], match: str | None = None) -> tuple[list[Edit], int]:
    """The edits whose target_true the model generates after the edit prompt, in order, and the number of the others:
    only known facts can be edited away.

    match   as in `generation_accuracy`; None: "exact" for the lab's models, which were trained on such sentences,
            "begins" for all others, which write on. An edit without target_true counts as not known.
    """
    match = match or ("exact" if model.name in LAB_MODELS else "begins")
    edits = check_edits(edits, "known_edits")
    asked = [e for e in edits if e.target_true is not None]
    true, separators = [e.target_true for e in asked], [e.separator for e in asked]
    right = generation_accuracy(model, [e.text for e in asked], true, match, separators=separators)
    known = [e for e, says in zip(asked, right, strict=True) if says]
    return known, len(edits) - len(known)
