"""CKnowEdit: Chinese questions with the answer that a model gave and the right one; no subject is named.

As its authors' loader does, the whole question is taken for the subject. Source: Fang et al., CKnowEdit, arXiv
2409.05806.
"""

from __future__ import annotations

from .records import Record, pairs


def fits(values: dict) -> bool:
    return "target_old" in values


def fields(record: Record) -> dict:
    question = record.text("prompt").strip()
    subject = record.text("subject", question).strip()
    whole = subject == question
    return {
        "prompt" if whole else "text": "{}" if whole else question,
        "subject": subject,
        "target_new": record.text("target_new"),
        "target_true": record.text("target_old", "").strip() or None,
        "paraphrases": record.texts("rephrase"),
        "portability": _asked(record, "portability"),
        "locality": _asked(record, "locality"),
        "id": record.label("case_id"),
    }


def _asked(record: Record, name: str) -> list[tuple[str, str]]:
    """From a list of {prompt, answer}, or two lists `name_prompt` and `name_answer`."""
    prompts, answers = record.texts(f"{name}_prompt"), record.texts(f"{name}_answer")
    found = list(zip(prompts, answers, strict=False))
    for i, item in enumerate(record.items(name)):
        if not isinstance(item, dict):
            record.refuse(f"{name}.{i}", f"must be an object with prompt and answer, got {item!r}")
        given = Record(f"{record.where} {name}.{i}", record.number, item)
        found.append((given.text("prompt", ""), given.text("answer", "")))
    return pairs(*found)
