"""How edit sets write an edit: which records are of a schema, and their fields of `Edit`, with `text` in place of the
prompt where that holds the subject. A further schema is one function here."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from .edit import LISTS, PAIRS, Edit, around_places
from .files import Record, pairs

FIELDS = tuple(f.name for f in dataclasses.fields(Edit))


class Schema(NamedTuple):
    fits: Callable[[dict], bool]  # a record's values
    fields: Callable[[Record], dict]


SCHEMAS: dict[str, Schema] = {}  # in the order in which a record is recognised: the last, "own", fits every one


def schema(name: str, fits: Callable[[dict], bool]):
    """Registers a function as the schema `name`, in front of "own"."""

    def register(fields):
        own = {"own": SCHEMAS.pop("own")} if "own" in SCHEMAS else {}
        SCHEMAS.update({name: Schema(fits, fields), **own})
        return fields

    return register


@schema("counterfact", lambda values: "requested_rewrite" in values)
def counterfact(record: Record) -> dict:
    """A template, two objects, and prompts of four kinds. Source: Meng et al., arXiv 2202.05262. MQuAKE names its
    edits so, too, with a question for each and questions over several hops (Zhong et al., arXiv 2305.14795)."""
    hops = [(question, record.text("new_answer", "")) for question in record.texts("questions")]
    return {
        "prompt": record.text("requested_rewrite.prompt"),
        "subject": record.text("requested_rewrite.subject"),
        "target_new": record.text("requested_rewrite.target_new.str"),
        "target_true": record.text("requested_rewrite.target_true.str"),
        "paraphrases": record.texts("paraphrase_prompts") + _present(record, "requested_rewrite.question"),
        "neighborhood": record.texts("neighborhood_prompts"),
        "generation_prompts": record.texts("generation_prompts"),
        "attribute_prompts": record.texts("attribute_prompts"),
        "portability": _one_hop(record) + pairs(*hops),
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


@schema("fastedit", lambda values: {"prompt", "subject", "target"} <= values.keys())
def fastedit(record: Record) -> dict:
    """A template, and queries that should give the target as well. Source: the README of hiyouga/FastEdit."""
    fact = _fact(record, target_new="target")
    return fact | {"prompt": fact.pop("text"), "paraphrases": record.texts("queries")}


@schema("wikibigedit", lambda values: {"update", "ans"} <= values.keys())
def wikibigedit(record: Record) -> dict:
    """Questions about facts that changed in Wikidata, with rephrasings, two hops and an unrelated question. Source:
    Thede et al., arXiv 2503.05683."""
    return _fact(record, text="update", target_new="ans") | {
        "paraphrases": _present(record, "rephrase", "personas"),
        "portability": _asked(record, ("mhop", "mhop_ans")),
        "locality": _asked(record, ("loc", "loc_ans")),
        "relation": record.text("relation", ""),
    }


@schema("uniedit", lambda values: isinstance(values.get("edit"), dict))
def uniedit(record: Record) -> dict:
    """An edit, with questions that follow from it (`generality`) and others that do not (`locality`); a file is an
    object of records. Source: Chen et al., arXiv 2505.12345."""
    follows, others = (
        _asked(record, *((f"{name}.{key}.prompt", f"{name}.{key}.target") for key in record.get(name, dict, {})))
        for name in ("generality", "locality")
    )
    fact = _fact(record, "edit.prompt", "edit.subject", "edit.target", "index")
    return {**fact, "portability": follows, "locality": others}


@schema("cknowedit", lambda values: "target_old" in values)
def cknowedit(record: Record) -> dict:
    """Chinese questions with the answer that a model gave and the right one. No subject is named: as its authors do,
    the whole question is taken for it. Source: Fang et al., arXiv 2409.05806."""

    def asked(name: str) -> list[tuple[str, str]]:
        """(prompt, answer) pairs from a list of {prompt, answer}, or from two lists `name_prompt` and `name_answer`."""
        found = list(zip(record.texts(f"{name}_prompt"), record.texts(f"{name}_answer"), strict=False))
        for i, item in enumerate(record.get(name, list, [])):
            if not isinstance(item, dict):
                record.refuse(f"{name}.{i}", f"must be an object with prompt and answer, got {item!r}")
            given = Record(f"{record.where} {name}.{i}", record.number, item)
            found.append((given.text("prompt", ""), given.text("answer", "")))
        return pairs(*found)

    question = record.text("prompt").strip()
    subject = record.text("subject", question).strip()
    return {
        **({"prompt": "{}"} if subject == question else {"text": question}),
        "subject": subject,
        "target_new": record.text("target_new"),
        "target_true": record.text("target_old", "").strip() or None,
        "paraphrases": record.texts("rephrase"),
        "portability": asked("portability"),
        "locality": asked("locality"),
        "id": record.label("case_id"),
    }


@schema("zsre", lambda values: "src" in values or "alt" in values)
def zsre(record: Record) -> dict:
    """A question, another answer, and an unrelated question of Natural Questions (`zsre_mend_eval.json`). Source: De
    Cao et al., arXiv 2104.08164; Mitchell et al., arXiv 2110.11309."""
    # ROME's loader takes the label off too, and asks with a question mark.
    unrelated = record.text("loc", "").removeprefix("nq question: ").strip()
    if unrelated and not unrelated.endswith("?"):
        unrelated += "?"
    return _fact(record, text="src", target_new="alt") | {
        "target_true": next(iter(record.texts("answers")), None),
        "paraphrases": _present(record, "rephrase"),
        "portability": _one_hop(record),
        "locality": pairs((unrelated, record.text("loc_ans", ""))),
    }


def _is_knowedit(values: dict) -> bool:
    by_criterion = (values.get(name) for name in ("portability", "locality"))
    named = any(isinstance(v, dict) and "New Question" not in v for v in by_criterion)
    return named or {"concept", "labels"} <= values.keys()


@schema("knowedit", _is_knowedit)
def knowedit(record: Record) -> dict:
    """wiki_recent, wiki_counterfact, ZsRE and WikiBio, with portability and locality by criterion. WikiBio calls its
    fields concept, text and labels. Source: Zhang et al., arXiv 2401.01286."""
    bio = "concept" in record.values and "subject" not in record.values
    fact = _fact(record, *(("text", "concept", "labels") if bio else ()))
    return fact | {
        "text": fact["text"].rstrip() if bio else fact["text"],  # WikiBio's passages all end in a space
        "target_true": _true(record),
        "paraphrases": _rephrased(record),
        "portability": _by_criterion(record, "portability"),
        "locality": _by_criterion(record, "locality"),
    }


def _by_criterion(record: Record, name: str) -> list[tuple[str, str]]:
    """(prompt, answer) of every criterion, in the file's order."""
    found = []
    for criterion, items in record.get(name, dict, {}).items():
        if isinstance(items, dict):  # as EasyEdit's editor takes them: {prompt, ground_truth}, texts or lists
            both = [[v] if isinstance(v, str) else v for v in (items.get("prompt"), items.get("ground_truth"))]
            lists = all(isinstance(v, list) for v in both)
            items = [{"prompt": p, "ground_truth": a} for p, a in zip(*both, strict=False)] if lists else [items]
        if not isinstance(items, (list, type(None))):
            record.refuse(f"{name}.{criterion}", f"must be a list, got {items!r}")
        for i, item in enumerate(items or []):
            path = f"{name}.{criterion}.{i}"
            if not isinstance(item, dict):
                record.refuse(path, f"must be an object with prompt and ground_truth, got {item!r}")
            found.append([_first(record, f"{path}.{part}", item.get(part)) for part in ("prompt", "ground_truth")])
    return pairs(*found)


def _first(record: Record, path: str, value) -> str:
    """An answer: a text, a list of right answers, or a list of lists with other spellings. The first; "" if none."""
    while isinstance(value, list):
        value = value[0] if value else ""
    if value is not None and not isinstance(value, str):
        record.refuse(path, f"must be text or lists of text, got {value!r}")
    return value or ""


def _true(record: Record) -> str | None:
    """A text or a list of right answers; EasyEdit writes <|endoftext|> where none is known."""
    given = record.values.get("ground_truth")
    true = _first(record, "ground_truth", given) if isinstance(given, list) else record.text("ground_truth", "")
    return true.strip() if true.strip() not in ("", "<|endoftext|>") else None


def _rephrased(record: Record) -> list[str]:
    names = ("rephrase_prompt", "rephrase")
    listed = [name for name in names if isinstance(record.values.get(name), list)]
    return record.texts(listed[0]) if listed else _present(record, *names)[:1]


FLAT = {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth"}


@schema("counterfact-flat", lambda values: not FLAT.isdisjoint(values))
def counterfact_flat(record: Record) -> dict:
    """CounterFact as EasyEdit ships it: the subject stands in the prompt, one prompt of each kind. Source: its
    `counterfact-*.json` files, arXiv 2308.07269."""
    true = _true(record)
    locality = _asked(record, ("locality_prompt", "locality_ground_truth"), ("loc", "loc_ans"))
    return _fact(record) | {
        "target_true": true,
        "paraphrases": _rephrased(record),
        # the file's locality prompts are CounterFact's neighbors: the answer is the edit's own true object
        "neighborhood": [prompt for prompt, answer in locality if answer.strip() == true],
        "locality": locality,
        "portability": _one_hop(record),
    }


@schema("own", lambda values: True)
def own(record: Record) -> dict:
    """The user's own records, with the fields of `Edit`; the prompt may hold the subject as text in place of {}."""
    given = {name: value for name, value in record.values.items() if name in FIELDS and value is not None}
    if missing := [name for name in FIELDS[:3] if name not in given]:
        others = "".join(f"; {name!r} is unknown" for name in unknown(record))
        record.refuse(missing[0], f"is missing{others}; the fields are {', '.join(FIELDS)}")
    for name, value in given.items():
        if name in LISTS and isinstance(value, list):
            given[name] = record.texts(name)
        elif name in PAIRS and isinstance(value, list):
            given[name] = [pair for pair in value if pair is not None]
        elif name not in (*LISTS, *PAIRS, "separator"):
            given[name] = record.text(name)
    if len(around_places(given["prompt"])) == 1 and given["subject"].strip() in given["prompt"]:
        given["text"] = given.pop("prompt")
    return given


def unknown(record: Record) -> list[str]:
    return [name for name in record.values if name not in FIELDS]


def _fact(record: Record, text="prompt", subject="subject", target_new="target_new", name="case_id") -> dict:
    fact = {"text": record.text(text), "subject": record.text(subject), "target_new": record.text(target_new)}
    return {**fact, "id": record.label(name)}


def _present(record: Record, *names: str) -> list[str]:
    return [text for text in (record.text(name, "") for name in names) if text.strip()]


def _asked(record: Record, *names: tuple[str, str]) -> list[tuple[str, str]]:
    return pairs(*((record.text(prompt, ""), record.text(answer, "")) for prompt, answer in names))


def _one_hop(record: Record) -> list[tuple[str, str]]:
    """The question that CounterFact and zsRE files with `portability` ask: one step beyond the edit."""
    return _asked(record, ("portability.New Question", "portability.New Answer"))
