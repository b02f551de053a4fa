"""CounterFact flattened, as EasyEdit ships it: the subject stands in the prompt, one prompt of each kind.

Source: the `counterfact-*.json` files of EasyEdit, arXiv 2308.07269.
"""

from __future__ import annotations

from .records import Record, one_hop, pairs

OWN = ("ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth")


def fits(values: dict) -> bool:
    return any(name in values for name in OWN)


def fields(record: Record) -> dict:
    true = record.text("ground_truth", None)
    locality = pairs(
        (record.text("locality_prompt", ""), record.text("locality_ground_truth", "")),
        (record.text("loc", ""), record.text("loc_ans", "")),
    )
    return {
        "text": record.text("prompt"),
        "subject": record.text("subject"),
        "target_new": record.text("target_new"),
        "target_true": true,
        "paraphrases": [p for p in [record.text("rephrase_prompt", "")] if p.strip()],
        # the file's locality prompts are CounterFact's neighbors: the answer is the edit's own true object
        "neighborhood": [prompt for prompt, answer in locality if true and answer.strip() == true.strip()],
        "locality": locality,
        "portability": one_hop(record),
        "id": record.label("case_id"),
    }
