"""Cosines between edits: by hand, and on the small lab model, where the spread must not depend on who asks."""

import pytest
import torch

import kedit_lib as kedit
from kedit_lib.analysis import directions


def test_cosines_in_a_metric_by_hand():
    """x₀ = (1, 0), x₁ = (1, 1), metric diag(1, 3): ⟨x₀, x₁⟩ = 1, ‖x₀‖² = 1, ‖x₁‖² = 4."""
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = directions._cosines(x, x * torch.tensor([1.0, 3.0]))
    assert found == pytest.approx(torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    assert directions._upper(found).tolist() == [0.5]


def test_opposed_and_alike_are_counted():
    said = directions._said(torch.tensor([-0.9, -0.2, 0.1, 0.5, 0.6], dtype=torch.float64))
    assert (said[directions.OPPOSED], said[directions.ALIKE]) == (0.2, 0.4)
    assert said["median"] == pytest.approx(0.1) and said["mean"] == pytest.approx(0.02)


def test_edits_of_a_stream():
    bench = kedit.Bench("smoke", progress=False)
    before = bench.model.weight(0).clone()
    table = directions.directions(bench, "memit", n=3)
    assert torch.equal(bench.model.weight(0), before)
    method, given = bench.method("memit"), {"moments": bench.moments}
    layer, deltas, keys = method.layers[0], [], []
    for edit in bench.edits(0, 3):
        outcome = method.apply(bench.model, [edit], contexts=bench.contexts(method), **given)
        bench.model.restore()
        deltas.append(outcome.deltas[bench.model.weight_name(layer)].flatten().double())
        keys.append(outcome.targets[0].key_per_layer[layer].double())
    k, c = torch.stack(keys), torch.linalg.inv(bench.moments.tensors[layer].double())
    (a, b, _), row = deltas, table.set_index(["layer", "of", "pairs"])
    between = [(k[i] @ c @ k[j] / ((k[i] @ c @ k[i]) * (k[j] @ c @ k[j])).sqrt()).item() for i, j in ((0, 1), (1, 2))]
    assert row.loc[(layer, "keys, C⁻¹", "successive"), "mean"] == pytest.approx(sum(between) / 2, abs=1e-4)
    first = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    low, high = row.loc[(layer, "updates", "successive"), ["5 %", "95 %"]]
    assert low - 0.06 <= first <= high + 0.06
    assert "of all pairs of updates are opposed" in directions.sentence(table)
