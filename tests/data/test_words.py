"""Writing systems: the joint between a prompt and its answer, and words where there are no spaces."""

import pytest

from kedit_lib.data.words import full_stop, joint, spaceless, words

JOINTS = {  # more scripts: test_tokenization.py
    "a word": ("The year is", "1945", " "),
    "a question": ("Where is it?", "Graz", " "),
    "behind a space": ("The year is ", "1945", ""),
    "behind a line end": ("Q: who?\nA:\n", "Ana", ""),
    "behind an opening quote": ('He said "', "yes", ""),
    "behind a closing quote": ('The year of "Alien"', "1979", " "),
    "behind an apostrophe": ("The town of the students'", "Graz", " "),
    "behind an opening single quote": ("He said '", "yes", ""),
    "behind a German closing quote": ("Das Lied „Hallo“", "ist", " "),
    "behind a German opening quote": ("Er sagt „", "ja", ""),
    "behind a French quote": ("Il dit «", "oui", ""),
    "behind an opening mark": ("¿", "Quién", ""),
    "behind an opening bracket": ("The town (", "Graz", ""),
    "behind a closing bracket": ("The town (Graz)", "is", " "),
    "Latin, then Chinese": ("The capital of Japan is", "东京", ""),
    "behind a Chinese colon": ("答案：", "Graz", ""),
    "behind a Chinese quote": ("他说“", "好", ""),
    "behind a mark and a closing quote": ('He said "Go!"', "and", " "),
    "signs elsewhere in the prompt": ("東京 is what we call", "Tokyo", " "),
    "a sign before the last letter": ("The station 東A", "is", " "),
    "a sign behind the first letter": ("The station is", "A東", " "),
    "behind an emoji": ("I like 🍕", "more", " "),
    "an empty prompt": ("", "Graz", ""),
}


@pytest.mark.parametrize("prompt, answer, between", JOINTS.values(), ids=JOINTS)
def test_the_joint_follows_from_the_text(prompt, answer, between):
    assert joint(prompt, answer) == between
    assert joint(prompt, answer, "") == ""
    assert joint(prompt, answer, " ") == " "


def test_words_of_a_script_without_spaces_are_its_signs():
    assert words("Ana's boat, 1945!") == ["Ana", "'", "s", "boat", ",", "1945", "!"]
    assert words("我爱Graz，真的。") == ["我", "爱", "Graz", "，", "真", "的", "。"]
    assert words("\u3000") == words("") == []
    assert words("서울은 크다") == ["서울은", "크다"]
    assert spaceless("die Stadt 東京") and not spaceless("서울 Ä 12 …")


def test_a_full_stop_of_the_text_s_own():
    ends = {"Graz": ". ", "서울": ". ", "东京 Graz": ". ", "东A": ". ", "东京": "。", "กรุงเทพ东": "。"}
    ends |= {"กรุงเทพ": " ", "东กรุงเทพ": " "}
    assert {text: full_stop(text) for text in ends} == ends
