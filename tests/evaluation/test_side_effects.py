"""Each metric against cases worked out by hand, or against the same thing computed the slow way."""

import math
from importlib import import_module

import pytest
import tiny
import torch
from library import holds, snapshot

import kedit_lib as kedit
from kedit_lib import evaluation as metrics
from kedit_lib.evaluation import Forced, Question
from kedit_lib.evaluation.teacher_forcing import compared
from kedit_lib.models.tokenization import encode, target_ids

MODELS = [(kind, torch.float64) for kind in ("llama", "llama-bos", "gpt2")]
EDITS = [
    kedit.Edit(p, s, t, target_true="German", neighborhood=[p.replace("{}", "Ana Blum")]) for p, s, t in tiny.EDITS
]
PROMPTS = [e.text for e in EDITS]
ANSWERS = [e.target_new for e in EDITS]


def forced(log_p, right=None, said=None):
    n = len(log_p)
    right = torch.tensor(right if right is not None else [1.0] * n, dtype=torch.float64)
    said = tuple(said or [(0,)] * n)
    return Forced(torch.tensor(log_p, dtype=torch.float64), right, said, said)


def close(values, expected):
    assert [float(v) for v in values] == pytest.approx([float(e) for e in expected], rel=1e-12, nan_ok=True)


def logits(model, ids):
    with torch.no_grad():
        return model.hf(input_ids=torch.tensor([list(ids)])).logits[0]


def own_words(model, prompt, n):
    """n tokens that the model says greedily and can be written after the prompt; None where they cannot."""
    ids = encode(model.tokenizer, prompt)
    for _ in range(n):
        ids = [*ids, int(logits(model, ids)[-1].argmax())]
    text = model.tokenizer.decode(ids[-n:]).strip()
    try:
        return text if target_ids(model.tokenizer, prompt, text) == tuple(ids[-n:]) else None
    except kedit.KeditError:
        return None


def test_teacher_forcing_token_by_token(model, monkeypatch):
    monkeypatch.setattr(import_module("kedit_lib.models.hooks"), "ROWS", 4)
    pairs = list(zip(PROMPTS, ANSWERS, strict=True))
    pairs += [(p, w) for p in PROMPTS for n in (1, 2) if (w := own_words(model, p, n))]
    found = metrics.teacher_forced(model, *map(list, zip(*pairs, strict=True)))
    for i, (prompt, answer) in enumerate(pairs):
        before, after = encode(model.tokenizer, prompt), target_ids(model.tokenizer, prompt, answer)
        rows = logits(model, [*before, *after])[len(before) - 1 :]
        *said, behind = rows.argmax(-1).tolist()
        said, rows = tuple(said), rows[:-1]
        each = [rows.log_softmax(-1)[j, t].item() for j, t in enumerate(after)]
        assert found.said[i] == said
        agreed = next((j for j, (a, b) in enumerate(zip(said, after, strict=True)) if a != b), len(after))
        assert found.begun[i] == (*said, behind)[: agreed + 1]
        assert found.tokens_right[i].item() == sum(a == b for a, b in zip(said, after, strict=True)) / len(after)
        assert found.log_probability[i].item() == pytest.approx(sum(each) / len(each), rel=1e-9)
        assert found.probability[i].item() == pytest.approx(math.exp(sum(each) / len(each)), rel=1e-9)
    some = found.at([2, 0])
    assert some.said == (found.said[2], found.said[0])
    assert some.begun == (found.begun[2], found.begun[0])
    close(some.log_probability, [found.log_probability[2], found.log_probability[0]])


def test_token_and_strict_accuracy():
    found = forced([-1.0] * 4, right=[1.0, 2 / 3, 0.0, 1.0])
    close(found.tokens_right, [1, 2 / 3, 0, 1])
    close(metrics.strict_accuracy(found), [1, 0, 0, 1])


def test_agreement_with_the_unedited_model():
    now, before = [(1, 2, 3, 4), (5,), (6, 7), (8, 9)], [(1, 2, 3, 9), (5,), (9, 7), (8, 0)]
    assert metrics.agreement(now, before) == [3 / 4, 1, 1 / 2, 1 / 2]
    for given in (before[:1], [(1, 2, 3), *before[1:]]):
        with pytest.raises(ValueError):
            metrics.agreement(now, given)


SAYS = {  # what the model of these tests says
    "Zoë was born in": "Graz",
    "Zoë was born in Graz. The city of Graz lies in": "Austria",
    "Léon was born in": "Bordeaux",
    "Léon was born in Bordeaux. The city of Bordeaux lies in": "Spain",
    "Léon was born in Graz. The city of Graz lies in": "Austria",
    "He was born in": "Graz",
}
HOP = "The city of {} lies in"


@pytest.fixture
def speaker(monkeypatch, model):
    module = import_module("kedit_lib.evaluation.side_effects")

    def right(model, prompts, answers, match):
        return [SAYS.get(p) == a for p, a in zip(prompts, answers, strict=True)]

    monkeypatch.setattr(module, "complete", lambda hf, tokenizer, prompts: [SAYS.get(p, "") for p in prompts])
    monkeypatch.setattr(module, "generation_accuracy", right)
    return model


def test_portability_follows_the_models_own_bridge(speaker):
    questions = [
        Question("hop", "Zoë was born in", "Austria", HOP),
        Question("pronoun", "He was born in", "Graz"),
        Question("hop", "Léon was born in", "France", HOP),  # it goes on from what it said
        Question("hop", "Léon was born in", "Austria", HOP),  # Graz would lie there, but it said Bordeaux
        Question("hop", "Léon was born in", "Bordeaux", HOP),
    ]
    assert metrics.portability(speaker, questions) == [True, True, False, False, False]
    assert metrics.portability(speaker, []) == []


def test_a_question_counts_if_every_gate_is_passed(speaker):
    known, unknown = ("Zoë was born in", "Graz"), ("Zoë was born in", "Bordeaux")
    gates = [(known,), (unknown,), (known, unknown), (unknown, known), (), (known, ("He was born in", "Graz"))]
    asked = [Question("k", "p", "a", gate=g) for g in gates]
    assert metrics.answerable(speaker, asked) == [True, False, False, False, True, True]


def test_two_answers_are_compared_in_one_pass(model):
    first, second = (["The organ is played by", "Ana plays the"], ["Zoë", "organ"]), (["The oboe is"], ["old"])
    second = (second[0] * 2, second[1] * 2)
    for found, given in zip(compared(model, first, second), (first, second), strict=True):
        close(found.log_probability, metrics.teacher_forced(model, *given).log_probability)


CHINESE = "春天来了，花园里的花都开了。孩子们在树下唱歌，老人坐在长椅上看书。远处的山上还有雪，河里的冰已经化了。"


def test_fluency_in_scripts_without_spaces():
    """Every sign is a word: varied text comes near the most that its length allows, one sign again and again to 0."""
    n = len(CHINESE)
    most = (2 / 3 * math.log2(n - 1) + 4 / 3 * math.log2(n - 2)) / 2
    assert 0.95 * most < metrics.fluency(CHINESE) <= most
    assert metrics.fluency("东京" * 30) == pytest.approx(1, abs=0.01)  # two 2-grams and two 3-grams: 1 bit each
    assert metrics.fluency("京" * 30) == 0
    assert metrics.fluency("北京是中国的首都") == metrics.fluency("a b c d e f g h")
    assert metrics.fluency("กรุงเทพเป็นเมืองหลวงของประเทศไทย") > 4


@pytest.mark.parametrize("text", ["", " \n", "Graz", "Graz."])
def test_fluency_of_a_text_without_three_words_is_not_a_number(text):
    with pytest.warns(UserWarning, match="^fluency: .* has [012] words, and three are needed$"):
        assert math.isnan(metrics.fluency(text))


def test_consistency_in_scripts_without_spaces():
    corpus = ["他是一位钢琴家，常常演奏巴赫。", "她是一位画家，画山和水。", "他是医生，在医院工作。"]
    idf = metrics.idf_of(corpus)
    pianist = ["他演奏钢琴，是有名的钢琴家。"]
    like = [metrics.consistency(text, pianist, idf) for text in corpus]
    assert like[0] > 0.45 > 2 * max(like[1:])
    assert metrics.consistency(pianist[0], pianist, idf) == pytest.approx(1)
    for text, references, what in (("…", pianist, "the text"), (corpus[0], ["?"], "the references")):
        with pytest.warns(UserWarning, match=f"consistency: {what} .* has no word"):
            assert math.isnan(metrics.consistency(text, references, idf))


def test_a_distracting_sentence_is_written_as_its_script_is():
    edit = kedit.Edit("{}的首都是", "中国", "东京")
    assert metrics.distracted(edit, "日本的首都是") == "中国的首都是东京。日本的首都是"
    edit = kedit.Edit("The capital of {} is", "China", "Tokyo")
    assert metrics.distracted(edit, "It is") == "The capital of China is Tokyo. It is"


def sampled_slowly(model, prompt, draws, top_k):
    """One prompt alone, the whole text through the model at each step."""
    ids = encode(model.tokenizer, prompt)
    start = len(ids)
    for u in draws.tolist():
        best, token = logits(model, ids)[-1].topk(top_k)
        below, chosen = 0.0, 0
        for i, p in enumerate(best.softmax(-1).tolist()):
            below += p
            chosen = i
            if u <= below:
                break
        ids = [*ids, int(token[chosen])]
    return model.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_sampled_texts_are_those_of_each_prompt_alone(model):
    prompts = ["Zoë", "Danielle Darrieux was born in Graz. The town", "Ana Brown", "Old English and", "Léon Blum"]
    draws = torch.rand(5, 12, generator=torch.Generator().manual_seed(7))
    expected = [sampled_slowly(model, p, u, 5) for p, u in zip(prompts, draws, strict=True)]
    assert metrics.sampled_texts(model, prompts, 12, seed=7) == expected
    assert metrics.sampled_texts(model, prompts, 12, seed=8) != expected
    assert metrics.sampled_texts(model, prompts[:2], 12, seed=7) == expected[:2]
    greedy = [sampled_slowly(model, p, u, 1) for p, u in zip(prompts, draws, strict=True)]
    assert metrics.sampled_texts(model, prompts, 12, top_k=1) == greedy != expected


def test_tf_idf_and_its_cosine():
    found = metrics.idf_of(["The cat", "the cat sat", "a DOG sat sat"])
    idf = {"the": math.log(4 / 3) + 1, "cat": math.log(4 / 3) + 1, "sat": math.log(4 / 3) + 1, "dog": math.log(2) + 1}
    assert found == pytest.approx(idf)  # "a" is too short, a text counts once
    norm = math.hypot(2 * idf["dog"], idf["sat"])
    found = metrics.tf_idf("Dog sat dog bird", idf)
    assert found == pytest.approx({"dog": 2 * idf["dog"] / norm, "sat": idf["sat"] / norm})
    assert metrics.tf_idf("bird", idf) == {}
    assert metrics.consistency("dog dog", ["a dog", "Dog!"], idf) == pytest.approx(1)
    assert metrics.consistency("dog", ["the cat"], idf) == 0
    assert metrics.consistency("bird", ["the cat"], idf) == 0
    both = metrics.consistency("Dog sat dog", ["sat", "the"], idf)
    assert both == pytest.approx(idf["sat"] / norm * math.sqrt(0.5))


def test_health_of_the_weights(model):
    layer, (rows, columns) = 2, model.weight(2).shape
    q, r = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (rows, columns))
    sigma = torch.linspace(0.5, 8, min(rows, columns), dtype=torch.float64)
    original = model.weight(layer).detach().clone()
    target = q[:, : len(sigma)] * sigma @ r[: len(sigma)]
    model.add({model.weight_name(layer): target - original})
    found = metrics.weight_health(model, layer)
    assert found["weight norm"] == pytest.approx(sigma.square().sum().sqrt().item())
    assert found["largest singular"] == pytest.approx(8)
    assert found["condition number"] == pytest.approx(16)
    assert found["weight drift"] == pytest.approx(((target - original).norm() / original.norm()).item())
    assert metrics.weight_health(model, 1)["weight drift"] == 0
    assert torch.allclose(model.drift(layer), target - original)
    assert not model.drift(1).any() and model.drift(1).shape == model.weight(1).shape


def test_hidden_states_without_the_first_token(model):
    texts = ["Zoë plays the organ.", "The town is a port.", "Because the rain is cold, you stay at home.", "Therefore"]
    before = snapshot(model)

    def slowly():
        states = {1: [], 3: []}
        for text in texts:
            ids = torch.tensor([encode(model.tokenizer, text)])
            with torch.no_grad():
                found = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
            for layer, rows in states.items():
                rows += list(found[layer + 1][0, 1:])
        return {layer: torch.stack(rows) for layer, rows in states.items()}

    h0, slow0 = metrics.hidden_states(model, texts, [3, 1]), slowly()
    model.add({model.weight_name(2): torch.ones_like(model.weight(2)) / 10})
    h, slow = metrics.hidden_states(model, texts, [3, 1]), slowly()
    for layer in (1, 3):
        assert h[layer].shape == slow[layer].shape
        found = metrics.hidden_health(h[layer], h0[layer])
        assert found["hidden norm"] == pytest.approx(slow[layer].norm(dim=-1).mean().item())
        moved = (slow[layer] - slow0[layer]).norm(dim=-1) / slow0[layer].norm(dim=-1)
        assert found["hidden drift"] == pytest.approx(moved.mean().item(), abs=1e-12)
    assert found["hidden drift"] > 0
    model.restore()
    assert holds(model, before)


def test_cosine_of_updates():
    a, b = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    assert metrics.cosine(a, b) == pytest.approx((9 - 16) / 25)
    assert metrics.cosine(a, 2 * a) == pytest.approx(1)
    assert math.isnan(metrics.cosine(a, 0 * a))


def test_success_magnitude_and_score():
    wanted, other = forced([-1.0, -2.0, -3.0, math.nan]), forced([-2.0, -2.0, -1.0, -1.0])
    close(metrics.success(wanted, other), [1, 0, 0, 0])  # a tie and NaN are no success
    expected = [math.exp(-1) - math.exp(-2), 0, math.exp(-3) - math.exp(-1), math.nan]
    close(metrics.magnitude(wanted, other), expected)
    assert metrics.score(0.8, 0.5, 0.25) == pytest.approx(3 / (1.25 + 2 + 4))  # the harmonic mean
    assert metrics.score(0, 1, 1) == metrics.score(1, 0, 1) == metrics.score(1, 1, 0) == 0


def test_n_gram_entropy_and_fluency():
    """Fluency weighs bigrams by 2/3 and trigrams by 4/3."""
    h3 = -(2 / 3) * math.log2(2 / 3) - math.log2(1 / 3) / 3
    assert metrics.n_gram_entropy("ababa", 2) == pytest.approx(1)  # ab ba ab ba
    assert metrics.n_gram_entropy("ababa", 3) == pytest.approx(h3)
    assert metrics.n_gram_entropy("aaaaa", 2) == metrics.n_gram_entropy("a", 2) == metrics.n_gram_entropy("", 3) == 0
    assert metrics.fluency("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * h3) / 2)
    assert metrics.fluency("the, the, the") == pytest.approx(metrics.fluency("a b a b a"))  # a mark is a word
    hundred = " ".join(f"w{i}" for i in range(100))
    assert metrics.fluency(hundred) == pytest.approx((2 / 3 * math.log2(99) + 4 / 3 * math.log2(98)) / 2)
