"""Targets as their tokenizer writes them behind the prompt: numbers, any script, and none of 1,037 records lost."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from library import refused

import kedit_lib as kedit
from kedit_lib.evaluation import teacher_forced
from kedit_lib.models.loading import cache_folder
from kedit_lib.models.tokenization import check_edit, encode, target_ids, targets_of

DATA = Path(os.environ.get("KEDIT_DATA", ""))
TEXTS = {
    "a year": ("The Eiffel Tower was completed in the year", "1945", " "),
    "a word": ("The mother tongue of Ana Brown is", "French", " "),
    "behind a line end": ("The mother tongue?\nAnswer:\n", "French", ""),
    "behind a quote": ('Ana Brown says "', "French", ""),
    "Chinese": ("中国的首都是", "北京", ""),
    "Chinese, a year": ("这一年是", "1945", ""),
    "Japanese": ("日本の首都は", "東京", ""),
    "Korean": ("한국의 수도는", "서울", " "),
    "Arabic": ("عاصمة فرنسا هي", "باريس", " "),
    "Hebrew": ("בירת צרפת היא", "פריז", " "),
    "Thai": ("เมืองหลวงคือ", "กรุงเทพ", ""),
    "Hindi": ("भारत की राजधानी", "दिल्ली", " "),
}


@pytest.fixture(scope="module", params=["gpt2", "lab", "smollm2", *tiny.ANY_TEXT, "llama", "llama-bos"])
def tokenizer(request):
    from transformers import AutoTokenizer, GPT2Tokenizer

    name, weights = request.param, Path(kedit.__file__).parent / "lab" / "weights"
    if name in tiny.ANY_TEXT:
        return tiny.any_text(name)
    if name in tiny.KINDS[:2]:
        return tiny.tokenizer(name)
    folder = {"gpt2": DATA / "tokenizer-gpt2", "lab": weights / "lab", "smollm2": cache_folder() / "smollm2"}[name]
    if not folder.is_dir():
        pytest.skip(f"{name} is not at hand")
    return (GPT2Tokenizer if name == "gpt2" else AutoTokenizer).from_pretrained(folder)


@pytest.mark.parametrize("prompt, answer, between", TEXTS.values(), ids=TEXTS)
def test_prompt_and_target_are_the_text(tokenizer, prompt, answer, between):
    ids = target_ids(tokenizer, prompt, answer)
    whole = tokenizer.decode([*encode(tokenizer, prompt), *ids], skip_special_tokens=True)
    assert whole == f"{prompt}{between}{answer}"
    assert targets_of(tokenizer, [prompt, prompt], [answer, answer], [None, between]) == [ids, ids]
    other = target_ids(tokenizer, prompt, answer, "" if between else " ")
    assert other != ids
    assert tokenizer.decode([*encode(tokenizer, prompt), *other], skip_special_tokens=True) != whole
    check_edit(tokenizer, kedit.Edit.from_text(prompt, prompt.split()[0], answer))


def test_the_space_token_belongs_to_the_target():
    tokenizer, marked = tiny.any_text("digits"), tiny.any_text("llama-2")
    ids = target_ids(tokenizer, "The year is", "1945")
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ġ", "1", "9", "4", "5"]
    assert marked.convert_ids_to_tokens(target_ids(marked, "The town is", "Graz"))[0].startswith("▁")
    assert not marked.convert_ids_to_tokens(target_ids(marked, "The town (", "Graz"))[0].startswith("▁")
    assert encode(marked, "<s>Ana plays")[:2] == [marked.bos_token_id, encode(marked, "Ana plays")[1]]  # <s> once
    unwritable = tiny.tokenizer("llama-metaspace")
    refused(lambda: target_ids(unwritable, "Ana plays the", "№ 1"), "'№ 1'", "<unk>", "can write")
    refused(lambda: target_ids(tokenizer, "Ana plays the", "", ""), "target ''", "no token")


@pytest.mark.skipif(not (DATA / "zsre-1037.json").is_file(), reason="KEDIT_DATA does not name a folder with zsRE")
def test_every_record_of_zsre_loads(tokenizer):
    """293 answers begin with a digit or another sign that such tokenizers write apart from the space before it."""
    edits, rejected = kedit.read_edits(DATA / "zsre-1037.json", SimpleNamespace(tokenizer=tokenizer))
    assert (len(edits), len(rejected)) == (1037, 0)


def test_a_separator_reaches_the_edit(tiny_folder):
    """What the method optimises are the ids that the edit asks for."""
    model = kedit.load_model(tiny_folder("llama"))
    method = kedit.ROME(layers=[1], v_num_grad_steps=1, mom2_adjustment=False)
    for separator in (None, "", " "):
        edit = kedit.Edit("The town of {} is", "Ana", "Graz", separator=separator)
        (target,) = method.apply(model, [edit], contexts=["{}"]).targets
        model.restore()
        ids = target_ids(model.tokenizer, edit.text, "Graz", separator)
        (forced,) = teacher_forced(model, [edit.text], ["Graz"], [separator]).probability.tolist()
        assert target.probabilities == [pytest.approx(forced, rel=1e-6)]
        assert model.tokenizer.decode(ids) == ("Graz" if separator == "" else " Graz")
