"""How edit sets write an edit: which records are of a schema, and their fields of `Edit`, with `text` in place of the
prompt where that holds the subject. A further schema is one function here; where several fit, the last one counts."""

import dataclasses
from collections.abc import Callable

from ..errors import KeditError
from .edit import LISTS, PAIRS, Edit, around_places
from .files import Record

FIELDS = tuple(f.name for f in dataclasses.fields(Edit))
NO_ANSWER = ("", "<|endoftext|>")  # the latter in EasyEdit's files
SCHEMAS: dict[str, tuple[Callable[[dict], bool], Callable[[Record], dict]]] = {}


def schema(name: str, fits: Callable[[dict], bool]):
    """Registers a function, which gives the fields of a record, as the schema of all whose values fit."""

    def register(fields):
        SCHEMAS[name] = fits, fields
        return fields

    return register


def fields_of(record: Record) -> tuple[dict, list[str]]:
    """The fields of the record's edit, and the names of the user's own that no edit has."""
    if record.broken is not None:
        raise record.broken
    fields = next(fields for fits, fields in reversed(SCHEMAS.values()) if fits(record.values))
    return fields(record), [name for name in record.values if fields is own and name not in FIELDS]


@schema("own", lambda values: True)
def own(record: Record) -> dict:
    """The user's own records, with the fields of `Edit`; the prompt may hold the subject as text in place of {}."""
    given = {name: value for name, value in record.values.items() if name in FIELDS}
    if missing := [name for name in FIELDS[:3] if name not in given]:
        others = "".join(f"; {name!r} is unknown" for name in record.values if name not in FIELDS)
        raise KeditError(f"{record.where}: field {missing[0]!r} is missing{others}; the fields are {', '.join(FIELDS)}")
    for name, value in given.items():
        if isinstance(value, list) and name in FIELDS[:3]:
            raise KeditError(f"{record.where}: field {name!r} must be text, got {value!r:.60}")
        if name not in (*LISTS, *PAIRS, "separator"):
            given[name] = record.text(name)
        elif isinstance(value, list):
            given[name] = [item for item in value if item not in (None, "")]
    if len(around_places(given["prompt"])) == 1 and given["subject"].strip() in given["prompt"]:
        given["text"] = given.pop("prompt")
    return given


def _fact(record, text="prompt", subject="subject", new="target_new", true="ground_truth", id="case_id") -> dict:
    """What all other schemas have, under these names."""
    known = record.text(true, "").strip()
    return {
        "text": record.text(text),
        "subject": record.text(subject),
        "target_new": record.text(new),
        "target_true": None if known in NO_ANSWER else known,
        "id": record.label(id),
    }


def _is_easyedit(values: dict) -> bool:
    flat = {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth"} & values.keys()
    criteria = [values[n] for n in ("portability", "locality") if isinstance(values.get(n), dict)]
    return bool(flat) or any("New Question" not in c for c in criteria) or {"concept", "labels"} <= values.keys()


@schema("easyedit", _is_easyedit)
def easyedit(record: Record) -> dict:
    """EasyEdit's records: CounterFact with one prompt of each kind (Wang et al., arXiv 2308.07269); KnowEdit, questions
    by criterion, whose WikiBio calls its fields concept, text and labels (Zhang et al., arXiv 2401.01286)."""
    bio = "concept" in record.values and "subject" not in record.values
    fact = _fact(record, *(("text", "concept", "labels") if bio else ()))
    aside = record.pairs(("locality_prompt", "locality_ground_truth"), ("loc", "loc_ans"))
    return fact | {
        "text": fact["text"].rstrip() if bio else fact["text"],  # WikiBio's passages all end in a space
        "paraphrases": record.texts("rephrase_prompt") or record.texts("rephrase"),
        # CounterFact's neighbors: the answer is the edit's own true object
        "neighborhood": [prompt for prompt, answer in aside if answer.strip() == fact["target_true"]],
        "portability": record.pairs("portability"),
        "locality": record.pairs("locality") + aside,
    }


@schema("zsre", lambda values: "src" in values or "alt" in values)
def zsre(record: Record) -> dict:
    """A question, another answer, and an unrelated question of Natural Questions (`zsre_mend_eval.json`). Source: De
    Cao et al., arXiv 2104.08164; Mitchell et al., arXiv 2110.11309."""
    unrelated = [(q.removeprefix("nq question: ").strip(), answer) for q, answer in record.pairs(("loc", "loc_ans"))]
    return _fact(record, "src", new="alt", true="answers") | {
        "paraphrases": record.texts("rephrase"),
        "portability": record.pairs("portability"),
        # ROME's loader takes the label off too, and asks with a question mark.
        "locality": [(q if q.endswith("?") else f"{q}?", answer) for q, answer in unrelated],
    }


@schema("cknowedit", lambda values: "target_old" in values)
def cknowedit(record: Record) -> dict:
    """Chinese questions with the answer that a model gave and the right one. No subject is named: as its authors do,
    the whole question is taken for it. Source: Fang et al., arXiv 2409.05806."""
    fact = _fact(record, subject="subject" if record.text("subject", "") else "prompt", true="target_old")
    question = fact.pop("text").strip()
    return fact | {
        **({"prompt": "{}"} if fact["subject"].strip() == question else {"text": question}),
        "paraphrases": record.texts("rephrase"),
        "portability": record.pairs("portability", ("portability_prompt", "portability_answer")),
        "locality": record.pairs("locality", ("locality_prompt", "locality_answer")),
    }


@schema("uniedit", lambda values: isinstance(values.get("edit"), dict))
def uniedit(record: Record) -> dict:
    """An edit, questions that follow (`generality`) and others (`locality`). Source: Chen et al., arXiv 2505.12345."""
    fact = _fact(record, "edit.prompt", "edit.subject", "edit.target", id="index")
    return fact | {"portability": record.pairs("generality"), "locality": record.pairs("locality")}


@schema("wikibigedit", lambda values: {"update", "ans"} <= values.keys())
def wikibigedit(record: Record) -> dict:
    """Questions about facts that changed in Wikidata. Source: Thede et al., arXiv 2503.05683."""
    return _fact(record, "update", new="ans") | {
        "paraphrases": record.texts("rephrase", "personas"),
        "portability": record.pairs(("mhop", "mhop_ans")),
        "locality": record.pairs(("loc", "loc_ans")),
        "relation": record.text("relation", ""),
    }


@schema("fastedit", lambda values: {"prompt", "subject", "target"} <= values.keys())
def fastedit(record: Record) -> dict:
    """A template, and queries that should give the target as well. Source: the README of hiyouga/FastEdit."""
    fact = _fact(record, new="target")
    return fact | {"prompt": fact.pop("text"), "paraphrases": record.texts("queries")}


@schema("counterfact", lambda values: "requested_rewrite" in values)
def counterfact(record: Record) -> dict:
    """A template, two objects, and prompts of four kinds. Source: Meng et al., arXiv 2202.05262. MQuAKE names its
    edits so, too, with a question for each and questions over several hops (Zhong et al., arXiv 2305.14795)."""
    answer = record.text("new_answer", "")
    return {
        **{name: record.text(f"requested_rewrite.{name}") for name in ("prompt", "subject")},
        **{name: record.text(f"requested_rewrite.{name}.str") for name in ("target_new", "target_true")},
        **{name: record.texts(name) for name in ("generation_prompts", "attribute_prompts")},
        "neighborhood": record.texts("neighborhood_prompts"),
        "paraphrases": record.texts("paraphrase_prompts", "requested_rewrite.question"),
        "portability": record.pairs("portability") + [(q, answer) for q in record.texts("questions") if answer.strip()],
        "relation": record.text("requested_rewrite.relation_id", ""),
        "id": record.label("case_id"),
    }


def each_rewrite(record: Record) -> list[Record]:
    """A record for each edit of one of MQuAKE's. Its questions go with a single edit: else they follow from all."""
    edits = record.values.get("requested_rewrite")
    if not isinstance(edits, list) or not edits:
        return [record]
    shared = {name: value for name, value in record.values.items() if name != "questions" or len(edits) == 1}
    return [Record(record.where, record.number, {**shared, "requested_rewrite": one}) for one in edits]
