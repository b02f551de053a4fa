"""Streams taken apart, and collapses foretold: identities that hold exactly, and what bends them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import kedit_lib as kedit
from kedit_lib.analysis import causes, forecast
from kedit_lib.analysis import decomposition as anatomy
from kedit_lib.analysis.decomposition import Anatomy
from kedit_lib.errors import KeditError
from kedit_lib.streams.named_streams import cause_streams, every_stream, groups_of
from kedit_lib.streams.runner import Run

N = 6
SMALL = {"n_edits": N, "n_single": 2, "batch_sizes": [1, N], "mass_sizes": [1, N]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return kedit.Bench("smoke", results=tmp_path_factory.mktemp("results"), progress=False, **SMALL)


@pytest.fixture(scope="module")
def found(bench):
    return anatomy.dissect(bench, "memit")


def replay(bench, edits):
    """W − W₀ in float64 after these edits, and the sum of the same edits made alone."""
    model, method = bench.model, bench.method("memit")
    (layer,), given = method.layers, {"moments": bench.moments, "contexts": bench.contexts(method)}
    alone = 0
    for edit in edits:
        alone = alone + method.apply(model, [edit], **given).deltas[model.weight_name(layer)].double()
        model.restore()
    for edit in edits:
        method.apply(model, [edit], **given)
    total = model.drift(layer).double()
    model.restore()
    return total, alone


@pytest.mark.slow
def test_shifts_are_those_of_the_weights(bench, found):
    """The shift of a stranger is ‖(W − W₀)k‖/‖W₀k‖, of the stream and of the sum of edits made alone."""
    from kedit_lib.editing.compute_k import keys_at
    from kedit_lib.models.tokenization import encode_prompt

    edits, (layer,) = bench.edits(0), bench.method("memit").layers
    facts = bench.facts.strangers(edits, anatomy.STRANGERS, 0)[:5]
    prompts = [encode_prompt(bench.model.tokenizer, "{}", p, s) for p, s, _ in facts]
    k = keys_at(bench.model, prompts, [layer])[layer].double()
    w0 = bench.model.weight(layer).detach().double()
    for superposed, drift in zip((False, True), replay(bench, edits), strict=True):
        rows = found.shifts.query("cohort == 'untouched' and edits_done == @N")
        rows = rows[rows.superposed == superposed]
        by_hand = (k @ drift.T).norm(dim=1) / (k @ w0.T).norm(dim=1)
        assert rows["shift"].to_numpy()[:5] == pytest.approx(by_hand.numpy(), rel=1e-4)


def test_nothing_is_left_in_the_model(bench, found):
    assert not bench.model.edited or all(
        torch.equal(bench.model.hf.get_parameter(name), w) for name, w in bench.model.edited.items()
    )


def test_an_edit_counts_from_the_next_one_on(found):
    last = found.shifts.query("cohort == 'edits' and edits_done == @N and not superposed").set_index("fact")
    assert last["shift"][N - 1] == 0 and last["shift"][0] > 0
    assert set(found.shifts.query("cohort == 'edits' and edits_done == 2").fact) == {0, 1}


def test_the_first_edit_answers_to_nobody(found):
    first, later = found.doses.iloc[0], found.doses.iloc[1:]
    assert first.own == pytest.approx(first.own_alone, rel=1e-6)
    assert (abs(later.own / later.own_alone - 1) > 1e-4).any()


def test_the_three_terms_are_the_whole(found):
    for at in (None, 2):
        part = anatomy.shares(found, at)
        assert part["spills"] + part["agreement"] + part["response"] == pytest.approx(1)
        assert part["growth"] + part["turning"] == pytest.approx(part["response"])
    assert anatomy.shares(found, 2) != anatomy.shares(found)


def test_kinds_of_kin_share_all_pairs_and_all_spills(bench, found):
    kin = causes.kinship_table({0: found}).groupby("by")
    assert kin["share of the pairs"].sum().tolist() == pytest.approx([1, 1])
    assert kin["share of the spills"].sum().tolist() == pytest.approx([1, 1])
    last = found.shifts.query("cohort == 'edits' and edits_done == @N and not superposed").set_index("fact").spills
    for _, rows in found.kin.groupby("by"):
        spills = rows.groupby("edit").spills.sum()
        assert (spills[1] > 0) == (last[0] > 0)
        assert rows.groupby("edit").later.sum().tolist() == [N - 1 - i for i in range(N - 1)]


def test_keys_are_sorted_by_their_cosine_in_the_metric():
    """By hand: C⁻¹ = diag(1, 4); cosines 1, 0.8, 0.05 and 0 of four keys with the first."""
    k = torch.tensor([[1.0, 0.0], [0.8, 0.3], [0.05, 0.5], [0.0, 0.5]], dtype=torch.float64)
    ck = k * torch.tensor([1.0, 4.0], dtype=torch.float64)
    found = anatomy._nearness(k, ck)
    cosines = (k @ ck.T) / ((k * ck).sum(1).sqrt()[:, None] * (k * ck).sum(1).sqrt())
    assert cosines[0].tolist() == pytest.approx([1.0, 0.8, 0.05 / (0.0025 + 1) ** 0.5, 0.0])
    kinds = {kind: mask[0].tolist() for (_, kind), mask in found.items()}
    assert kinds == {
        "above 0.3": [True, True, False, False],
        "0.1 to 0.3": [False] * 4,
        "0.03 to 0.1": [False, False, True, False],
        "below 0.03": [False, False, False, True],
    }


def test_who_undoes_whom_in_words():
    rows = [("keys", "above 0.3", 0.01, 0.4), ("keys", "below 0.03", 0.99, 0.6), ("names", "both", 0.0, 0.0)]
    rows += [("names", "neither", 1.0, 1.0)]
    table = pd.DataFrame(rows, columns=["by", "kin", "share of the pairs", "share of the spills"])
    table["times its share"] = table["share of the spills"] / table["share of the pairs"]
    said = causes.kinship_sentence(table)
    assert said.startswith(
        "By keys, pairs of *above 0.3* spill 40 times their share (1.0% of the pairs, 40% of the spills)"
    )
    assert "comes from *below 0.03* (60%)" in said


def hand_made(shift, foreseen, right) -> Anatomy:
    rows = [
        {"edits_done": 9, "superposed": sup, "cohort": "edits", "fact": i, "shift": s, "spills": s, "right": r}
        for sup, values in ((False, shift), (True, foreseen))
        for i, (s, r) in enumerate(zip([*values, 0.0], [*right, True], strict=True))
    ]
    return Anatomy(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame())


def test_foresight_is_a_rank_correlation_and_an_auc():
    best = anatomy.foresight(hand_made([1, 2, 3, 4], [1, 2, 3, 4], [True, True, False, False]))
    assert best == {"shift": pytest.approx(1), "by position": pytest.approx(-1), "loss": 1.0, "loss by position": 0.0}
    worst = anatomy.foresight(hand_made([1, 2, 3, 4], [4, 3, 2, 1], [True, True, False, False]))
    assert (worst["shift"], worst["loss"]) == (pytest.approx(-1), 0.0)
    mixed = anatomy.foresight(hand_made([1, 2, 3, 4], [1, 2, 3, 4], [True, False, True, False]))
    assert mixed["loss"] == 0.75
    assert math.isnan(anatomy.foresight(hand_made([1, 2], [1, 2], [True, True]))["loss"])


def test_survival_falls_with_the_shift_where_shifts_kill():
    shift = np.linspace(0.1, 2, 120)
    table = pd.DataFrame(
        {"edits_done": 9, "superposed": False, "cohort": "untouched", "fact": range(120), "shift": shift, "spills": 1}
    ).assign(right=shift < 1)
    alive = anatomy.survival(Anatomy(table, pd.DataFrame(), pd.DataFrame()), bins=4)
    assert alive.right.tolist() == [1.0, pytest.approx(alive.right[1]), 0.0, 0.0]
    assert alive.n.tolist() == [30] * 4 and alive["shift"].is_monotonic_increasing


def test_only_streams_of_single_edits_in_one_layer_are_taken_apart(bench):
    for name in ("memit-mass", "memit-layers"):
        with pytest.raises(KeditError, match="single edits in one layer"):
            anatomy.dissect(bench, name)


def test_what_was_kept_is_found_again(bench, found, monkeypatch):
    folder = bench.results / "anatomy"
    monkeypatch.setattr(anatomy, "dissect", lambda *_: found)
    anatomy.keep(bench, "memit", 0, folder)
    monkeypatch.setattr(anatomy, "dissect", lambda *_: pytest.fail("was dissected again"))
    again = anatomy.anatomy(bench, "memit", 0)
    pd.testing.assert_frame_equal(again.shifts, found.shifts)
    assert anatomy.anatomy(bench, "memit", 7) is None  # an order that is neither live nor there


# ---- foretelling -------------------------------------------------------------------------------------


def test_a_walk_of_equal_steps_arrives_when_their_sum_does():
    assert forecast._walk(np.full(10, 0.04), theta=1.0, seed=0) in (25.0, 26.0)
    assert forecast._walk(np.full(10, 1e-9), theta=1.0, seed=0) == math.inf
    few_large = np.array([0.0] * 9 + [0.4])  # the same mean: the median walker waits for as many hits
    assert 15 < forecast._walk(few_large, theta=1.0, seed=0) < 30


def test_the_bearing_tells_the_lost_from_the_kept():
    shift = np.array([0.1, 0.3, 0.2, 2.0, 1.0, 4.0])
    assert forecast._bearing(shift, shift < 0.5) == pytest.approx(math.sqrt(0.3 * 1.0))
    noisy = np.array([True, False, True, False, False, False])
    assert 0.2 <= forecast._bearing(shift, noisy) <= 0.3
    assert forecast._bearing(shift, np.ones(6, dtype=bool)) == math.inf


def test_more_is_written_earlier_it_dies(bench):
    """Ten times λ writes less and is foretold to last longer; the weights come back."""
    edits, model = bench.edits(0), bench.model
    strangers = bench.facts.strangers(edits, 20, 0)
    told = []
    for factor in (1, 100):
        base = bench.method("memit")
        method = kedit.method_for(model, "memit", mom2_update_weight=base.mom2_update_weight * factor)
        given = {"moments": bench.moments, "contexts": bench.contexts(method)}
        told.append(kedit.foretell(model, method, edits[:3], strangers, **given))
    assert told[0]["spill"] > 10 * told[1]["spill"] > 0
    assert told[0]["N"] < told[1]["N"]
    assert all(torch.equal(model.hf.get_parameter(name), w) for name, w in model.edited.items())
    with pytest.raises(KeditError, match="at least one edit"):
        kedit.foretell(model, method, [], strangers, **given)


# ---- catalogue, frontier --------------------------------------------------------------------


def test_every_stream_of_the_catalogue_makes_a_method(bench):
    for name in every_stream(bench.profile):
        method = bench.method(name)
        assert method.layers, name
    assert bench.method("memit-anchored").norm_anchor > 0
    assert bench.method("alphaedit-rank").nullspace_rank == round(7 / 8 * bench.model.d_ff)
    names = [name for group in groups_of(bench.profile).values() for name in group]
    assert len(names) == len(set(names))
    assert all(s.brief for s in cause_streams().values())


def test_a_pruned_stream_is_the_stream_with_its_end_measured_again(bench):
    plain, pruned = bench.run("memit"), bench.run("memit-pruned")
    assert pruned.edits.equals(plain.edits) and pruned.manifest["after"] == "prune"
    assert sorted(pruned.checkpoints.edits_done.unique()) == [0, N]
    start = [run.curve("accuracy", "untouched")[0] for run in (plain, pruned)]
    assert start[0] == start[1]
    norms = [
        run.curve("largest singular", f"layer {bench.method('memit').layers[-1]}").iloc[-1] for run in (plain, pruned)
    ]
    assert norms[1] <= norms[0]


def test_an_intervention_is_said_with_both_points():
    rows = {"edit": range(1, 61), "probability_last": [0.9] * 30 + [0.1] * 30}
    checks = [
        {"edits_done": n, "metric": "accuracy", "cohort": c, "value": v, "n": 1}
        for n, c, v in ((0, "untouched", 1.0), (20, "untouched", 0.4), (60, "untouched", 0.2), (60, "edits", 0.25))
    ]
    run = Run(pd.DataFrame(rows), pd.DataFrame(checks), {})
    title = next(iter(causes.INTERVENTIONS))
    said = causes.verdict_interventions(causes.collapse_table({title: {0: run}, "less": {0: run}}))
    assert "halved at 43" in said and "lost at 20" in said and "untouched 20%" in said and "**less**" in said
