"""The guard: its false-alarm rate holds at every look, it sees a model that loses facts, and it acts."""

import json
import random
import warnings
from dataclasses import replace

import pytest
import tiny
import torch
from library import EDITS, SEQUENCE, assert_same_runs, assert_same_weights, holds, moments, parameters, refused

import kedit_lib as kedit
from kedit_lib.evaluation.health import PerplexityProbe, perplexity
from kedit_lib.evaluation.protocol import EditProbe
from kedit_lib.streams.guard import CollapseGuard, Collapsing, own_canaries

MODEL = "llama", torch.float32
FAST = {"layers": [1], "v_num_grad_steps": 2, "mom2_adjustment": False}
ROME = kedit.ROME(**FAST)
MEMIT = kedit.MEMIT(layers=[1], v_num_grad_steps=2, mom2_update_weight=500.0, use_history=True)


@pytest.fixture
def canaries(model):
    """What the random model says by itself behind some prompts, as if these were facts."""
    who = ("The judge", "A farmer", "The sea", "My friend")
    prompts = [f"{a} {b} is" for a in who for b in ("of", "near", "and", "or")]
    found = []
    for prompt in prompts:
        row = torch.tensor([model.tokenizer(prompt).input_ids])
        word = model.tokenizer.decode(model.hf(row).logits[0, -1].argmax()).strip()
        if word.isalpha():
            found.append((prompt, word))
    return found * 3


def looks(share_lost, n=40, times=60, seed=0):
    rng = random.Random(seed)
    return [(5 * i, sum(rng.random() < share_lost(i) for _ in range(n)), n) for i in range(times)]


def alarms_at(looks, norms=(), **settings):
    """The edit at which the alarm comes, over looks (edits, lost, asked) and ‖v₀‖ of each edit, as notebook 11 asks."""
    guard, looks = CollapseGuard([], **settings), {edits: counts for edits, *counts in looks}
    for edits in looks:
        if guard.due(edits, norms[:edits]) and guard.judge(edits, *looks[edits]).alarm:
            return edits
    return None


def test_false_alarms_are_as_rare_as_stated_over_all_looks():
    """600 sequences of 60 looks in which exactly the tolerated share is lost: at most alpha raise an alarm, ever."""
    false = sum(alarms_at(looks(lambda i: 0.1, seed=s), within=None) is not None for s in range(600))
    assert false / 600 <= 0.05


def test_a_collapse_is_seen_within_a_few_looks_and_a_slow_decline_before_half_is_lost():
    at = [alarms_at(looks(lambda i: 0.02 if i < 30 else 0.5, seed=s)) for s in range(50)]
    assert all(150 <= n <= 165 for n in at)
    at = [alarms_at(looks(lambda i: min(1.0, i / 60), seed=s)) for s in range(50)]
    assert all(n is not None and n / 5 / 60 < 0.5 for n in at)


def test_the_alarm_waits_until_half_will_soon_be_lost():
    """A tenth lost in 100 edits: evidence comes with a fifth lost, half will be lost at edit 500."""
    slow = [(i, round(0.001 * i * 200), 200) for i in range(0, 600, 10)]
    assert alarms_at(slow, within=None) < 250
    assert alarms_at(slow, within=85) == 420 and alarms_at(slow, within=45) == 460
    assert alarms_at([(i, 60, 200) for i in range(0, 600, 10)]) is None  # three tenths lost, and no more


def test_swollen_states_bring_looks_forward_and_need_evidence():
    """Of the last five edits three start from states that are 2.5 times as long as the first ones did."""
    norms = [20.0] * 10 + [60.0] * 10
    healthy, hurt, sudden = ([(e, 16 * (e >= from_), 40) for e in range(21)] for from_ in (99, 0, 11))
    assert alarms_at(healthy, norms) is None  # edits in other words
    assert alarms_at(hurt, norms) == 13 and alarms_at(hurt, [20.0, 22.0] * 10) is None  # two fifths lost, and no more
    assert alarms_at(sudden, norms) == 13 and alarms_at(sudden, norms, swelling=None) == 15
    guard = CollapseGuard([])
    guard.due(20, norms)
    assert ", growth of ‖v₀‖ 3" in str(guard.judge(20, 20, 40)) and "growth of ‖v₀‖ 3" in str(guard) and guard.alarm
    assert CollapseGuard([]).identity[0]["rule"] == 2  # no stored sequence of the earlier rule is taken for one of this


def test_edits_left_of_few_looks():
    guard = CollapseGuard([])
    guard.judge(0, 5, 40)
    assert guard.edits_left() == float("inf")
    guard.judge(10, 15, 40)
    assert guard.edits_left() == pytest.approx(5)
    guard.judge(20, 5, 40)
    assert guard.edits_left() == float("inf")
    guard.judge(21, 40, 40)
    assert guard.edits_left() == 0


def test_the_mixture_is_the_sum_over_all_starts():
    guard, ratios = CollapseGuard([], looks_at=10), []
    for look, lost in enumerate([0, 3, 6, 2], 1):
        ratios.append((0.2 / 0.1) ** lost * (0.8 / 0.9) ** (10 - lost))
        e_value = 10 ** guard.judge(look, lost, 10).evidence
        by_hand = sum(torch.tensor(ratios[j - 1 :]).double().prod().item() / (j * (j + 1)) for j in range(1, look + 1))
        assert e_value == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "given",
    [{"tolerated": 0.4}, {"alpha": 0}, {"action": "hope"}, {"every": 0}, {"within": 0}, {"swelling": 1}]
    + [{"tolerated": "a"}, {"noticed": None}, {"alpha": "x"}, {"action": 5}, {"every": "5"}, {"every": None}]
    + [{"looks_at": 2.5}, {"within": "a"}, {"swelling": "big"}, {"foretold": 0}, {"foretold": "soon"}]
    + [{"probes": 5}, {"probes": [5]}, {"seed": None}, {"seed": "x"}],
    ids=str,
)
def test_bad_settings_are_one_line(given):
    """Which names the setting and its value."""
    ((name, value),) = given.items()
    refused(lambda: CollapseGuard([], **given), f"guard: {name} = {value!r}; ")


def test_canaries_as_json_has_them_are_those_of_python(model, canaries):
    """Lists for tuples: the same guard, for stored streams too."""
    plain, read = CollapseGuard(canaries), CollapseGuard(json.loads(json.dumps(canaries)))
    assert read.identity == plain.identity == CollapseGuard(iter(canaries)).identity
    assert read.start(model) == plain.start(model) >= 10
    edits = [kedit.Edit.from_text(prompt, prompt.split()[1], "new", word) for prompt, word in canaries]
    assert CollapseGuard(edits).identity[1] == list(map(repr, edits))  # as streams stored it
    assert CollapseGuard(edits).start(model) == plain.start(model)


@pytest.mark.parametrize(
    "wrong",
    ["text", 5, ("a",), ("a", "b", "c"), ["a", 5], [None, "b"], ["a", None], ["a", " "], {"prompt": "a", "answer": "b"}]
    + [("a", "\udc80")],
    ids=repr,
)
def test_what_is_no_canary_is_one_line(wrong):
    refused(lambda: CollapseGuard([("a", "b"), wrong]), f"guard: canary {wrong!r}"[:60], "(prompt, answer) pairs")
    refused(lambda: CollapseGuard(wrong if isinstance(wrong, (str, int)) else [wrong]), "guard: canary", "pairs")


@pytest.mark.parametrize("wrong", [5, "stop", True, {"action": "stop"}, [("a", "b")], CollapseGuard], ids=repr)
def test_what_is_no_guard_is_one_line(model, wrong):
    before = {name: w.clone() for name, w in parameters(model).items()}
    options = {"contexts": ["{}"], "progress": False, "guard": wrong}
    refused(lambda: kedit.run_stream(model, EDITS, kedit.ROME(**FAST), **options), "guard is of type", "CollapseGuard")
    assert holds(model, before)


def test_any_transformers_model_can_be_checked(model, canaries):
    guard = CollapseGuard(canaries, looks_at=20)
    first = guard.check(model.hf, tokenizer=model.tokenizer)
    assert (first.right, first.alarm, first.edits) == (first.asked, False, 0)
    with torch.no_grad():
        model.hf.get_parameter(model.weight_name(1)).add_(torch.randn(model.weight(1).shape) * 10)
    with pytest.warns(Collapsing, match="known facts still right after 1 edits"):
        assert guard.check(model.hf, tokenizer=model.tokenizer).alarm
    refused(lambda: CollapseGuard(canaries).check(model.hf), "tokenizer")


def test_facts_that_the_model_does_not_know_are_no_canaries(model, canaries):
    wrong = [(prompt, "xylophone") for prompt, _ in canaries]
    known = CollapseGuard(canaries).start(model)
    assert 10 <= known == CollapseGuard(canaries + wrong).start(model)
    refused(lambda: CollapseGuard(wrong).start(model), "knows 0 of")


def ruined(monkeypatch, method, edit, killed_at=None):
    """One edit ruins the model; another stops the program, the first time that it is made."""
    apply, killed = type(method).apply_prepared, []

    def ruinous(self, call):
        if call.edits[0] is killed_at and not killed:
            killed.append(killed_at)
            raise RuntimeError("killed")
        outcome = apply(self, call)
        if call.edits[0] is edit:
            noise = torch.randn(call.model.weight(1).shape, generator=torch.Generator().manual_seed(0))
            call.model.add({call.model.weight_name(1): noise * 10})
        return outcome

    monkeypatch.setattr(type(method), "apply_prepared", ruinous)


@pytest.fixture
def guarded(model, canaries):
    """A stream under a guard that looks after every edit."""

    def run(guard, method, edits=EDITS, **options):
        guard = CollapseGuard(canaries, every=1, looks_at=20, action=guard) if isinstance(guard, str) else guard
        options = {"contexts": ["{}"], "probes": [], "progress": False, "moments": moments(), **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Collapsing)
            return kedit.run_stream(model, edits, method, guard=guard, **options), guard

    return run


@pytest.mark.parametrize("action, made", [("warn", len(EDITS)), ("stop", 3), ("roll back", 2), ("batch", len(EDITS))])
def test_what_is_done_at_the_alarm(model, guarded, monkeypatch, action, made):
    before = {name: w.clone() for name, w in parameters(model).items()}
    method = MEMIT if action == "batch" else ROME
    ruined(monkeypatch, method, EDITS[2])
    run, guard = guarded(action, method)
    assert [r.alarm for r in guard.readings][:4] == [False, False, False, True]
    assert len(run.edits) == made
    if action == "batch":
        assert run.edits.batch.tolist() == [1, 1] + [len(EDITS) - 2] * (len(EDITS) - 2)
    assert holds(model, before)


@pytest.mark.parametrize("method", [ROME, kedit.GRACE(layers=[1]), kedit.SimIE(MEMIT), kedit.SPHERE(base=ROME)])
def test_edits_made_in_turn_are_no_batch(guarded, method):
    refused(lambda: guarded("batch", method), f"{method.name} makes its edits one after another", "MEMIT")


@pytest.mark.parametrize("action, method", [("roll back", ROME), ("batch", MEMIT)])
def test_a_guarded_stream_that_is_killed_in_doubt(guarded, monkeypatch, tmp_path, action, method):
    """Ruined by edit 4, killed in edit 6, and the alarm comes after it: back to the three edits before the doubts."""
    monkeypatch.setattr(CollapseGuard, "edits_left", lambda guard: 100 * (guard.readings[-1].edits < 6))
    options = {"edits": SEQUENCE[:9], "dense_every": 1, "checkpoint_every": 1}
    runs = []
    for name, killed_at in (("whole", None), ("killed", SEQUENCE[5])):
        with monkeypatch.context() as patch:
            ruined(patch, method, SEQUENCE[3], killed_at)
            if killed_at:
                with pytest.raises(RuntimeError, match="killed"):
                    guarded(action, method, **options, store=tmp_path / name)
            runs.append(guarded(action, method, **options, store=tmp_path / name))
    (whole, guard), (resumed, again) = runs
    assert len(whole.edits) == (3 if action == "roll back" else 9)
    assert whole.edits.batch.tolist() == [1, 1, 1] + [6] * (len(whole.edits) - 3)
    assert_same_runs(whole, resumed)
    assert_same_weights(whole.final_weights(), resumed.final_weights())
    assert guard.readings == again.readings and len(guard.readings) == 7


def test_rolled_back_to_the_unedited_model(guarded, monkeypatch, tmp_path):
    ruined(monkeypatch, ROME, EDITS[0])
    run, _ = guarded("roll back", ROME, store=tmp_path)
    assert len(run.edits) == 0 and run.final_weights() == {}


def test_what_a_look_tells_beside_the_test(guarded, model, canaries):
    """Earlier edits asked again and the perplexity of plain text, the readings else as without."""
    texts = ("The sea is near the judge.",)
    probes = [EditProbe(), PerplexityProbe(texts)]
    plain, asked = (CollapseGuard(canaries, every=1, looks_at=20, probes=p, foretold=180) for p in ([], probes))
    for guard in (plain, asked):
        guarded(guard, ROME)
    first, *later = [r.told for r in asked.readings]
    assert first == {"perplexity on plain text": perplexity(model, list(texts))}
    assert all(one.keys() > {"accuracy on edits", "probability on latest edits", *first} for one in later)
    assert later[0]["perplexity on plain text"] != first["perplexity on plain text"]
    assert [replace(r, told={}) for r in asked.readings] == plain.readings
    assert ", accuracy on edits " in str(asked.readings[-1]) and "after 180 as foretold (6 looks" in str(plain)
    assert plain.identity == CollapseGuard(canaries, every=1, looks_at=20).identity
    assert asked.identity == [*plain.identity, [probe.identity for probe in probes]]


def test_a_guard_begins_anew_with_each_stream(guarded, monkeypatch):
    """After an alarm, and with another model's canaries."""
    with monkeypatch.context() as patch:
        ruined(patch, ROME, EDITS[2])
        _, guard = guarded("stop", ROME)
    known, guard._known = guard._known, []
    run, _ = guarded(guard, ROME)
    assert not guard.alarm and len(run.edits) == len(EDITS)
    assert guard._known == known and [r.edits for r in guard.readings] == list(range(len(EDITS) + 1))


def test_a_finished_stream_gives_its_guard_back_whole(guarded, model, canaries, tmp_path):
    """The next look asks what the unedited model knew, and adds to the evidence."""
    _, first = guarded("warn", ROME, store=tmp_path)
    _, again = guarded("warn", ROME, store=tmp_path)
    assert again.state() == first.state() and len(again._known) >= 10
    assert again.check(model) == first.check(model)


def test_a_model_supplies_canaries_of_its_own():
    """Words that it is sure of in text that it writes: so it says them again when it is asked."""
    model = kedit.load_model("lab-small")
    found = own_canaries(model.hf, model.tokenizer, 12, 0)
    assert len(set(found)) == 12 and found == own_canaries(model.hf, model.tokenizer, 12, 0)
    assert CollapseGuard(found).start(model) >= 10


def test_words_that_llama_2_would_say_next():
    """Its tokenizer decodes a single token without the space in front of it."""
    tokenizer = tiny.any_text("llama-2")
    found = own_canaries(tiny.model("llama", len(tokenizer)).float(), tokenizer, 8, 0)
    assert len(found) == 8 and all(word.isalpha() for _, word in found)


def test_a_look_sees_what_retrieval_puts_before_a_prompt(model, canaries):
    guard, method = CollapseGuard(canaries), kedit.Retrieval()
    edits = [kedit.Edit.from_text(prompt, prompt.split()[1], "new", word) for prompt, word in {*canaries}]
    before, _ = guard.check(model), method.apply(model, edits, history=method.new_history(model))
    with pytest.warns(Collapsing):
        assert guard.check(model).right < before.right == before.asked
