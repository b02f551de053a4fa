"""zsRE as a set of edits: a question, another answer, and an unrelated question of Natural Questions.

Source: De Cao et al., arXiv 2104.08164, and Mitchell et al., arXiv 2110.11309 (`zsre_mend_eval.json`).
"""

from __future__ import annotations

from .records import Record, one_hop, pairs

LABEL = "nq question: "  # in front of every unrelated question; ROME's loader takes it off and asks with a "?"


def fits(values: dict) -> bool:
    return "src" in values or "alt" in values


def fields(record: Record) -> dict:
    answers = record.texts("answers")
    unrelated = record.text("loc", "").removeprefix(LABEL).strip()
    if unrelated and not unrelated.endswith("?"):
        unrelated += "?"
    return {
        "text": record.text("src"),
        "subject": record.text("subject"),
        "target_new": record.text("alt"),
        "target_true": answers[0] if answers else None,
        "paraphrases": [p for p in [record.text("rephrase", "")] if p.strip()],
        "portability": one_hop(record),
        "locality": pairs((unrelated, record.text("loc_ans", ""))),
        "id": record.label("case_id"),
    }
