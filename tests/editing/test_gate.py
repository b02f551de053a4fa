"""Gate: no weight changes, δ is added exactly where a token's key is near an entry's, and entries come and go with
snapshots and histories."""

import pytest
import torch
from library import EDITS, SEQUENCE, holds, probability, refused, snapshot
from torch.nn.functional import normalize

import kedit_lib as kedit
from kedit_lib.editing.compute_k import context_mean, keys_at
from kedit_lib.models.hooks import trace
from kedit_lib.models.tokenization import encode

MODEL = "llama", torch.float32
METHOD = kedit.Gate(layers=[2], v_num_grad_steps=20, threshold=0.98)
KIND = "Gate at layer 2"  # in model.memory


def output(model, text):
    """(x, y) at every token: what the map that leaves the MLP of layer 2 reads and gives."""
    module = model.mlp_out(2)
    read, given = trace(model.hf, torch.tensor([encode(model.tokenizer, text)]), [module], [module])
    return read[module][0], given[module][0]


def test_it_adds_delta_where_the_key_is_near_and_nowhere_else(model):
    before, texts = snapshot(model), [*(e.text for e in EDITS), "The town is a port.", "Old English words"]
    plain = [output(model, text) for text in texts]
    outcome = METHOD.apply(model, EDITS[:1], contexts=["{}"])
    assert outcome.deltas == {} and holds(model, before)
    (target,) = outcome.targets
    hits = []
    for text, (x, y) in zip(texts, plain, strict=True):
        near = normalize(x, dim=-1) @ target.key_per_layer[2] >= METHOD.threshold
        torch.testing.assert_close(output(model, text)[1], y + near[:, None] * target.delta)
        hits.append(near.sum().item())
    assert hits[0] == 1 and sum(hits[1:]) < len(torch.cat([x for x, _ in plain[1:]])) / 2


def test_the_probability_that_is_reported_is_the_edited_models(model):
    """The clean prompt is the only context: the optimisation and the edited model then see the same δ."""
    for edit in EDITS:
        (target,) = METHOD.apply(model, [edit], contexts=["{}"]).targets
        assert probability(model, [edit]).item() == pytest.approx(target.probabilities[-1], rel=1e-4)
        assert target.probabilities[-1] > target.probabilities[0]


def test_the_key_is_memits_mean_over_contexts(model):
    contexts = ["{}", "The rain is cold. {}"]
    call = METHOD.prepare(model, EDITS[:2], contexts=contexts)
    mean = context_mean(keys_at(model, call.prompts, [2])[2], 2, grouped=True)
    METHOD.apply(model, EDITS[:2], contexts=contexts)
    torch.testing.assert_close(model.memory[KIND][0], normalize(mean, dim=-1))


def test_another_fact_of_a_subject_goes_on_top_of_the_first(model):
    first, again = EDITS[0], kedit.Edit(EDITS[0].prompt, EDITS[0].subject, EDITS[1].target_new)
    (one,), (two,) = (METHOD.apply(model, [e]).targets for e in (first, again))
    keys, _, values, _ = model.memory[KIND]
    assert len(keys) == 1
    torch.testing.assert_close(values[0], one.delta + two.delta)
    assert probability(model, [again]) > probability(model, [first])


def test_edits_above_an_entry_are_optimised_with_it(model):
    """A gate in an upper layer is a hook, which the written-out layers would not see."""
    METHOD.apply(model, EDITS[:1], contexts=["{}"])
    said = probability(model, EDITS[:1]).item()
    engine = kedit.Gate(layers=[1], v_num_grad_steps=1).apply(model, EDITS[:1], contexts=["{}"])
    assert engine.targets[0].probabilities[0] == pytest.approx(said, rel=1e-4)


def test_given_targets_and_what_is_refused(model):
    (target,) = METHOD.apply(model, EDITS[:1]).targets
    model.restore()
    METHOD.apply(model, EDITS[:1], targets=[target.z])
    torch.testing.assert_close(model.memory[KIND][2][0], target.delta)
    refused(lambda: kedit.SimIE(base=METHOD), "base = 'Gate'", "writes")
    refused(lambda: kedit.Gate(layers=[1]).recall(model, METHOD.new_history(model)), KIND, "new_history")
    assert kedit.method_for("Llama-2-7b-hf", "stream") == kedit.method_for("Llama-2-7b-hf", "gate")


@pytest.mark.filterwarnings("ignore")
def test_every_edits_prompt_gets_its_delta_on_top_of_what_answered_before(model):
    """Whichever entries there are, and however far the mean key of an edit's contexts is from its prompt's own."""
    method = kedit.Gate(layers=[2], v_num_grad_steps=2, threshold=0.8)
    history, contexts = method.new_history(model), ["{}", "The rain is cold. {}", "Old {}"]
    for e in SEQUENCE[:20]:
        at = method.prepare(model, [e], contexts=contexts).clean[0].lookup
        before = output(model, e.text)[1][at]
        (target,) = method.apply(model, [e], contexts=contexts, history=history).targets
        torch.testing.assert_close(output(model, e.text)[1][at], before + target.delta)
    assert 1 < len(model.memory[KIND][0]) < 20


def test_a_subject_that_begins_a_text_has_an_entry_there_and_one_for_other_texts(model):
    """Without a token in front, such as BOS, its key is another one there, and near to that of other first tokens."""
    edit, contexts = kedit.Edit("{} is a town", "Old", "English"), ["{}", "The rain is cold. {}"]
    assert METHOD.prepare(model, [edit], contexts=contexts).clean[0].lookup == 0
    texts = ["Old is a town", "The rain is cold. Old", "The town is a port.", "Ana Brown"]
    plain = [output(model, text)[1] for text in texts]
    (target,) = METHOD.apply(model, [edit], contexts=contexts).targets
    assert model.memory[KIND].reaches.tolist() == pytest.approx([1, METHOD.threshold], abs=2e-3)
    answered = [(output(model, text)[1] - y).norm(dim=-1) > 0 for text, y in zip(texts, plain, strict=True)]
    assert answered[0][0] and answered[1][-1] and not answered[2].any() and not answered[3].any()
    (again,) = METHOD.apply(model, [edit], contexts=contexts).targets
    torch.testing.assert_close(model.memory[KIND].values, torch.stack([target.delta + again.delta] * 2))
