"""What an edit is: a prompt with a place for the subject, the subject, and the new object."""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import KeditError


@dataclass(frozen=True)
class Edit:
    """One requested change of knowledge.

    prompt              text with exactly one `{}` where the subject goes, e.g. "The mother tongue of {} is"
    subject             e.g. "Danielle Darrieux"; its last token is where the edit is written
    target_new          the new object, without a leading space
    target_true         the object known so far (None: unknown); needed for success and magnitude
    paraphrases         other full prompts that should give target_new
    neighborhood        full prompts about other subjects that should go on giving target_true
    generation_prompts  full prompts for free generation
    relation, id        labels for tables; free text

    Raises KeditError for a prompt without `{}`, or with two, for an empty subject or target, and for
    a subject that also stands elsewhere in the prompt. Use `Edit.from_text` when the prompt holds
    the subject itself.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation: str = ""
    id: str = ""

    def __post_init__(self):
        for name in ("prompt", "subject", "target_new", "target_true", "relation", "id"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "target_true" and value is None):
                raise KeditError(f"edit {self._label()}: {name} must be text, got {value!r}; give a string")
        for name in ("paraphrases", "neighborhood", "generation_prompts"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise KeditError(f"edit {self._label()}: {name} must be a list of prompts, not one; put it in [ ]")
            prompts = tuple(value) if isinstance(value, Iterable) else None
            if prompts is None or not all(isinstance(prompt, str) for prompt in prompts):
                raise KeditError(f"edit {self._label()}: {name} must be a list of prompts, got {value!r}")
            object.__setattr__(self, name, prompts)
        if not self.subject.strip():
            raise KeditError(f"edit {self._label()}: the subject is empty; name who or what the fact is about")
        if not self.target_new.strip():
            raise KeditError(f"edit {self._label()}: target_new is empty; give the new object")
        if self.prompt.count("{}") != 1:
            found = self.prompt.count("{}")
            raise KeditError(
                f"edit {self._label()}: the prompt {self.prompt!r} has {found} places marked {{}}; it needs exactly "
                "one, where the subject goes (or use Edit.from_text)"
            )
        if self.subject in self.prompt:
            raise KeditError(
                f"edit {self._label()}: the subject stands in the prompt {self.prompt!r} twice, as text and as {{}}; "
                "keep only the {}"
            )
        object.__setattr__(self, "target_new", self.target_new.strip())
        if self.target_true is not None:
            object.__setattr__(self, "target_true", self.target_true.strip())
            if self.target_true == self.target_new:
                message = f"edit {self._label()}: target_new equals target_true ({self.target_new!r})"
                warnings.warn(message, stacklevel=3)

    @classmethod
    def from_text(cls, prompt: str, subject: str, target_new: str, **rest) -> Edit:
        """An edit whose prompt holds the subject as text, exactly once."""
        count = prompt.count(subject) if subject else 0
        if count != 1:
            raise KeditError(
                f"edit of {subject!r}: the subject stands {count} times in {prompt!r}; it must stand there exactly once"
            )
        before, after = prompt.split(subject)
        return cls(f"{before}{{}}{after}", subject, target_new, **rest)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    def _label(self) -> str:
        return f"{self.id} of {self.subject!r}".strip() if isinstance(self.subject, str) else repr(self.id)


def check_edits(edits, what: str) -> list[Edit]:
    """The edits as a list, or KeditError from `what` when there are none or something else is among them."""
    edits = list(edits) if isinstance(edits, Iterable) else [edits]
    if not edits:
        raise KeditError(f"{what}: there are no edits; pass a non-empty list of Edit")
    for i, edit in enumerate(edits):
        if not isinstance(edit, Edit):
            raise KeditError(f"{what}: edit {i} is of type {type(edit).__name__}; pass a list of Edit")
    return edits


def fill(context: str, prompt: str, subject: str) -> tuple[str, int, int]:
    """`prompt` about `subject` inside a context such as "I saw it. {}", and where the subject lies in it.

    Returns (text, start, end) in characters. Doubled braces in the context stand for single ones.
    """
    pieces = list(string.Formatter().parse(context))  # split at {} and at every doubled brace
    place = next(i for i, (_, field, *_) in enumerate(pieces) if field is not None)
    before = "".join(literal for literal, *_ in pieces[: place + 1])
    after = "".join(literal for literal, *_ in pieces[place + 1 :])
    start = len(before) + prompt.index("{}")
    return f"{before}{prompt.replace('{}', subject)}{after}", start, start + len(subject)


def check_context(context: str) -> str:
    """The context itself, or KeditError unless it has exactly one `{}` (other braces doubled)."""
    if not isinstance(context, str):
        raise KeditError(f"context {context!r}: must be text with one {{}} where the prompt goes")
    try:
        fields = [name for _, name, *_ in string.Formatter().parse(context) if name is not None]
    except ValueError as error:
        raise KeditError(f"context {context!r}: {error}; double every brace but one {{}}") from None
    if fields != [""]:
        raise KeditError(f"context {context!r}: needs exactly one {{}} where the prompt goes; double any other brace")
    return context
