"""An edit: a prompt with a place for the subject, the subject, and the new object."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, Self

from pydantic import Strict, StringConstraints, ValidationError, create_model

from ..errors import KeditError, check_kind, explained
from .words import places, why_elsewhere

LISTS = ("paraphrases", "neighborhood", "generation_prompts", "attribute_prompts")  # of prompts
PAIRS = ("portability", "locality")  # of (prompt, answer)
LATER = ("attribute_prompts", *PAIRS, "separator")  # fields younger than the first stored results
MUST_BE = dict.fromkeys(LISTS, "a list of prompts; put one alone in [ ]")  # text, where it is not named here
MUST_BE |= dict.fromkeys(PAIRS, "a list of (prompt, answer), both not empty")
MUST_BE |= {"separator": "'', ' ' or None, which derives it from the texts"}
Text = Annotated[str, Strict(), StringConstraints(min_length=0)]  # a constraint refuses half a character too
Name = Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)]
Pair = tuple[Annotated[Text, StringConstraints(pattern=r"\S")], Name]


@dataclass(frozen=True)
class Edit:
    """One requested change of knowledge. All prompts but the first are full ones, and (prompt, answer) in pairs.

    prompt              text with exactly one `{}` where the subject goes, "The mother tongue of {} is"; {{ stands for {
    subject             e.g. "Danielle Darrieux"; its last token is where the edit is written
    target_new          the new object, without a leading space
    target_true         the object known so far (None: unknown); needed for success and magnitude
    paraphrases         other prompts that should give target_new
    neighborhood        prompts about other subjects that should go on giving target_true
    generation_prompts  prompts for free generation
    relation, id        labels for tables; free text
    attribute_prompts   prompts about other subjects whose object is target_new, before and after
    portability         pairs that follow from the edit, one hop further; locality: pairs that it should leave alone
    separator           "" or " " between each prompt and its answer (None: derived from the texts, `words.joint`)

    KeditError for a prompt without one `{}`, an empty subject or target, and a subject that stands in the prompt again,
    as words of its own ("{}, called Ana, plays" for Ana; "Banana {}" is fine); `from_text` takes the subject as text.
    """

    prompt: Text
    subject: Name
    target_new: Name
    target_true: Name | None = None
    paraphrases: tuple[Text, ...] = ()
    neighborhood: tuple[Text, ...] = ()
    generation_prompts: tuple[Text, ...] = ()
    relation: Text = ""
    id: Text = ""
    attribute_prompts: tuple[Text, ...] = ()
    portability: tuple[Pair, ...] = ()
    locality: tuple[Pair, ...] = ()
    separator: Literal["", " "] | None = None

    def __post_init__(self):
        label = f"edit {self.id} of {self.subject!r}" if self.id else f"edit of {self.subject!r}"
        try:
            vars(self).update(vars(CHECKED.model_validate(vars(self))))
        except ValidationError as error:
            raise KeditError(f"{label}: {self._wrong(error.errors()[0])}") from None
        around = around_places(self.prompt)
        if len(around) != 2:
            needs = "it needs exactly one, where the subject goes (or use Edit.from_text)"
            raise KeditError(f"{label}: the prompt {self.prompt!r} has {len(around) - 1} places marked {{}}; {needs}")
        if any(start != len(around[0]) for start in places(self.text, self.subject)):
            twice = "twice, as text and as {}; keep only the {}"
            raise KeditError(f"{label}: the subject stands in the prompt {self.prompt!r} {twice}")
        if self.target_true == self.target_new:
            warnings.warn(f"{label}: target_new equals target_true ({self.target_new!r})", stacklevel=3)
        if self.ends_in_space:
            message = f"{label}: the prompt {self.prompt!r} ends in a space, so its answer follows without one"
            warnings.warn(f"{message}, as models seldom see it; take the space away", stacklevel=3)

    def _wrong(self, found: dict) -> str:
        name, kind, whole = found["loc"][0], found["type"], len(found["loc"]) == 1
        if kind == "string_unicode":
            return f"{name} holds half a character; write it as UTF-8"
        if kind == "string_too_short" and (whole or name == "target_true"):
            return f"{name} is empty; give it{', or leave it out' * (name == 'target_true')}"
        return f"{name} must be {MUST_BE.get(name, 'text')}, got {getattr(self, name)!r:.80}"

    @classmethod
    def from_text(cls, prompt: str, subject: str, target_new: str, *fields, **rest) -> Self:
        """An edit whose prompt holds the subject as text, exactly once as words of its own; braces are kept as text."""
        if not (isinstance(prompt, str) and isinstance(subject, str)):
            return cls(prompt, subject, target_new)  # which refuses it
        subject = subject.strip()
        starts = places(prompt, subject)
        if len(starts) != 1:
            found = f"stands {len(starts)} times in {prompt!r}{why_elsewhere(prompt, subject)}"
            raise KeditError(f"edit of {subject!r}: the subject {found}; it must stand there exactly once")
        before, after = escaped(prompt[: starts[0]]), escaped(prompt[starts[0] + len(subject) :])
        return cls(before + "{}" + after, subject, target_new, *fields, **rest)

    @classmethod
    def from_chat(cls, model, prompt: str, subject: str, target_new: str, *fields, system=None, **rest) -> Self:
        """An edit of a chat model: its prompts, as a user asks them, in the chat template of `model` (or a tokenizer).
        The prompt has one {}, or holds the subject as text. system: text of a system turn (None: the template's)."""
        with warnings.catch_warnings():  # of the text as it stands in the template, not before
            warnings.filterwarnings("ignore", ".*ends in a space")
            make = cls if isinstance(prompt, str) and len(around_places(prompt)) == 2 else cls.from_text
            edit = make(prompt, subject, target_new, *fields, **rest)
        return in_chat(edit, getattr(model, "tokenizer", model), system)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.subject.join(around_places(self.prompt))

    @property
    def ends_in_space(self) -> bool:
        """Whether the prompt ends in a space and no separator says that this is meant."""
        return self.separator is None and self.prompt.endswith(" ")

    def __repr__(self) -> str:
        """All fields, but later ones only when given: stored results are found by a hash over this text."""
        shown = [f.name for f in fields(self) if f.name not in LATER or getattr(self, f.name) not in ((), None)]
        return f"Edit({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


CHECKED = create_model("CHECKED", **{field.name: (field.type, ...) for field in fields(Edit)})


def around_places(prompt: str) -> list[str]:
    """The texts around the places `{}` of a prompt; doubled braces stand for single ones, a lone brace for itself."""
    texts = [""]
    for piece in re.split(r"(\{\{|\}\}|\{\})", prompt):
        if piece == "{}":
            texts.append("")
        else:
            texts[-1] += piece[0] if piece in ("{{", "}}") else piece
    return texts


def escaped(text: str) -> str:
    """The text with its braces doubled, as a prompt or context shows them."""
    return text.replace("{", "{{").replace("}", "}}")


def in_chat(edit: Edit, tokenizer, system: str | None = None) -> Edit:
    """The edit with its prompts as turns of a user, the answers being what the assistant says next, without a joint.
    system: text of a system turn (None: the template's own). A begin-of-text of the template is left out where the
    tokenizer writes it too. KeditError when there is no chat template, or it refuses or changes the text."""
    if not getattr(tokenizer, "chat_template", None):
        remedy = "give an instruct or chat model, or leave chat out"
        raise KeditError(f"tokenizer {type(tokenizer).__name__}: has no chat template; {remedy}")
    text, turns = edit.text.strip(), [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": text})
    with explained(f"chat template: refuses {text!r}", "leave out system="):
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before, found, after = whole.rpartition(text)
    if not found:
        raise KeditError(f"chat template: does not show {text!r} as it is; leave chat out and write the prompt in full")
    bos = tokenizer.bos_token
    if bos and before.startswith(bos) and tokenizer("a").input_ids[0] == tokenizer.bos_token_id:
        before = before.removeprefix(bos)

    def turn(text: str) -> str:
        return f"{before}{text.strip()}{after}"

    ahead, behind = around_places(edit.prompt)
    changed = {name: tuple(map(turn, getattr(edit, name))) for name in LISTS}
    changed |= {name: tuple((turn(prompt), answer) for prompt, answer in getattr(edit, name)) for name in PAIRS}
    prompt = f"{escaped(before + ahead.lstrip())}{{}}{escaped(behind.rstrip() + after)}"
    return replace(edit, prompt=prompt, separator="", **changed)


def warn_of_contradictions(edits: list[Edit]) -> None:
    """A warning where edits that are made together give one prompt two answers."""
    answers: dict[str, dict[str, None]] = {}
    for edit in edits:
        answers.setdefault(edit.text, {})[edit.target_new] = None
    if several := [(text, *new) for text, new in answers.items() if len(new) > 1]:
        text, one, other, *_ = several[0]
        message = f"{len(several)} prompts of one batch have more than one answer, the first: {text!r} "
        warnings.warn(f"{message}{one!r} and {other!r}; keep one of them", stacklevel=4)


def check_edits(edits, what: str) -> list[Edit]:
    """The edits as a list, or KeditError from `what` when there are none or something else is among them."""
    edits = list(edits) if isinstance(edits, Iterable) else [edits]
    if not edits:
        raise KeditError(f"{what}: there are no edits; pass a non-empty list of Edit")
    for i, edit in enumerate(edits):
        check_kind(f"{what}: edit {i}", edit, Edit, "pass a list of Edit")
    return edits


def fill(context: str, prompt: str, subject: str) -> tuple[str, int, int]:
    """(text, start, end): `prompt` about `subject` in a context such as "I saw it. {}", and where the subject is."""
    before, after = around_places(context)
    ahead, behind = around_places(prompt)
    start = len(before) + len(ahead)
    return f"{before}{ahead}{subject}{behind}{after}", start, start + len(subject)


@dataclass(frozen=True)
class Question:
    """One consequence of one edit: the model completes `prompt` freely and should say `answer` once the edit holds.
    kind: what sort of consequence, a cohort in tables. bridge: "" or a sentence with one `{}` for what the model says
    to `prompt`; the answer comes after both. gate: (prompt, answer) pairs that the unedited model must give."""

    kind: str
    prompt: str
    answer: str
    bridge: str = ""
    gate: tuple[tuple[str, str], ...] = ()
