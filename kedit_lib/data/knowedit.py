"""KnowEdit: wiki_recent, wiki_counterfact, ZsRE and WikiBio, with portability and locality by criterion.

Source: Zhang et al., A Comprehensive Study of Knowledge Editing for Large Language Models,
arXiv 2401.01286. WikiBio calls its fields concept, text and labels. An answer is a text, a list of
right answers, or a list of lists with other spellings; the first is taken.
"""

from __future__ import annotations

from .records import Record, pairs


def fits(values: dict) -> bool:
    by_criterion = (values.get(name) for name in ("portability", "locality"))
    return any(isinstance(v, dict) and "New Question" not in v for v in by_criterion) or {"concept", "labels"} <= {
        *values
    }


def fields(record: Record) -> dict:
    bio = "concept" in record.values and "subject" not in record.values
    subject, prompt, target = ("concept", "text", "labels") if bio else ("subject", "prompt", "target_new")
    known = record.values.get("ground_truth")
    return {
        "text": record.text(prompt),
        "subject": record.text(subject),
        "target_new": record.text(target),
        "target_true": _first(record, "ground_truth", known).strip() or None,
        "paraphrases": _rephrased(record),
        "portability": _asked(record, "portability"),
        "locality": _asked(record, "locality"),
        "id": record.label("case_id"),
    }


def _rephrased(record: Record) -> list[str]:
    for name in ("rephrase_prompt", "rephrase"):
        if isinstance(record.values.get(name), list):
            return record.texts(name)
        if text := record.text(name, "").strip():
            return [text]
    return []


def _asked(record: Record, name: str) -> list[tuple[str, str]]:
    """(prompt, answer) of every criterion, in the file's order."""
    found = []
    for criterion, items in record.inside(name).items():
        if isinstance(items, dict):  # as EasyEdit's editor takes them: {prompt, ground_truth}, texts or lists
            items = _one_each(items)
        if not isinstance(items, (list, type(None))):
            record.refuse(f"{name}.{criterion}", f"must be a list, got {items!r}")
        for i, item in enumerate(items or []):
            path = f"{name}.{criterion}.{i}"
            if not isinstance(item, dict):
                record.refuse(path, f"must be an object with prompt and ground_truth, got {item!r}")
            prompt = _first(record, f"{path}.prompt", item.get("prompt"))
            found.append((prompt, _first(record, f"{path}.ground_truth", item.get("ground_truth"))))
    return pairs(*found)


def _one_each(both: dict) -> list[dict]:
    prompts, answers = ([v] if isinstance(v, str) else v for v in (both.get("prompt"), both.get("ground_truth")))
    if not (isinstance(prompts, list) and isinstance(answers, list)):
        return [both]
    return [{"prompt": p, "ground_truth": a} for p, a in zip(prompts, answers, strict=False)]


def _first(record: Record, path: str, value) -> str:
    """The first text in a text, a list of texts or a list of such lists; "" when there is none."""
    while isinstance(value, list):
        value = value[0] if value else ""
    if value is not None and not isinstance(value, str):
        record.refuse(path, f"must be text or lists of text, got {value!r}")
    return value or ""
