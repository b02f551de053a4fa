"""WikiBigEdit: questions about facts that changed in Wikidata, with rephrasings, two hops and an unrelated question.

Source: Thede et al., Understanding the Limits of Lifelong Knowledge Editing in LLMs, arXiv 2503.05683.
"""

from __future__ import annotations

from .records import Record, pairs


def fits(values: dict) -> bool:
    return {"update", "ans"} <= {*values}


def fields(record: Record) -> dict:
    asked = [record.text(name, "") for name in ("rephrase", "personas")]
    return {
        "text": record.text("update"),
        "subject": record.text("subject"),
        "target_new": record.text("ans"),
        "paraphrases": [p for p in asked if p.strip()],
        "portability": pairs((record.text("mhop", ""), record.text("mhop_ans", ""))),
        "locality": pairs((record.text("loc", ""), record.text("loc_ans", ""))),
        "relation": record.text("relation", ""),
        "id": record.label("case_id"),
    }
