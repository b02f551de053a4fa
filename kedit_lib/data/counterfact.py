"""CounterFact as its authors publish it: a template, two objects, and prompts of four kinds.

Source: Meng et al., Locating and Editing Factual Associations in GPT, arXiv 2202.05262.
"""

from __future__ import annotations

from .records import Record, one_hop


def fits(values: dict) -> bool:
    return "requested_rewrite" in values


def fields(record: Record) -> dict:
    return {
        "prompt": record.text("requested_rewrite.prompt"),
        "subject": record.text("requested_rewrite.subject"),
        "target_new": record.text("requested_rewrite.target_new.str"),
        "target_true": record.text("requested_rewrite.target_true.str"),
        "paraphrases": record.texts("paraphrase_prompts"),
        "neighborhood": record.texts("neighborhood_prompts"),
        "generation_prompts": record.texts("generation_prompts"),
        "attribute_prompts": record.texts("attribute_prompts"),
        "portability": one_hop(record),
        "relation": record.text("requested_rewrite.relation_id", ""),
        "id": record.label("case_id"),
    }
