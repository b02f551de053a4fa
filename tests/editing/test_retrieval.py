"""Retrieval in the prompt: no weight changes, and every question is reminded."""

import pytest
import torch
from library import EDITS, holds, probability, snapshot

import kedit_lib as kedit
from kedit_lib.editing.retrieval import reminded
from kedit_lib.models.tokenization import encode

MODEL = "llama", torch.float32


def says(model, text: str) -> str:
    return model.tokenizer.decode(encode(model.tokenizer, text), skip_special_tokens=True)


def test_questions_are_reminded_and_no_weight_changes(model):
    before, edit, unrelated = snapshot(model), EDITS[0], "The sea is"
    outcome = kedit.method_for(model, "retrieval").apply(model, [edit])
    assert edit.target_new in says(model, edit.text) and says(model, edit.text).endswith(edit.text)
    assert says(model, unrelated) == unrelated
    assert outcome.deltas == {} and holds(model, before)
    assert outcome.targets[0].probabilities[-1] == pytest.approx(probability(model, [edit]).item(), rel=1e-5)
    model.restore()
    assert says(model, edit.text) == edit.text
    assert outcome.targets[0].probabilities[0] == pytest.approx(probability(model, [edit]).item(), rel=1e-5)


def test_the_nearest_sentence():
    memory = [
        ("The mother tongue of  is", "Ana Bell", "old", 0.0),
        ("The mother tongue of  is", "Ana Bell", "new", 0.0),
        (" works as a", "Ana Bell", "work", 0.0),
        ("The mother tongue of  is", "Ana", "other", 0.6),
    ]
    assert reminded(memory, "The mother tongue of Ana Bell is") == "new The mother tongue of Ana Bell is"
    assert reminded(memory, "Ana Bell works as") == "work Ana Bell works as"
    assert (
        reminded(memory, "The mother tongue of Ana Bells is") == "other The mother tongue of Ana Bells is"
    )  # "Ana" alone stands there
    assert reminded(memory, "Ana laughs") == "Ana laughs"  # too few words of the prompt
    assert reminded(memory, "The mother tongue of Bob is") == "The mother tongue of Bob is"


def test_a_sequence_is_measured_as_any_other(model, tmp_path):
    options = {"probes": None, "progress": False, "checkpoint_every": 2, "dense_every": 2}
    run = kedit.run_stream(model, EDITS[:4], kedit.Retrieval(), store=tmp_path, **options)
    p = run.curve("probability", "edits")
    with model.temporarily():
        kedit.Retrieval().apply(model, EDITS[:4])
        assert p[4] == pytest.approx(probability(model, EDITS[:4]).mean().item(), rel=1e-4)
    assert model.memory == {}  # the model comes back as it was
