"""GRACE: no weight changes, a codebook answers what is near an edit, and it comes and goes with snapshots, as do the
entries of the other methods that change no weight."""

import pytest
import tiny
import torch
from library import FailsAt, assert_same_runs, holds, probability, refused, snapshot

import kedit_lib as kedit
from kedit_lib.editing.codebook import Codebook
from kedit_lib.editing.grace import placed
from kedit_lib.evaluation.protocol import EditProbe
from kedit_lib.models.generation import continuations, decode
from kedit_lib.models.hooks import trace
from kedit_lib.models.tokenization import encode

MODELS = [(kind, torch.float32) for kind in ("llama", "gpt2")]
# A value at one token can make the tiny models say one token.
EDITS = [
    kedit.Edit(p, s, t) for (p, s, _), t in zip(tiny.EDITS, ["English", "old", "French", "old", "French"], strict=True)
]
METHOD = kedit.GRACE(layers=[2], n_iter=20, eps=0.05)
KEY = "GRACE at layer 2"  # in model.memory
UNRELATED = ["The organ is", "Ana Brown was born in", "The town is a"]


def logits(model, text):
    return model.hf(torch.tensor([encode(model.tokenizer, text)])).logits


def key(model, text, layer=2):
    module = model.mlp_out(layer)
    return trace(model.hf, torch.tensor([encode(model.tokenizer, text)]), [module])[0][module][0, -1].double()


def test_the_target_is_said_and_all_else_stays_bit_for_bit(model):
    before, first = snapshot(model), probability(model, EDITS)
    plain = [logits(model, text) for text in UNRELATED]
    outcome = METHOD.apply(model, EDITS)
    assert outcome.deltas == {} and holds(model, before)
    assert all(torch.equal(logits(model, text), old) for text, old in zip(UNRELATED, plain, strict=True))
    found = [[t.probabilities[i] for t in outcome.targets] for i in (0, -1)]
    torch.testing.assert_close(torch.tensor(found[0]).double(), first, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found[1]).double(), probability(model, EDITS), rtol=1e-3, atol=1e-6)
    assert min(found[1]) > 0.9
    model.restore()
    torch.testing.assert_close(probability(model, EDITS), first, rtol=0, atol=0)


def test_it_answers_with_kept_keys_and_values_and_beside_other_prompts(model):
    """Alone, in a batch of all lengths (padded in front), token by token, and padded behind."""
    METHOD.apply(model, EDITS)
    target = [kedit.models.tokenization.target_ids(model.tokenizer, e.text, e.target_new) for e in EDITS]
    prompts, longest = [e.text for e in EDITS] + UNRELATED, max(map(len, target))
    together = continuations(model.hf, model.tokenizer, prompts, longest)
    alone = [continuations(model.hf, model.tokenizer, [p], longest)[0] for p in prompts]
    for i, text in enumerate(map(model.tokenizer.decode, target)):
        assert together[i][0].startswith(text) and alone[i][0].startswith(text)
    ids = encode(model.tokenizer, EDITS[0].text)
    in_front = []
    decode(model.hf, {0: ids, 1: ids + ids}, lambda x: in_front.append(x[:1]) or x[:, :1].long(), lambda *_: [])
    with torch.no_grad():
        behind = model.hf(torch.tensor([ids + [0] * 7])).logits[:, len(ids) - 1]
    for found in (behind, *in_front):
        torch.testing.assert_close(found, logits(model, EDITS[0].text)[:, -1], rtol=1e-4, atol=1e-4)


def test_an_entry_is_added_expanded_split_or_taken_over():
    one = Codebook(*(torch.tensor(x).double() for x in ([[10.0, 0.0]], [1.0], [[7.0]])), ((5,),))

    def place(x, target):
        book, i = placed(one, torch.tensor([x, 0.0]), target, 1.0)
        assert book.values[0] == 7.0 and book.keys[i, 0] == (x if i else 10.0)
        return i, book.reaches.tolist(), book.targets

    assert place(12.5, (5,)) == (1, [1.0, 1.0], ((5,), (5,)))  # beyond both radii
    assert place(11.5, (5,)) == (0, [1.5], ((5,),))
    assert place(10.5, (5,)) == (0, [1.0], ((5,),))
    assert place(11.5, (6,)) == (1, [0.75 - 1e-5, 0.75], ((5,), (6,)))
    assert place(10.0, (6,)) == (0, [1.0], ((6,),))


def test_edits_that_are_near_share_or_divide_the_space(model):
    """Of one target: a radius that holds both prompts. Of two: each keeps its own. Asked again: the newer target."""
    first, second = EDITS[4], kedit.Edit("Ana Brown plays with {}", "Léon Blum", "French")
    apart = torch.dist(key(model, first.text), key(model, second.text)).item()
    method = kedit.GRACE(layers=[2], n_iter=20, eps=0.6 * apart)
    history = method.new_history(model)
    for edit in (first, second):
        method.apply(model, [edit], history=history)
    assert model.memory[KEY].reaches.tolist() == pytest.approx([apart], rel=1e-4)
    assert probability(model, [second]) > 0.9
    model.restore()
    other = kedit.Edit(second.prompt, second.subject, "English")
    method.apply(model, [first])
    method.apply(model, [other])
    assert model.memory[KEY].reaches.tolist() == pytest.approx([apart / 2] * 2, rel=1e-3)
    assert probability(model, [first, other]).min() > 0.9
    method.apply(model, [second])
    assert len(model.memory[KEY].reaches) == 2 and probability(model, [first, second]).min() > 0.9


IN_NO_WEIGHT = {  # by what they are called in model.memory; how many entries stand there
    KEY: (METHOD, lambda book: len(book.targets)),
    "Gate at layer 2": (kedit.Gate(layers=[2], v_num_grad_steps=4, threshold=0.99), lambda book: len(book.keys)),
    "Retrieval": (kedit.Retrieval(), len),
}


@pytest.mark.parametrize("key", IN_NO_WEIGHT)
def test_what_is_in_no_weight_belongs_to_snapshots_and_to_the_history(model, tmp_path, key):
    method, count = IN_NO_WEIGHT[key]
    weights, history, plain = snapshot(model), method.new_history(model), probability(model, EDITS)
    method.apply(model, EDITS[:1], history=history)
    one, first = model.snapshot(), probability(model, EDITS)
    method.apply(model, EDITS[3:4], history=history)
    both = probability(model, EDITS)
    assert plain[0] != first[0] and first[3] != both[3]
    model.load_snapshot(one)
    assert torch.equal(probability(model, EDITS), first)
    with model.temporarily():
        assert torch.equal(probability(model, EDITS), plain)
    model.restore()
    assert model.memory == {} and torch.equal(probability(model, EDITS), plain)
    history.save(tmp_path / "history")
    method.recall(model, kedit.EditHistory.load(tmp_path / "history"))  # as a resumed sequence does
    assert torch.equal(probability(model, EDITS), both)
    model.restore()
    method.apply(model, EDITS[2:3], history=history)
    method.apply(model, EDITS[1:2])
    assert count(model.memory[key]) == 4 and holds(model, weights)
    if key != "Retrieval":
        other = type(method)(layers=[1])
        refused(lambda: other.apply(model, EDITS[:1], history=history), key, "new_history")
    refused(lambda: model.save_pretrained(tmp_path / "out"), key, "in no weight", "restore()")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", IN_NO_WEIGHT)
def test_a_resumed_sequence_has_the_same_numbers(model, tmp_path, key):
    def stream(name, at=None):
        options = {"progress": False, "checkpoint_every": 2, "dense_every": 2, "store": tmp_path / name}
        return kedit.run_stream(model, EDITS, IN_NO_WEIGHT[key][0], probes=[EditProbe(), FailsAt(at)], **options)

    with pytest.raises(RuntimeError, match="in the middle"):
        stream("cut", 4)
    assert_same_runs(stream("whole"), stream("cut"))
    assert model.memory == {}  # the model comes back as it was


def test_a_batch_is_made_one_edit_at_a_time(model):
    METHOD.apply(model, EDITS)
    batch = model.memory[KEY]
    model.restore()
    for edit in EDITS:
        METHOD.apply(model, [edit])
    one_by_one = model.memory[KEY]
    assert torch.equal(batch.values, one_by_one.values) and torch.equal(batch.reaches, one_by_one.reaches)


def test_two_baselines_in_one_model(model):
    METHOD.apply(model, EDITS[4:])
    kedit.Retrieval().apply(model, EDITS[:1])
    assert set(model.memory) == {KEY, "Retrieval"} and probability(model, EDITS[4:]) > 0.9
