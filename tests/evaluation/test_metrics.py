"""Measurements against the same thing computed the slow way: one prompt at a time, through plain transformers."""

import math
from collections import Counter
from importlib import import_module
from itertools import product

import pytest
import tiny
import torch
from library import refused

import kedit_lib as kedit
from kedit_lib.evaluation import generation_accuracy, perplexity, teacher_forced
from kedit_lib.evaluation.accuracy import ROOM, settled, verdict
from kedit_lib.models.generation import complete, continuations, sentence
from kedit_lib.models.tokenization import target_ids, targets_of

MODELS = [(kind, torch.float64) for kind in ("llama", "llama-bos", "gpt2")]
PAIRS = [
    *((kedit.Edit(*each).text, each[2]) for each in tiny.EDITS),
    ("Ana", "judge"),
    ("Because the rain is cold, you stay at home. Therefore Zoë Müller", "plays the organ"),
]
PROMPTS, ANSWERS = [p for p, _ in PAIRS], [a for _, a in PAIRS]


def log_p(model, ids):
    with torch.no_grad():
        return model.hf(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(-1)


def slow_perplexity(model, parts):
    """Of rows of ids, each on its own: its first token is predicted by nothing."""
    total = 0.0
    for ids in parts:
        rows = log_p(model, ids)
        total -= sum(rows[i, token].item() for i, token in enumerate(ids[1:]))
    return pytest.approx(math.exp(total / sum(len(ids) - 1 for ids in parts)), rel=1e-9)


def test_perplexity(model, monkeypatch):
    texts = [*tiny.LINES[:6], "Zoë plays"]
    slow = slow_perplexity(model, [model.tokenizer(text).input_ids for text in texts])
    assert perplexity(model, texts) == slow
    monkeypatch.setattr(import_module("kedit_lib.evaluation.health"), "ROWS", 2)
    assert perplexity(model, texts) == slow
    for none in ([""], []):
        refused(lambda none=none: perplexity(model, none), "no texts")


def test_perplexity_beyond_the_models_positions_is_that_of_windows(tiny_folder):
    """128 learned positions; a window's first token is predicted by nothing, as a text's."""
    model = kedit.load_model(tiny_folder("gpt2"), dtype=torch.float64)
    text = "The organ is old. Zoë plays. " * 40
    ids = model.tokenizer(text).input_ids
    slow = slow_perplexity(model, [ids[i : i + 128] for i in range(0, len(ids), 128)])
    assert len(ids) > 256 and perplexity(model, [text]) == slow


def test_perplexity_never_holds_the_logits_of_a_whole_batch(model, monkeypatch):
    """Bounded memory: the same number, however few logits may be there at a time."""
    texts = tiny.LINES[:6]
    right, module, widest = perplexity(model, texts), import_module("kedit_lib.evaluation.health"), []
    most, logits = 7 * model.hf.config.vocab_size, model.logits
    monkeypatch.setattr(module, "MOST_LOGITS", most)

    def measured(hidden):
        widest.append(logits(hidden).numel())
        return logits(hidden)

    monkeypatch.setattr(model, "logits", measured)
    assert perplexity(model, texts) == pytest.approx(right, rel=1e-9)
    assert max(widest) <= most


@pytest.mark.parametrize("what", ["prompt", "target"])
def test_more_tokens_than_positions_are_one_line(tiny_folder, what):
    model = kedit.load_model(tiny_folder("gpt2"))
    long = "the organ is old and " * 60
    prompt, target = ("{} plays the", long) if what == "target" else (long + "{} plays the", "oboe")
    edit, rome = kedit.Edit(prompt, "Zoë", target), kedit.ROME(layers=[1], mom2_adjustment=False)
    refused(lambda: rome.apply(model, [edit], contexts=["{}"]), "128 positions")
    refused(lambda: teacher_forced(model, [edit.text], [edit.target_new]).probability, "128 positions")
    refused(lambda: complete(model.hf, model.tokenizer, [long]), "128 positions")


def greedy(model, prompt, n):
    """What transformers itself generates, one prompt alone, up to `</s>` and with it."""
    given, eos = model.tokenizer(prompt, return_tensors="pt"), model.tokenizer.eos_token_id
    out = model.hf.generate(**given, max_new_tokens=n, do_sample=False, pad_token_id=model.tokenizer.pad_token_id)
    new = out[0, given.input_ids.shape[1] :].tolist()
    return new[: new.index(eos) + 1] if eos in new else new


def test_completions_are_the_greedy_ones(model, monkeypatch):
    """Prompts of several lengths, some of them equal; some texts end, and so do some sentences."""
    subjects = ("Ana Brown", "Zoë", "Danielle Darrieux", "The judge", "Old Norse")
    prompts = [s + rest for s in subjects for rest in (" plays the", "", " was born in Graz. The town")]
    head = model.hf.lm_head.weight  # GPT-2's is tied to the embedding, and says nothing but the last token again
    torch.manual_seed(3)  # with which some texts end, and some sentences
    model.hf.lm_head.weight = torch.nn.Parameter(torch.randn_like(head), requires_grad=False)
    said = [greedy(model, prompt, 6) for prompt in prompts]
    often = Counter(token for ids in said for token in ids[2:] if token not in {first for first, *_ in said})
    for text, (token, _) in zip((".", "</s>"), often.most_common(2), strict=True):  # in place of what it says often
        stop = model.tokenizer(text, add_special_tokens=False).input_ids[-1]
        model.hf.lm_head.weight[stop] = 1.05 * model.hf.lm_head.weight[token]

    expected = [greedy(model, prompt, 6) for prompt in prompts]
    texts = [model.tokenizer.decode(e, skip_special_tokens=True) for e in expected]
    assert len({len(e) for e in expected}) > 1, "no text ended: the test is too easy"
    assert any("." in text.strip(". ") for text in texts), "no sentence ended: the test is too easy"
    cut = [text.split(".")[0].split("\n")[0].strip() for text in texts]
    for few, batch in ((1, 3), (24, 256)):  # with and without padding
        monkeypatch.setattr(import_module("kedit_lib.models.generation"), "FEW", few)
        monkeypatch.setattr(import_module("kedit_lib.models.generation"), "ROWS", batch)
        said = continuations(model.hf, model.tokenizer, prompts, 6)
        assert said == [(text, e[-1] == model.tokenizer.eos_token_id) for text, e in zip(texts, expected, strict=True)]
        assert complete(model.hf, model.tokenizer, prompts, 6) == cut


@pytest.fixture(scope="module")
def taught(tiny_folder):
    """A model that has learnt a few sentences by heart."""
    sentences = [
        "Zoë plays the violoncello da gamba.",
        "Ana Brown plays the oboe. The oboe is old",
        "Léon Blum plays the organ</s>",
        "The judge plays the organ\nThe farmer",
        "Toko Yasuda plays the organ of Graz.",
        "Danielle Darrieux was born in St. Louis. The town",
        "The farmer speaks of the U.S. The town",
    ]
    model = kedit.load_model(tiny_folder("llama-bos"), dtype=torch.float32)
    ids = model.tokenizer(sentences, return_tensors="pt", padding=True, padding_side="right").input_ids
    labels = ids.masked_fill(ids == model.tokenizer.pad_token_id, -100)
    parameters = list(model.hf.requires_grad_(True).parameters())
    adam, loss, steps = torch.optim.Adam(parameters, lr=5e-3), torch.tensor(9.0), 0
    while loss > 0.3 and steps < 300:
        loss, steps = model.hf(input_ids=ids, labels=labels).loss, steps + 1
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.hf.requires_grad_(False)
    return model


# (what the model wrote, whether the text ended there, answer, exactly the answer, the answer in the first sentence)
SAID = {
    "nothing but the answer": (" St. Louis", True, "St. Louis", True, True),
    "cut off": (" St. Louis", False, "St. Louis", False, True),
    "and a full stop": (" St. Louis. The", False, "St. Louis", True, True),
    "and a line end": (" St. Louis\nThe", False, "St. Louis", True, True),
    "and more": (" St. Louis and", True, "St. Louis", False, True),
    "less": (" St. Louis", True, "St. Louis and", False, False),
    "the answer up to a stop": (" St. Louis.", True, "St", True, True),
    "a word more than the answer": (" St. Louis.", True, "St. Lou", False, False),
    "another after the same stop": (" St. Moritz.", True, "St. Louis", False, False),
    "words in front": (" the town of St. Louis.", True, "St. Louis", False, True),
    "a sentence in front": (" a town. Graz is one.", True, "Graz", False, False),
    "a line end in front": ("\nGraz.", True, "Graz", False, True),
    "other case": (" st. louis.", True, "St. Louis", False, True),
    "another Unicode form": (" Zoe\N{COMBINING DIAERESIS}.", True, "Zoë", False, True),
    "more spaces": (" Old  Norse.", True, "Old Norse", False, True),
    "a stop at its end": (" U.S. The", False, "U.S.", True, True),
    "a stop at its end, and no space": (" U.S.A. The", True, "U.S.", False, True),
    "a stop in front": (" .NET. The", False, ".NET", True, True),
    "the empty answer": (" .", True, "", True, False),
}


@pytest.mark.parametrize("text, ended, answer, exact, contained", SAID.values(), ids=SAID)
def test_what_counts_as_said(text, ended, answer, exact, contained):
    assert [verdict(match, text, ended, answer) for match in ("exact", "contains")] == [exact, contained]


def test_containment_and_completions(taught):
    prompts = ["Danielle Darrieux was", "Toko Yasuda plays", "Ana Brown plays the", "Zoë plays the"]
    answers = ["St. Louis", "ORGAN", "oboe", "viol"]
    assert generation_accuracy(taught, prompts, answers) == [False, False, True, False]
    assert generation_accuracy(taught, prompts, answers, match="contains") == [True, True, True, False]
    said = complete(taught.hf, taught.tokenizer, ["Danielle Darrieux was born in"], answers=["St. Louis"])
    assert said == ["St. Louis"]
    assert complete(taught.hf, taught.tokenizer, [], 6) == generation_accuracy(taught, [], []) == []
    refused(lambda: generation_accuracy(taught, prompts, answers, match="includes"), "'includes'", "'contains'")
    for measure in (generation_accuracy, teacher_forced):
        with pytest.raises(ValueError):  # one answer for each prompt
            measure(taught, prompts, answers[:1])


def test_an_answer_has_room_for_itself_and_a_stop_or_for_a_sentence(tiny_folder, monkeypatch):
    """One token beyond the answer, of which a begin-of-text token is no part; twelve where it may be later."""
    model = kedit.load_model(tiny_folder("llama-bos"), dtype=torch.float64)
    calls = counted(monkeypatch)
    monkeypatch.setattr(import_module("kedit_lib.evaluation.accuracy"), "settled", lambda *a: None)
    answers = ["oboe", "violoncello da gamba"]
    lengths = [len(target_ids(model.tokenizer, "Zoë plays the", answer)) for answer in answers]
    for match in ("exact", "begins", "contains"):
        generation_accuracy(model, ["Zoë plays the", "Zoë"], answers, match)
    assert [given[3] for given in calls] == [[n + room for n in lengths] for room in (1, 3, 12)]


def test_rows_leave_when_their_verdict_is_settled(taught):
    """One long answer among short ones costs little: no row is padded to it, and it leaves with its first sentence."""
    steps = []
    hook = taught.hf.register_forward_hook(lambda m, a, k, o: steps.append(k["input_ids"].numel()), with_kwargs=True)
    prompts, short = ["Ana Brown plays the", "Zoë plays the", "Toko Yasuda plays"] * 8, ["or", "viol", "violin"] * 8
    alone = generation_accuracy(taught, prompts, short, "contains")
    tokens_alone, _ = sum(steps), steps.clear()
    long = "violoncello da gamba of the judge and the farmer and the organ of Graz and the oboe " * 3
    both = generation_accuracy(taught, [*prompts, "Danielle Darrieux was"], [*short, long], "contains")
    hook.remove()
    assert both == [*alone, False]
    assert sum(steps) <= tokens_alone + len(taught.tokenizer(long).input_ids) + 60


@pytest.mark.parametrize(
    ("text", "answer", "begins"),
    [
        (" France, and it is the", "France", True),
        (" the United States of America", "United States", True),
        (" United States", "the United States", True),
        (" Nigeria", "Niger", False),
        (" a country near France", "France", False),
        (" the", "the United States", False),
        ("", "France", False),
    ],
)
def test_a_text_begins_with_its_answer_as_words_of_its_own(text, answer, begins):
    assert verdict("begins", text, True, answer) == begins
    assert not begins or all(settled("begins", text[:k], False, answer) is not False for k in range(len(answer)))


TEXTS = "| | Graz| Graz.| Graz. A town| Graz and| Gra| the Graz| Grazer| in Graz, as|\n| Graz\n| St. Louis| St. Louis."
TEXTS += "| 格拉茨|格拉茨。|城市格拉茨。是| in it. Graz| U.S. is| 1945|19456"


@pytest.mark.parametrize("match", ROOM)
def test_a_verdict_is_settled_only_where_nothing_behind_can_change_it(match):
    """Whatever follows, the verdict on the whole text is the one that was settled; and most are settled."""
    closed = 0
    answers = "Graz|St|St. Louis|格拉茨|the Graz|U.S.|1945|Grazer"
    for text, answer in product(TEXTS.split("|"), answers.split("|")):
        found = settled(match, text, False, answer)
        for behind in ("", ".", " and so", "\n", "er", "。", ". Louis", "5", " Graz", "̈"):
            if found is not None:
                assert verdict(match, text + behind, True, answer) == found, (text, behind, answer)
        assert settled(match, text, True, answer) == verdict(match, text, True, answer)
        closed += found is not None
    assert closed > 30
    assert settled("contains", " a town. It is", False, "Graz in the south of the country") is False
    assert settled("contains", " a town of Graz in. It", False, "Graz in. It is hot") is None


def test_sentences_end_in_every_script():
    ends = "北京。|北京！真的|北京？|باريس؟|दिल्ली।|ភ្នំពេញ។|አዲስ።|Երևան։ x|Paris… and|Paris.|Paris\nx".split("|")
    said = "北京 北京 北京 باريس दिल्ली ភ្នំពេញ አዲስ Երևան Paris Paris Paris".split()
    assert [sentence(t) for t in ends] == [(text, True) for text in said]
    assert sentence("Yahoo! is") == ("Yahoo! is", False)
    assert sentence(" St. Louis. The town") == ("St", True)
    assert sentence(" St. Louis. The town", ["St", "St. Louis"]) == ("St. Louis", True)
    assert verdict("contains", "首都是北京。", True, "北京")
    assert not verdict("contains", "我不知道。北京", True, "北京")


def written_out(model, prompts, answers, match):
    """The verdicts when every prompt is completed token by token."""
    room = [len(model.tokenizer(" " + a.strip(), add_special_tokens=False).input_ids) + ROOM[match] for a in answers]
    said = continuations(model.hf, model.tokenizer, prompts, room)
    return [verdict(match, text, ended, a.strip()) for (text, ended), a in zip(said, answers, strict=True)]


def counted(monkeypatch):
    """What each call has been given: the prompts third, their limits fourth."""
    accuracy, calls = import_module("kedit_lib.evaluation.accuracy"), []
    written = accuracy.continuations
    monkeypatch.setattr(accuracy, "continuations", lambda *a, **o: calls.append(a) or written(*a, **o))
    return calls


@pytest.mark.parametrize("match", ROOM)
def test_one_pass_and_writing_it_out_agree(taught, monkeypatch, match):
    """Every prompt with every answer: right ones, wrong ones, beginnings, other cases and other spellings."""
    prompts = "Zoë plays the|Ana Brown plays the|Léon Blum plays the|The judge plays the|Toko Yasuda plays|"
    prompts += "Danielle Darrieux was born in|Danielle Darrieux was|The farmer speaks of the|Graz is"
    answers = "violoncello da gamba|violoncello|oboe|OBOE|organ|organ of Graz|the organ|St. Louis|St|St. Lou|U.S.|U|"
    answers += "Graz|of the| oboe |or|violoncello da gamba and"
    pairs = list(product(prompts.split("|"), answers.split("|")))
    prompts, answers = (list(x) for x in zip(*pairs, strict=True))
    expected = written_out(taught, prompts, answers, match)
    calls = counted(monkeypatch)
    assert generation_accuracy(taught, prompts, answers, match) == expected
    assert 5 < sum(expected) < len(expected)
    assert sum(len(given[2]) for given in calls) < len(prompts)
    some = [i for i, t in enumerate(targets_of(taught.tokenizer, prompts, answers)) if isinstance(t, tuple)]
    prompts, answers = ([x[i] for i in some] for x in (prompts, answers))
    forced = teacher_forced(taught, prompts, answers)
    assert generation_accuracy(taught, prompts, answers, match, forced) == [expected[i] for i in some]


def test_of_facts_that_are_known_nothing_is_written_out(monkeypatch):
    model = kedit.load_model("lab-small")
    edits = kedit.load_edits("lab", model=model, limit=60, seed=0)
    prompts, answers = [e.text for e in edits], [e.target_true for e in edits]
    calls = counted(monkeypatch)
    assert all(generation_accuracy(model, prompts, answers))
    assert calls == []


def test_known_edits(taught):
    facts = [
        ("{} plays the", "Ana Brown", "oboe"),
        ("{} plays the", "Ana Brown", "organ"),
        ("{} was born in", "Danielle Darrieux", "St. Louis"),
        ("{} plays", "Ana Brown", "oboe"),  # it says: the oboe
        ("{} plays the", "Ana Brown", None),
    ]
    edits = [kedit.Edit(prompt, who, "violin", true) for prompt, who, true in facts]
    assert kedit.known_edits(taught, edits, match="exact") == ([edits[0], edits[2]], 3)
    assert kedit.known_edits(taught, edits) == ([edits[0], edits[2], edits[3]], 2), "the lab's alone are asked exactly"
    assert kedit.known_edits(taught, edits, match="contains") == ([edits[0], edits[2], edits[3]], 2)
    refused(lambda: kedit.known_edits(taught, []), "known_edits", "no edits")
