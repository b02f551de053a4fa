"""Edits of chat models: every prompt is put into the model's chat template as a user's turn."""

from dataclasses import replace

from ..errors import KeditError, first_line
from .edit import LISTS, PAIRS, Edit, around_places, escaped


def in_chat(edit: Edit, tokenizer, system: str | None = None) -> Edit:
    """The edit with its prompts as turns of a user, the answers being what the assistant says next, without a joint.

    system: text of a system turn (None: the template's own). A begin-of-text of the template is left out where the
    tokenizer writes it too. KeditError when there is no chat template, or it refuses or changes the text.
    """

    def turn(text: str) -> str:
        return text.strip().join(_around(text.strip(), tokenizer, system))

    before, after = _around(edit.text.strip(), tokenizer, system)
    ahead, behind = around_places(edit.prompt)
    changed = {name: tuple(map(turn, getattr(edit, name))) for name in LISTS}
    changed |= {name: tuple((turn(prompt), answer) for prompt, answer in getattr(edit, name)) for name in PAIRS}
    prompt = f"{escaped(before + ahead.lstrip())}{{}}{escaped(behind.rstrip() + after)}"
    return replace(edit, prompt=prompt, separator="", **changed)


def _around(text: str, tokenizer, system: str | None) -> tuple[str, str]:
    """The template before and after a user's text."""
    if not getattr(tokenizer, "chat_template", None):
        remedy = "give an instruct or chat model, or leave chat out"
        raise KeditError(f"tokenizer {type(tokenizer).__name__}: has no chat template; {remedy}")
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": text})
    try:
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template makes of a role
        raise KeditError(f"chat template: refuses {text!r} ({first_line(error)}); leave out system=") from error
    before, found, after = whole.rpartition(text)
    if not found:
        raise KeditError(f"chat template: does not show {text!r} as it is; leave chat out and write the prompt in full")
    bos = tokenizer.bos_token
    if bos and before.startswith(bos) and tokenizer("a").input_ids[0] == tokenizer.bos_token_id:
        before = before.removeprefix(bos)
    return before, after
