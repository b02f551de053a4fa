"""What another text for C costs: nothing where it is the same text, and as computed by hand where it is another."""

import pytest
import torch
from moments_choice import choice_cost

import kedit_lib as kedit
from kedit_lib.lab.world import texts, world_of


@pytest.mark.slow
def test_the_same_text_costs_nothing_and_another_what_it_does(tmp_path):
    model = kedit.load_model("lab-small")
    documents, edits = texts(world_of(model), 1200), kedit.load_edits("lab", model=model, limit=1)
    corpora = {"one": documents[:600], "again": documents[:600], "other": documents[600:]}
    methods = [kedit.method_for(model, name) for name in ("memit", "rome")]
    table = choice_cost(model, corpora, edits, methods, tokens=5000)
    same, other = table[table.text == "again"], table[table.text == "other"]
    assert same[same.quantity != "size of Δ"].value.abs().max() < 1e-5
    assert same[same.quantity == "size of Δ"].value.tolist() == pytest.approx([1.0] * len(methods), rel=1e-5)
    (layer,) = methods[0].layers
    c = [kedit.SecondMoments.estimate(model, corpora[t], [layer], tokens=5000).tensors[layer] for t in ("one", "other")]
    expected = torch.linalg.norm(c[1] - c[0]) / torch.linalg.norm(c[0])
    assert other[other.quantity == "error of C"].value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (other[other.quantity == "error of Δ"].value > 1e-3).all()
    assert not model.edited
