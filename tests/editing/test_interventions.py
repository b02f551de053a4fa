"""Experiments about causes: each changes one thing, by hand-worked cases on a tiny model, and nothing else."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from golden import relative
from library import EDITS, refused, snapshot

import kedit_lib as kedit
from kedit_lib.editing.compute_k import keys_at
from kedit_lib.editing.interventions import CHANGES, changed, misplaced_keys
from kedit_lib.models.tokenization import encode_prompt, target_ids

MODEL = "llama-bos", torch.float64
FAST = {"v_num_grad_steps": 3, "mom2_update_weight": 5.0}
MEMIT = kedit.MEMIT(layers=[1, 2], **FAST)
PMET = kedit.PMET(layers=[1, 2], **FAST)
ROME = kedit.ROME(layers=[2], v_num_grad_steps=3)


def apply(method, model, moments, edit):
    return method.apply(model, [edit], moments=moments, contexts=tiny.CONTEXTS[:2])


@pytest.mark.parametrize("method", [MEMIT, PMET, ROME], ids=lambda m: m.name)
def test_superposed_updates_do_not_know_of_each_other(model, moments, method):
    alone = []
    for edit in EDITS[:2]:
        alone.append(apply(method, model, moments, edit).deltas)
        model.restore()
    one = changed(method, "superposed")
    found = [apply(one, model, moments, edit).deltas for edit in EDITS[:2]]
    for mine, theirs in zip(found, alone, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name in alone[0]:
        assert relative(model.hf.get_parameter(name) - model.edited[name], alone[0][name] + alone[1][name]) < 1e-12
    model.restore()
    apply(method, model, moments, EDITS[0])
    second = apply(method, model, moments, EDITS[1]).deltas  # the method itself does know
    assert any(relative(second[name], alone[1][name]) > 1e-6 for name in second)


@pytest.mark.parametrize("method", [MEMIT, PMET, ROME], ids=lambda m: m.name)
def test_frozen_targets_are_those_of_the_unedited_model(model, moments, method):
    apply(method, model, moments, EDITS[0])
    moved = apply(method, model, moments, EDITS[1]).targets[0].z
    model.restore()
    fresh = apply(method, model, moments, EDITS[1]).targets[0].z
    model.restore()
    one = changed(method, "frozen z")
    apply(one, model, moments, EDITS[0])
    assert torch.equal(apply(one, model, moments, EDITS[1]).targets[0].z, fresh)
    assert relative(moved, fresh) > 1e-6


def test_clean_keys_take_the_clean_prompt_alone_and_the_linear_share_is_memits(model, moments):
    """The lower of two layers is given R/2 for R/√2; the upper one, R either way, then meets other keys."""
    alone = MEMIT.apply(model, EDITS[:1], moments=moments, contexts=["{}"]).deltas
    model.restore()
    found = apply(changed(MEMIT, "clean keys"), model, moments, EDITS[0]).deltas
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    model.restore()
    root = apply(PMET, model, moments, EDITS[0]).deltas[model.weight_name(1)]
    model.restore()
    linear = apply(changed(PMET, "linear share"), model, moments, EDITS[0]).deltas[model.weight_name(1)]
    assert relative(linear, root / math.sqrt(2)) < 1e-12


def test_the_start_token_stands_in_front_of_the_target_alone(model, moments):
    plain, bugged = (
        m.prepare(model, EDITS[:1], moments=moments).requests[0] for m in (PMET, changed(PMET, "start in target"))
    )
    assert bugged.target == (model.tokenizer.bos_token_id, *plain.target)
    assert bugged.prompts == plain.prompts
    model.tokenizer.bos_token = None  # such a model cannot have that bug
    before = snapshot(model)
    refused(lambda: apply(changed(PMET, "start in target"), model, moments, EDITS[0]), "start in target", "token")
    assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())


@pytest.mark.parametrize("method", [MEMIT, PMET], ids=lambda m: m.name)
def test_where_nothing_is_padded_left_padding_changes_nothing(model, moments, method):
    """One context, and an edit prompt as long as the KL prompt: all rows have one length."""
    prompt, subject = "{} is a", tiny.EDITS[0][1]
    words = [w for w in ("judge", "organ", "English", "old") if len(target_ids(model.tokenizer, prompt, w)) == 1]
    edit, given = kedit.Edit(prompt, subject, words[0]), {"moments": moments, "contexts": ["{}"]}
    meant = method.apply(model, [edit], **given)
    model.restore()
    found = changed(method, "left padded").apply(model, [edit], **given)
    assert relative(found.targets[0].z, meant.targets[0].z) < 1e-9
    assert found.targets[0].losses == pytest.approx(meant.targets[0].losses)
    assert all(relative(found.deltas[name], delta) < 1e-9 for name, delta in meant.deltas.items())


def test_left_padding_reads_a_short_prompt_too_early(model):
    """Its keys are those of the token as many places before the lookup as there is padding in front."""
    long, short = (encode_prompt(model.tokenizer, c, EDITS[0].prompt, EDITS[0].subject) for c in ("Yes. {}", "{}"))
    q = len(long.ids) - len(short.ids)
    assert 0 < q <= short.lookup
    found = misplaced_keys(model, [long, short], [1])[1]
    expected = keys_at(model, [long, replace(short, lookup=short.lookup - q)], [1])[1]
    assert relative(found, expected) < 1e-6  # positions count from the padding, and their rotation is in float32


def test_a_changed_method_says_what_it_is_and_keeps_its_settings(model, moments):
    for change, (_, fits) in CHANGES.items():
        method = next(m for m in (MEMIT, PMET, ROME) if isinstance(m, fits))
        one = changed(method, change)
        assert one.name == f"{method.name} {change}"
        assert one.hyperparameters == method.hyperparameters
        assert one.context_style == ("rome" if change == "twenty-one contexts" else method.context_style)
    refused(lambda: changed(MEMIT, "luck"), "luck", "superposed")
    refused(lambda: changed(MEMIT, "linear share"), "linear share", "MEMIT", "PMET")
    six = MEMIT.contexts(model)
    assert len(six) == 6 and changed(MEMIT, "three contexts").contexts(model) == six[:3]
    more = changed(MEMIT, "twenty-one contexts").contexts(model)
    assert len(more) == 21 and more == kedit.generate_contexts(model, style="rome")
