"""Edits of chat models: what stands around the prompts, where the subject is found, and no second begin of text."""

from types import SimpleNamespace

import pytest
import tiny
from library import refused

from kedit_lib.data.edit import Edit, in_chat
from kedit_lib.models.tokenization import encode, encode_prompt, target_ids

TURN = "<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n"
TEMPLATES = {
    "plain": "{% for message in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<|a|>\n{% endif %}",
    "begin of text": "<s>{% for message in messages %}[{{ message['content'] | trim }}]{% endfor %}",
    "own system text": "You are {Tiny}, by Ana & Co.\n{% for message in messages %}" + TURN + "{% endfor %}<|a|>",
}


@pytest.fixture(params=TEMPLATES)
def tokenizer(request):
    made = tiny.any_text("llama-2")
    made.chat_template = TEMPLATES[request.param]
    return made


def test_every_prompt_stands_in_the_template(tokenizer):
    lists = {"paraphrases": ["Zoë masters the"], "neighborhood": ["Léon {x} plays the"], "locality": [("Who?", "Léon")]}
    edit = Edit.from_chat(tokenizer, "{} plays the", "Zoë", "violin", "organ", **lists)

    def asked(text):
        turns = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return whole.removeprefix("<s>")

    assert (edit.text, edit.separator) == (asked("Zoë plays the"), "")
    assert (edit.paraphrases, edit.neighborhood) == ((asked("Zoë masters the"),), (asked("Léon {x} plays the"),))
    assert edit.locality == ((asked("Who?"), "Léon"),)
    assert edit == Edit.from_chat(
        SimpleNamespace(tokenizer=tokenizer), " Zoë plays the ", "Zoë", "violin", "organ", **lists
    )
    prompt = encode_prompt(tokenizer, "{}", edit.prompt, edit.subject)
    assert list(prompt.ids) == encode(tokenizer, edit.text)
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    before = tokenizer.decode(prompt.ids[1 : prompt.lookup + 1])
    assert before.rstrip().endswith("Zoë")
    ids = target_ids(tokenizer, edit.text, "violin")
    assert ids == target_ids(tokenizer, edit.text, "violin", ""), "behind a template there is no joint"
    assert not tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")


def test_a_system_turn():
    tokenizer = tiny.any_text("llama-2")
    tokenizer.chat_template = TEMPLATES["plain"]
    edit = Edit.from_chat(tokenizer, "{} plays the", "Zoë", "violin", system="Be brief.")
    assert edit.text == "<|system|>\nBe brief.</s>\n<|user|>\nZoë plays the</s>\n<|a|>\n"


def test_what_no_template_can_do():
    tokenizer = tiny.any_text("llama-2")
    edit = Edit("{} plays the", "Zoë", "violin")
    refused(lambda: in_chat(edit, tokenizer), "no chat template", "instruct", "leave chat out")
    tokenizer.chat_template = TEMPLATES["own system text"]
    refused(lambda: Edit.from_chat(tokenizer, "{} plays the", "Ana", "violin"), "'Ana'", "twice")
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    refused(lambda: in_chat(edit, tokenizer, "Be brief."), "refuses", "no system turn", "system=")
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    refused(lambda: in_chat(edit, tokenizer), "does not show 'Zoë plays the' as it is")
    refused(lambda: Edit.from_chat(tokenizer, 5, "Zoë", "violin"), "'Zoë'", "prompt", "5")
