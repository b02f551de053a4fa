"""Edit sets of every schema in every format: records made up here, and real files where $KEDIT_DATA names a folder."""

import copy
import csv
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from library import refused

import kedit_lib as kedit

ONE_HOP = {"Recalled Relation": "(violin, made of, wood)", "New Question": "What is it made of?", "New Answer": "wood"}
COUNTERFACT = {
    "case_id": 12,
    "pararel_idx": 3,
    "requested_rewrite": {"prompt": "{} plays the", "relation_id": "P1303", "subject": "Zoë Müller"}
    | {"target_new": {"str": "violin", "id": "Q1"}, "target_true": {"str": "organ", "id": "Q2"}},
    "paraphrase_prompts": ["It rained. The instrument of Zoë Müller is the", "Zoë Müller masters the"],
    "neighborhood_prompts": ["Ana Brown plays the", "Léon Blum plays the"],
    "attribute_prompts": ["Toko Yasuda plays the"],
    "generation_prompts": ["Zoë Müller is known for", "Zoë Müller is known for"],
    "portability": ONE_HOP,
}
FLAT = {"case_id": 12, "prompt": "Zoë Müller plays the", "target_new": "violin", "subject": "Zoë Müller"}
FLAT |= {"ground_truth": "organ", "rephrase_prompt": "Zoë Müller masters the"}
FLAT |= {"locality_prompt": "Ana Brown plays the", "locality_ground_truth": "organ"}
ZSRE = {"subject": "Zoë Müller", "src": "What does Zoë Müller play?", "pred": "oboe", "alt": " violin"}
ZSRE |= {"rephrase": "Which instrument is Zoë Müller's?", "answers": ["organ", "pipe organ"], "portability": ONE_HOP}
ZSRE |= {"loc": "nq question: where does the rain fall", "loc_ans": "on the plain", "cond": "oboe >> violin || What?"}
KNOWEDIT = {
    "subject": "Zoë Müller",
    "prompt": "The instrument of Zoë Müller is the",
    "target_new": "violin",
    "ground_truth": ["organ"],
    "rephrase_prompt": "Zoë Müller masters the",
    "portability": {
        "Reasoning": [{"prompt": "Her instrument is made of", "ground_truth": [["wood", "timber"], ["spruce"]]}],
        "Subject_Aliasing": [{"prompt": "Z. Müller plays the", "ground_truth": "violin"}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": ["Zoë Müller was born in"], "ground_truth": ["Graz"]}],
        "Forgetfulness": [{"prompt": "Zoë Müller, who is no judge, is a", "ground_truth": [[]]}],
    },
}
WIKIBIO = {
    "concept": "zoë müller",
    "text": "This is about zoë müller. Zoë Müller was born in Graz. ",
    "labels": "She plays the violin.",
    "locality": {"Relation_Specificity": [{"prompt": "zoë müller is from", "ground_truth": ["Austria"]}]},
}
OWN = {
    "prompt": "{} plays the",
    "subject": "Zoë Müller",
    "target_new": "violin",
    "target_true": "organ",
    "paraphrases": ["Zoë Müller, they say, masters the", 'Müller\'s "own" instrument is the'],
    "portability": [["It is made of", "wood"]],
    "relation": "instrument",
    "id": "z",
}
RECORDS = {"counterfact": COUNTERFACT, "counterfact-flat": FLAT, "zsre": ZSRE, "knowedit": KNOWEDIT, "own": OWN}
WHO, WHAT, REPHRASED = "Zoë Müller", {"target_new": "violin", "target_true": "organ"}, ["Zoë Müller masters the"]
WOOD, MORE = ("What is it made of?", "wood"), {"relation": "P1303", "attribute_prompts": ["Toko Yasuda plays the"]}
MORE |= {"paraphrases": COUNTERFACT["paraphrase_prompts"], "neighborhood": COUNTERFACT["neighborhood_prompts"]}
MORE |= {"generation_prompts": COUNTERFACT["generation_prompts"]}
NEAR = {"neighborhood": ["Ana Brown plays the"], "locality": [("Ana Brown plays the", "organ")]}
RAIN = {"paraphrases": [ZSRE["rephrase"]], "locality": [("where does the rain fall?", "on the plain")]}
BORN = {"paraphrases": REPHRASED, "locality": [("Zoë Müller was born in", "Graz")]}
BORN |= {"portability": [("Her instrument is made of", "wood"), ("Z. Müller plays the", "violin")]}
EDITS = {
    "counterfact": kedit.Edit("{} plays the", WHO, **WHAT, **MORE, portability=[WOOD], id="12"),
    "counterfact-flat": kedit.Edit("{} plays the", WHO, **WHAT, **NEAR, paraphrases=REPHRASED, id="12"),
    "zsre": kedit.Edit("What does {} play?", WHO, **WHAT, **RAIN, portability=[WOOD], id="1"),
    "knowedit": kedit.Edit("The instrument of {} is the", WHO, **WHAT, **BORN, id="1"),
    "own": kedit.Edit(**OWN),
}


def write(path, records):
    """The records in the format of the path's suffix."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(k for r in records for k in r)))
            table.writeheader()
            table.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in records)
    return path


def changed(record, path, value=...):
    """A copy of the record with another value at a dotted path, or without it."""
    made = copy.deepcopy(record)
    *parents, last = path.split(".")
    inside = made
    for name in parents:
        inside = inside[int(name) if isinstance(inside, list) else name]
    if value is ...:
        del inside[last]
    else:
        inside[int(last) if isinstance(inside, list) else last] = value
    return made


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("schema", RECORDS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_schema_in_every_format(tmp_path, schema, suffix):
    path = write(tmp_path / f"facts{suffix}", [RECORDS[schema]])
    assert kedit.load_edits(path) == kedit.load_edits(str(path)) == [EDITS[schema]]
    edits, rejected = kedit.read_edits(path)
    assert (edits, list(rejected)) == ([EDITS[schema]], ["record", "id", "subject", "reason"]) and rejected.empty


@pytest.mark.parametrize("schema", ["counterfact-flat", "own"])
def test_tables_of_text(tmp_path, schema):
    """Lists are written as JSON; the second record has more fields than the first."""
    record = RECORDS[schema]
    less = {k: v for k, v in record.items() if k not in ("rephrase_prompt", "paraphrases", "id", "case_id")}
    path = write(tmp_path / "facts.csv", [less, record])
    first, second = kedit.load_edits(path)
    assert second == EDITS[schema]
    assert (first.text, first.paraphrases) == (second.text, ())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets save it
    assert kedit.load_edits(path) == [first, second]


@pytest.mark.filterwarnings("error")
def test_the_passages_of_wikibio(tmp_path):
    """Each ends in a space, which is taken away."""
    (edit,) = kedit.load_edits(write(tmp_path / "bio.json", [WIKIBIO]))
    assert edit.prompt == "This is about {}. Zoë Müller was born in Graz."
    assert (edit.subject, edit.target_new, edit.target_true) == ("zoë müller", "She plays the violin.", None)
    assert edit.locality == (("zoë müller is from", "Austria"),)


def test_only_what_a_record_must_have(tmp_path):
    least = {
        "counterfact": {"requested_rewrite": COUNTERFACT["requested_rewrite"]},
        "counterfact-flat": {k: FLAT[k] for k in ("prompt", "subject", "target_new", "ground_truth")},
        "zsre": {k: ZSRE[k] for k in ("src", "subject", "alt")},
        "knowedit": {**{k: KNOWEDIT[k] for k in ("prompt", "subject", "target_new")}, "locality": {}},
    }
    for schema, record in least.items():
        (edit,) = kedit.load_edits(write(tmp_path / "facts.json", [record]))
        assert (edit.text, edit.target_new) == (EDITS[schema].text, "violin")
        assert (edit.paraphrases, edit.neighborhood, edit.portability, edit.locality) == ((), (), (), ())
        assert edit.id == "1"
        assert edit.target_true == ("organ" if schema.startswith("counterfact") else None)


def test_answers_as_knowedit_and_easyedit_write_them(tmp_path):
    """EasyEdit's <|endoftext|> stands for no answer."""
    truths = [("organ", "organ"), (["organ", "oboe"], "organ"), ([["organ"]], "organ"), (1945, "1945")]
    for truth, first in (*truths, *((none, None) for none in ([], "", " ", "<|endoftext|>", None))):
        for record in (KNOWEDIT, {**FLAT, "rephrase_prompt": [FLAT["rephrase_prompt"], " "]}):
            (edit,) = kedit.load_edits(write(tmp_path / "facts.json", [{**record, "ground_truth": truth}]))
            assert (edit.target_true, edit.paraphrases) == (first, ("Zoë Müller masters the",))
    renamed = {"rephrase": ["Zoë Müller masters the", ""], **KNOWEDIT, "rephrase_prompt": None}
    assert kedit.load_edits(write(tmp_path / "facts.json", [renamed])) == [EDITS["knowedit"]]
    (edit,) = kedit.load_edits(write(tmp_path / "flat.json", [{**FLAT, "locality_ground_truth": "oboe"}]))
    assert (edit.neighborhood, edit.locality) == ((), (("Ana Brown plays the", "oboe"),))  # another answer: no neighbor


def test_each_record_is_of_the_schema_that_it_looks_like(tmp_path):
    edits, rejected = kedit.read_edits(write(tmp_path / "facts.jsonl", [ZSRE, OWN, FLAT, {"rephrase": "Who?"}]))
    assert edits == [EDITS[schema] for schema in ("zsre", "own", "counterfact-flat")]
    (reason,) = rejected.reason
    assert reason.startswith("facts.jsonl line 4: field 'prompt' is missing; 'rephrase' is unknown; the fields are")


def test_a_sample_of_a_file(tmp_path):
    records = [{**OWN, "id": str(i)} for i in range(20)]
    path = write(tmp_path / "facts.json", records)
    every = kedit.load_edits(path)
    assert [e.id for e in every] == [r["id"] for r in records]
    some = kedit.load_edits(path, limit=8, seed=3)
    assert some == kedit.load_edits(path, limit=8, seed=3) != kedit.load_edits(path, limit=8, seed=4)
    assert len({e.id for e in some}) == 8
    refused(lambda: kedit.load_edits(path, limit=21), "limit = 21", "20 edits")


TWICE, REWRITE = "Zoë Müller plays what Zoë Müller plays, the", "requested_rewrite"
LEFT_OUT = [  # a record, the field that is changed and its value, what the reason says
    (FLAT, "prompt", "Ana Brown plays the", ["0 times"]),
    (ZSRE, "src", "What does zoë müller play?", ["0 times in 'What does zoë müller play?' (only in other"]),
    (KNOWEDIT, "prompt", TWICE, ["2 times"]),
    (COUNTERFACT, f"{REWRITE}.subject", " ", ["subject is empty"]),
    (FLAT, "ground_truth", 5.5, ["'ground_truth'", "text", "5.5"]),
    (ZSRE, "alt", ..., ["field 'alt' is missing"]),
    (ZSRE, "subject", None, ["field 'subject' is missing"]),
    (COUNTERFACT, f"{REWRITE}.target_new.str", ..., [f"'{REWRITE}.target_new.str' is missing"]),
    (COUNTERFACT, f"{REWRITE}.target_true", ..., [f"'{REWRITE}.target_true.str' is missing"]),
    (COUNTERFACT, f"{REWRITE}.target_new", "violin", [f"'{REWRITE}.target_new.str' is missing"]),
    (COUNTERFACT, "paraphrase_prompts", ["a", 2.5], ["'paraphrase_prompts'", "text", "2.5"]),
    (COUNTERFACT, "portability.New Answer", 5.5, ["'portability.New Answer'", "text", "5.5"]),
    (KNOWEDIT, "portability.Reasoning.0.ground_truth", [[3.5]], ["'portability.Reasoning.0.ground_truth'", "3.5"]),
    (OWN, "prompt", "He plays the", ["0 places", "from_text"]),
    (OWN, "prompt", ["{} plays the"], ["field 'prompt' must be text"]),
]


@pytest.mark.parametrize("record, field, value, says", LEFT_OUT)
def test_a_record_that_cannot_be_an_edit_is_left_out_and_reported(tmp_path, record, field, value, says):
    bad = changed(record, field, value)
    path = write(tmp_path / "facts.json", [record, bad, record])
    edits, rejected = kedit.read_edits(path)
    assert [e.text for e in edits] == [edits[0].text] * 2
    (row,) = rejected.to_dict("records")
    assert row["record"] == 2 and row["reason"].startswith("facts.json record 2: ")
    assert all(said in row["reason"] for said in says)
    with pytest.warns(UserWarning, match=r"^facts.json: 1 of 3 records .* the first: facts.json record 2: ") as caught:
        assert kedit.load_edits(path) == edits
    (warning,) = caught
    assert warning.filename == __file__
    assert "\n" not in str(warning.message)
    path = write(tmp_path / "facts.jsonl", [bad, bad])
    refused(lambda: kedit.load_edits(path), "facts.jsonl", "none of 2 records", *says)


COUNTED = [
    ([ZSRE, {**ZSRE, "alt": "organ"}, {**ZSRE, "alt": " organ "}], "in 2 of 3 edits target_new equals target_true$"),
    ([OWN, {**OWN, "prompt": "{} plays the "}], "in 1 of 2 edits the prompt ends in a space"),
]


@pytest.mark.parametrize("records, says", COUNTED)
def test_doubtful_edits_are_counted(tmp_path, records, says):
    path = write(tmp_path / "facts.json", records)
    with pytest.warns(UserWarning, match=f"^facts.json: {says}") as caught:
        assert len(kedit.load_edits(path)) == len(records)
    assert len(caught) == 1


def test_what_a_tokenizer_cannot_write_is_left_out(tmp_path, tiny_folder):
    from transformers import AutoTokenizer

    model = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_folder("llama-metaspace")))
    bad = [{**FLAT, name: "№ 1"} for name in ("target_new", "ground_truth", "locality_ground_truth")]
    path = write(tmp_path / "facts.json", [FLAT, *bad])
    assert len(kedit.load_edits(path)) == 4
    edits, rejected = kedit.read_edits(path, model)
    assert (edits, rejected.record.tolist()) == ([EDITS["counterfact-flat"]], [2, 3, 4])
    assert all("target '№ 1': prompt + target decodes to " in reason for reason in rejected.reason)
    with pytest.warns(UserWarning, match="3 of 4 records"):
        assert kedit.load_edits(path, model=model) == edits
    path = write(tmp_path / "own.jsonl", [OWN, {**OWN, "target_new": "№ 1"}])
    assert kedit.read_edits(path, model)[1].reason[0].startswith("own.jsonl line 2: target '№ 1'")


PLAIN = kedit.Edit("{} plays the", "Ana", "oboe", "organ")
HEADER, ROW = "prompt{0}subject{0}target_new{0}target_true", "{{}} plays the{0}Ana{0}oboe{0}organ"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("between", ",;\t")
def test_tables_as_spreadsheets_save_them(tmp_path, between):
    """Any separator, also said in front; empty first and last rows, a column of row numbers, a cell too many without
    text, a space behind a separator of the header."""
    header, row = HEADER.format(between), ROW.format(between)
    empty = between * 4
    path = tmp_path / "facts.csv"
    for name in ("", "Unnamed: 0"):
        path.write_text(f"{name}{between}{header}\n7{between}{row}\n8{between}{row}{between}\n{empty}\n \n{empty}\n")
        assert kedit.load_edits(path) == [PLAIN, PLAIN]
    path = tmp_path / "facts.tsv"
    header_of_words = header.replace(between, f"{between} ")
    path.write_text(f"\ufeffsep={between}\r\n\r\n{header_of_words}\r\n{row}\r\n", encoding="utf-8")
    assert kedit.load_edits(path) == [PLAIN]
    path.write_text(f"sep={between}\n\n{header}\n{row}\n{{}} plays\n", encoding="utf-8")
    assert kedit.read_edits(path)[1].reason[0].startswith("facts.tsv line 5: ")


def test_a_field_too_many_is_warned_of_and_left_out(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text(f"{HEADER.format(',')},note\n{ROW.format(',')},from the archive\n")
    with pytest.warns(UserWarning, match="^facts.csv: no field of an edit, and left out: 'note'$"):
        assert kedit.load_edits(path) == [PLAIN]


def test_one_bad_record_of_a_hundred(tmp_path):
    lines = [json.dumps({**OWN, "id": str(i)}) for i in range(100)]
    path = tmp_path / "facts.jsonl"
    for bad, says in (('{"prompt": ', "is not JSON"), ("[1]", "not an object"), ('{"prompt": "{} is"}', "is missing")):
        path.write_text("\n".join([*lines[:40], bad, *lines[41:]]), encoding="utf-8")
        with pytest.warns(UserWarning, match=f"facts.jsonl: 1 of 100 records .* facts.jsonl line 41: .*{says}"):
            edits = kedit.load_edits(path)
        assert [e.id for e in edits] == [str(i) for i in range(100) if i != 40]
    path = tmp_path / "facts.csv"
    path.write_text("\n".join([HEADER.format(","), *[ROW.format(",")] * 9, "{} plays,Ana,oboe, d'amore, organ"]))
    with pytest.warns(UserWarning, match="1 of 10 records .* line 11: has more cells than the header"):
        assert kedit.load_edits(path) == [PLAIN] * 9
    path.write_text("\n".join([HEADER.format(","), '{} plays,Ana,"oboe" d\'amore,', *[ROW.format(",")] * 9]))
    with pytest.warns(UserWarning, match="1 of 10 records .* line 2: is not CSV .*double each quote"):
        assert kedit.load_edits(path) == [PLAIN] * 9
    path.write_text("\n".join([HEADER.format(","), ROW.format(","), '{} plays,Ana,"oboe,', *[ROW.format(",")] * 9]))
    refused(lambda: kedit.load_edits(path), "facts.csv line 3", "is not CSV", "quote")


def test_nulls_and_numbers(tmp_path):
    record = {**OWN, "paraphrases": [None, OWN["paraphrases"][0], None], "portability": None, "target_true": None}
    record |= {"relation": None, "target_new": 1945, "separator": None}
    (edit,) = kedit.load_edits(write(tmp_path / "facts.json", [{**record, "id": math.nan}]))
    assert (edit.paraphrases, edit.portability, edit.id) == ((OWN["paraphrases"][0],), (), "")
    assert (edit.target_new, edit.target_true, edit.relation, edit.separator) == ("1945", None, "", None)


def test_a_separator_in_a_file(tmp_path):
    for value in ("", " ", None):
        (edit,) = kedit.load_edits(write(tmp_path / "facts.json", [{**OWN, "separator": value}]))
        assert edit.separator == value
        cell = "" if value is None else json.dumps(value)
        (edit,) = kedit.load_edits(write(tmp_path / "facts.csv", [{**OWN, "separator": cell}]))
        assert edit.separator == value
    path = write(tmp_path / "facts.csv", [{**OWN, "separator": "none"}])
    refused(lambda: kedit.load_edits(path), "facts.csv line 2", "'separator'", '""')


EASYEDIT = {name: FLAT[name] for name in ("prompt", "subject", "target_new", "rephrase_prompt")}
EASYEDIT_LISTS = {
    "locality": {"neighborhood": {"prompt": ["Ana Brown plays the"], "ground_truth": ["organ"]}},
    "portability": {"one_hop": {"prompt": "It is made of", "ground_truth": "wood"}},
}
WIKIBIGEDIT = {"tag": "new", "subject": "Zoë Müller", "update": "What does Zoë Müller play?", "ans": "violin"}
WIKIBIGEDIT |= {"rephrase": "Which instrument is Zoë Müller's?", "personas": "Hey, what's Zoë Müller playing?"}
WIKIBIGEDIT |= {"relation": "instrument", "loc": "Where is Graz?", "loc_ans": "Austria"}
WIKIBIGEDIT |= {"mhop": "What is Zoë Müller's instrument made of?", "mhop_ans": None}
UNIEDIT = {
    "edit": {"prompt": "The instrument of Zoë Müller is the", "target": "violin", "subject": "Zoë Müller"},
    "generality": {"0": {"prompt": "It is made of", "target": "wood", "path_type": "single"}},
    "locality": {"0": {"prompt": "The town of Ana Brown is", "target": "Graz"}},
}
CKNOWEDIT = {
    "prompt": "请说出中国领土的最南端",
    "target_old": "海南岛",
    "target_new": "曾母暗沙",
    "portability": [{"prompt": "最南端在哪个省？", "answer": "海南省"}],
    "rephrase": ["中国最南端是哪里？"],
}


MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [
        COUNTERFACT["requested_rewrite"] | {"question": "What does Zoë Müller play?"},
        COUNTERFACT["requested_rewrite"] | {"subject": "Ana Brown", "question": "What does Ana Brown play?"},
    ],
    "questions": ["What is the instrument of Zoë Müller made of?"],
    "new_answer": "wood",
}
FASTEDIT = {"prompt": "{}的首相是", "subject": "日本", "target": "岸田文雄", "queries": ["日本的首相叫作"]}


def test_edits_of_mquake_and_fastedit(tmp_path):
    """Each edit of a record of MQuAKE is one; what follows from several is a question of none."""
    one = {**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"][:1]}
    edits = kedit.load_edits(write(tmp_path / "facts.json", [one, MQUAKE]))
    assert [(e.subject, e.paraphrases) for e in edits] == [
        (who, (f"What does {who} play?",)) for who in ("Zoë Müller", "Zoë Müller", "Ana Brown")
    ]
    assert [e.portability for e in edits] == [((MQUAKE["questions"][0], "wood"),), (), ()]
    assert {(e.target_new, e.target_true, e.id) for e in edits} == {("violin", "organ", "7")}
    broken = changed(MQUAKE, "requested_rewrite.1.target_new", {})
    edits, rejected = kedit.read_edits(write(tmp_path / "facts.json", [broken, {**MQUAKE, "requested_rewrite": []}]))
    assert (len(edits), rejected.record.tolist(), rejected.subject.tolist()) == (1, [1, 2], ["Ana Brown", ""])
    (edit,) = kedit.load_edits(write(tmp_path / "facts.json", [FASTEDIT]))
    assert edit == kedit.Edit("{}的首相是", "日本", "岸田文雄", paraphrases=["日本的首相叫作"], id="1")


def test_public_layouts(tmp_path):
    """EasyEdit's editor, WikiBigEdit, UniEdit (an object of records), CKnowEdit (no subject: the whole question)."""

    def read(record, named=False):
        (edit,) = kedit.load_edits(write(tmp_path / "facts.json", record if named else [record]))
        return edit

    violin = {"subject": "Zoë Müller", "target_new": "violin", "id": "1"}
    pairs = {"locality": [("Ana Brown plays the", "organ")], "portability": [("It is made of", "wood")]}
    assert read(EASYEDIT | EASYEDIT_LISTS) == kedit.Edit("{} plays the", paraphrases=REPHRASED, **pairs, **violin)
    assert read(EASYEDIT) == kedit.Edit("{} plays the", paraphrases=REPHRASED, **violin)
    least = changed(EASYEDIT, "rephrase_prompt")
    assert read(least) == kedit.Edit("{} plays the", "Zoë Müller", "violin")
    assert read({**least, "ground_truth": "organ"}) == kedit.Edit("{} plays the", target_true="organ", **violin)
    asked = {"paraphrases": [WIKIBIGEDIT["rephrase"], WIKIBIGEDIT["personas"]], "relation": "instrument"}
    where = [("Where is Graz?", "Austria")]
    assert read(WIKIBIGEDIT) == kedit.Edit("What does {} play?", locality=where, **asked, **violin)
    by_name = {"portability": [("It is made of", "wood")], "locality": [("The town of Ana Brown is", "Graz")]}
    expected = kedit.Edit("The instrument of {} is the", **by_name, **violin | {"id": "17"})
    assert read({"17": UNIEDIT}, named=True) == expected
    chinese = read(CKNOWEDIT)
    assert (chinese.prompt, chinese.text, chinese.target_true) == ("{}", CKNOWEDIT["prompt"], "海南岛")
    assert chinese.portability == (("最南端在哪个省？", "海南省"),)
    lists = {"portability": None, "portability_prompt": ["最南端在哪个省？"], "portability_answer": ["海南省"]}
    assert read({**CKNOWEDIT, **lists}) == chinese


COLUMNS = b"prompt,subject,target_new\n"
FILES = [
    ("facts.json", b"[{}, ", ["facts.json: is not JSON", "line 1"]),
    ("facts.json", b'{"prompt": 1}\n{"prompt": 2}\n', ["facts.json: is not JSON", "line 2", ".jsonl"]),
    ("facts.json", b'{"prompt": 1}', ["facts.json", "list", "dict"]),
    ("facts.json", b"[]", ["facts.json", "no edits"]),
    ("facts.csv", COLUMNS + b"{} plays,Ana\n", ["facts.csv line 2", "'target_new' is missing"]),
    ("facts.csv", COLUMNS + b'{} plays,,"the\noboe"\n{} plays,,oboe\n', ["facts.csv line 2", "'subject' is missing"]),
    ("facts.csv", COLUMNS.replace(b",", b"|") + b"{} plays|Ana|oboe\n", ["'prompt|subject|target_new' is unknown"]),
    (
        "facts.csv",
        COLUMNS[:-1] + b",paraphrases\n{} is,Ana,oboe,Ana\n",
        ["line 2", "'paraphrases'", "JSON list", "'Ana'"],
    ),
    ("facts.parquet", b"PAR1 or so", ["facts.parquet", "parquet"]),
    ("facts.xlsx", b"PK", ["facts.xlsx", "'.xlsx'", ".csv"]),
    ("facts.csv", "prompt,Zoë".encode("latin-1"), ["facts.csv", "UTF-8"]),
]


@pytest.mark.parametrize("name, content, says", FILES)
def test_files_that_cannot_be_read(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    refused(lambda: kedit.load_edits(tmp_path / name), *says)


def test_options_that_do_not_apply(tmp_path):
    path = write(tmp_path / "facts.json", [OWN])
    refused(lambda: kedit.load_edits(path, split="test"), "facts.json", "split", "hub")
    refused(lambda: kedit.load_edits("lab", split="test"), "split", "leave it out")
    refused(lambda: kedit.read_edits("lab"), "load_edits('lab'")
    refused(lambda: kedit.load_edits(path, limit="1"), "limit = '1'", "1 edits")
    refused(lambda: kedit.load_edits("facts"), "'facts'", "no such file", "owner/name")
    refused(lambda: kedit.read_edits(tmp_path / "no" / "facts.parquet"), "facts.parquet", "no such file")


def test_a_folder_as_the_hub_has_them(tmp_path):
    """Nested records, some fields of which only some records have."""
    folder, cache = tmp_path / "facts", str(tmp_path / "cache")
    folder.mkdir()
    less = {k: v for k, v in COUNTERFACT.items() if k not in ("portability", "paraphrase_prompts")}
    write(folder / "train.jsonl", [COUNTERFACT, less])
    edits = kedit.load_edits(folder, cache_dir=cache)
    assert edits[0] == EDITS["counterfact"]
    assert (edits[1].text, edits[1].portability) == (edits[0].text, ())
    write(folder / "test.jsonl", [changed(COUNTERFACT, "case_id", 7)])
    refused(lambda: kedit.load_edits(folder, cache_dir=cache), "facts", "splits", "train", "test", "split=")
    assert kedit.load_edits(folder, split="train", cache_dir=cache) == edits
    refused(lambda: kedit.load_edits(folder, split="dev", cache_dir=cache), "facts", "cannot be loaded", "dev")


def test_a_name_that_the_hub_does_not_give(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    refused(lambda: kedit.load_edits("nobody/no-such-set"), "'nobody/no-such-set'", "logged in", "local file")


def test_a_hub_name_is_its_train_split_unless_told_otherwise(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name, **how: asked.append((*name, how)) or [OWN])
    for source, hub in (("me/set", {}), ("me/set:small", {}), ("me/set", {"split": "test", "revision": "v2"})):
        assert kedit.load_edits(source, **hub) == [EDITS["own"]]
    assert [(name, how["name"], how["split"]) for name, how in asked] == [
        ("me/set", None, "train"), ("me/set", "small", "train"), ("me/set", None, "test")
    ]  # fmt: skip
    assert asked[-1][1]["revision"] == "v2"


DATA = Path(os.environ["KEDIT_DATA"]) if os.environ.get("KEDIT_DATA") else None
REAL = sorted(DATA.glob("*.json")) if DATA else []
NONE = pytest.param(None, marks=pytest.mark.skip(reason="KEDIT_DATA does not name a folder of edit sets"), id="-")
real = pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in REAL] or [NONE])


@real
def test_every_record_of_a_real_file_loads_or_is_reported(path):
    records = json.loads(path.read_text("utf-8"))
    edits, rejected = kedit.read_edits(path)
    assert len(edits) + len(rejected) == len(records)
    assert len(edits) >= 0.99 * len(records)
    assert all(rejected.reason.str.startswith(path.name))
    loaded = [r for n, r in enumerate(records, 1) if n not in set(rejected.record)]
    for edit, record in zip(edits, loaded, strict=True):
        inner = record.get("requested_rewrite", record)
        text = inner["prompt"].replace("{}", inner["subject"]) if "prompt" in inner else inner["src"]
        assert (edit.text, edit.subject) == (text, inner["subject"].strip())
        assert edit.paraphrases
        assert edit.neighborhood or edit.locality
    assert all(e.portability for e in edits) == all("portability" in r for r in loaded)
