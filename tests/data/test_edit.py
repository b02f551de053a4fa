"""An edit: its subject's places, its braces, its form in stored results; and edits of chat models in their template."""

import warnings
from types import SimpleNamespace

import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st
from library import refused

from kedit_lib.data.edit import Edit, around_places, escaped, fill, in_chat, warn_of_contradictions
from kedit_lib.data.words import places, why_elsewhere
from kedit_lib.models.tokenization import encode, encode_prompt, target_ids

ACCENT = "\N{COMBINING DIAERESIS}"
PLACES = {
    "at the start": ("Ana plays", "Ana", [0]),
    "in the middle, of two words": ("Was Ana Brown born?", "Ana Brown", [4]),
    "with a genitive": ("Ana's boat, and Ana", "Ana", [0, 16]),
    "inside a word": ("Banana, Anab, banAna", "Ana", []),
    "a number inside a longer one": ("U 93 and U 9", "U 9", [9]),
    "of another case": ("ana ANA", "Ana", []),
    "without its accent": (f"Zoe{ACCENT} plays", "Zoe", []),
    "over itself": ("la la la", "la la", [0, 3]),
    "with a full stop": ("Is tronc, Inc. there?", "tronc, Inc.", [3]),
    "of signs alone": ("a+b", "+", [1]),
    "in a script without spaces": ("東京都は", "東京", [0]),
    "in a script without capitals": ("والقاهرة", "القاهرة", [1]),
    "the empty name": ("Ana", "", []),
}


@pytest.mark.parametrize("text, name, starts", PLACES.values(), ids=PLACES)
def test_places(text, name, starts):
    assert places(text, name) == starts


@pytest.mark.parametrize(
    "text, name, says",
    [
        ("Banana is", "Ana", "other case"),
        ("BanAna is", "Ana", "inside a longer word"),
        ("Zoe plays", "Zoë", "accents"),
        (f"Zoe{ACCENT} plays", "Zoë", "Unicode form"),
        ("Zoë plays", "Ana", ""),
        ("Ana plays", "Ana", ""),
    ],
)
def test_why_a_name_has_no_place(text, name, says):
    assert (says in why_elsewhere(text, name)) if says else why_elsewhere(text, name) == ""


@pytest.mark.parametrize("prompt", ["In Banana land, {} plays the", "{}land is called"])
def test_a_subject_inside_other_words_is_no_second_mention(prompt):
    edit = Edit(prompt, "Ana", "violin")
    text, start, end = fill("I read. {}", prompt, "Ana")
    assert (text, text[start:end]) == (f"I read. {edit.text}", "Ana")
    assert start == len("I read. ") + prompt.index("{}")


TEXTS = {
    "inside another word first": ("In Banana land, Ana plays the", "Ana", "In Banana land, {} plays the"),
    "with spaces around it": ("Was Ana born in", " Ana ", "Was {} born in"),
    "between braces": ("The set {Ana} is", "Ana", "The set {{{}}} is"),
    "beside empty braces": ("In {} Ana writes", "Ana", "In {{}} {} writes"),
    "itself with braces": ("Is {x} a set?", "{x}", "Is {} a set?"),
    "itself empty braces": ("Is {} a set?", "{}", "Is {} a set?"),
    "beside a backslash": (r"Is \1 Ana?", "Ana", r"Is \1 {}?"),
}


@pytest.mark.parametrize("text, subject, prompt", TEXTS.values(), ids=TEXTS)
def test_a_subject_in_the_text(text, subject, prompt):
    edit = Edit.from_text(text, subject, "violin")
    assert (edit.prompt, edit.subject, edit.text) == (prompt, subject.strip(), text)
    filled, start, end = fill("{}", edit.prompt, edit.subject)
    assert (filled, filled[start:end]) == (text, edit.subject)


def test_a_subject_not_in_the_text_or_twice_in_the_prompt():
    refused(lambda: Edit.from_text("Banana is", "anan", "a fruit"), "'anan'", "0 times", "longer word")
    refused(lambda: Edit.from_text("zoë plays the", "Zoë", "violin"), "'Zoë'", "0 times", "other case")
    refused(lambda: Edit.from_text("Ana and Ana play", "Ana", "violin"), "2 times", "exactly once")
    refused(lambda: Edit.from_text(None, "Ana", "violin"), "prompt", "None")
    refused(lambda: Edit.from_text("Ana plays", 7, "violin"), "subject", "7")
    for prompt in ("Ana and {} play the", "{}, Ana's friend, plays", "Ana, {}"):
        refused(lambda prompt=prompt: Edit(prompt, "Ana", "violin"), "'Ana'", "twice")


def test_braces_of_a_prompt():
    assert around_places("{} plays") == ["", " plays"]
    assert around_places("a {x} of {}") == ["a {x} of ", ""]  # braces by themselves
    assert around_places("{{x}} of {{}} and {{{}}}") == ["{x} of {} and {", "}"]
    refused(lambda: Edit("{{}} plays", "Ana", "violin"), "0 places")


@given(st.text("{}a ", max_size=12))
def test_escaped_braces_are_shown_as_they_are(text):
    assert around_places(escaped(text)) == [text]
    assert around_places(f"{escaped(text)}{{}}{escaped(text)}") == [text, text]


@given(st.text(max_size=20), st.text(min_size=1, max_size=8), st.text(max_size=20))
def test_the_subject_is_cut_out_where_it_stands(before, subject, after):
    text = before + subject + after
    assume(subject == subject.strip() and places(text, subject) == [len(before)])
    edit = Edit.from_text(text, subject, "violin")
    assert (edit.text, edit.subject) == (text, subject)
    assert fill("{}", edit.prompt, subject) == (text, len(before), len(before) + len(subject))


def test_stored_results_know_an_edit_by_how_it_is_written():
    """Their keys hash this text, which therefore shows fields that came later only where they are given."""
    edit = Edit("{} plays the", "Zoë", "violin", "organ", ["Zoë's instrument is the"], id="0-1")
    assert repr(edit) == (
        "Edit(prompt='{} plays the', subject='Zoë', target_new='violin', target_true='organ', "
        "paraphrases=(\"Zoë's instrument is the\",), neighborhood=(), generation_prompts=(), relation='', id='0-1')"
    )
    more = Edit("{} plays the", "Zoë", "violin", locality=[["Graz is in", " Austria"]])
    assert repr(more).endswith("id='', locality=(('Graz is in', 'Austria'),))")
    assert eval(repr(more)) == more


PAIRS = [[("Graz is in", "")], [(" ", "Austria")], [("Graz",)], ["Graz"], "Graz", [(1, "2")], None, {"a": "b"}]


def test_pairs_and_a_true_object_are_given_whole_or_left_out():
    for name in ("portability", "locality"):
        for pairs in PAIRS:
            given = {name: pairs}
            refused(lambda given=given: Edit("{} plays", "Zoë", "violin", **given), "'Zoë'", name)
    refused(lambda: Edit("{} plays", "Zoë", "violin", " "), "'Zoë'", "target_true is empty", "leave it out")


def test_a_separator_is_one_of_three_and_known_by_stored_results_only_where_given():
    plain = Edit("{} is in the year", "Zoë", "1945")
    assert plain.separator is None
    assert "separator" not in repr(plain)
    for value in ("", " "):
        edit = Edit("{} is in the year", "Zoë", "1945", separator=value)
        assert repr(edit) == f"{repr(plain)[:-1]}, separator={value!r})"
        assert eval(repr(edit)) == edit
    for value in ("\n", "  ", 1, False):
        refused(lambda value=value: Edit("{} is", "Zoë", "1945", separator=value), "'Zoë'", "separator", repr(value))


def test_doubtful_and_contradicting_edits_are_warned_of():
    edits = [Edit("{} plays the", who, new) for who, new in (("Ana", "oboe"), ("Zoë", "oboe"), ("Ana", "organ"))]
    with pytest.warns(UserWarning, match="'Zoë': the prompt '{} plays the ' ends in a space"):
        Edit("{} plays the ", "Zoë", "violin")
    with pytest.warns(UserWarning, match="Zoë.*target_new equals target_true.*'violin'"):
        Edit("{} plays the", "Zoë", "violin", target_true=" violin")
    with pytest.warns(UserWarning, match="^1 prompts .* 'Ana plays the' 'oboe' and 'organ'; keep one"):
        warn_of_contradictions(edits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Edit("{} plays the ", "Zoë", "violin", separator="")  # it is meant
        Edit("{} plays the:\n", "Zoë", "violin")
        warn_of_contradictions([*edits[:2], edits[0]])


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
    model = SimpleNamespace(tokenizer=tokenizer)
    assert edit == Edit.from_chat(model, " Zoë plays the ", "Zoë", "violin", "organ", **lists)
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
