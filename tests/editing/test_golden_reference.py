"""The plain reference against the authors' own numbers: this is what makes it an oracle."""

import golden
import pytest
import reference
import torch
from golden import relative
from transformers import AutoModelForCausalLM, AutoTokenizer

TRACES = {"losses": "loss", "nlls": "nll", "kls": "kl_loss", "decays": "weight_decay", "probabilities": "avg_prob"}


def open_case(case, step=0):
    """Model with the weights that the step starts from, and the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(golden.FOLDER / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, change in case.changes_before(step).items():
            model.get_parameter(name).add_(change)
    return model, AutoTokenizer.from_pretrained(case.tokenizer_folder)


def known(case):
    if not hasattr(reference, case.method):
        pytest.skip(f"the reference has no method {case.method!r}")
    return getattr(reference, case.method)


def run(case, step, model, tokenizer, moments, M):
    """One step of a case by the reference. M: the history of AlphaEdit."""
    method, hp, edits = known(case), case.hp, case.edits(step)
    if case.method.endswith("rome"):
        return method(model, tokenizer, edits[0], case.contexts, hp, moments)
    if case.method == "alphaedit":
        P = {layer: reference.null_projection(moments[layer], hp.nullspace_threshold) for layer in hp.layers}
        return method(model, tokenizer, edits, case.contexts, hp, P, M)
    return method(model, tokenizer, edits, case.contexts, hp, moments)


def assert_keys(case, step, result):
    for layer in case.hp.layers:
        if case.method.endswith("rome"):
            assert relative(result.keys[layer][:, 0], case.tensors[f"step{step}.key_mean"]) <= golden.KEYS
            inputs = case.tensors[f"step{step}.cur_input"].mean(0)
            outputs = case.tensors[f"step{step}.cur_output"].mean(0)
            assert relative(result.key, inputs) <= golden.KEYS
            assert relative(result.old, outputs) <= golden.KEYS
        else:
            assert relative(result.keys[layer].T, case.tensors[f"step{step}.layer{layer}.K"]) <= golden.KEYS
            assert relative(result.hidden[layer].T, case.tensors[f"step{step}.layer{layer}.cur_z"]) <= golden.KEYS


@golden.each_case()
def test_token_ids(case):
    """Every token id, lookup index and target position as the authors' programs used them."""
    tokenizer = AutoTokenizer.from_pretrained(case.tokenizer_folder)
    for step in case.steps:
        for edit, request in zip(case.edits(step), case.requests(step), strict=True):
            read = reference.rewriting(tokenizer, edit, case.contexts)
            assert read.target == request["target_ids"]
            *rows, kl_row = read.rows
            *lookups, kl_lookup = read.lookups
            assert rows == [row["ids"] for row in request["rewriting"]]
            assert lookups == [row["lookup_idx"] for row in request["rewriting"]]
            spans = [[start, start + len(read.target)] for start in read.starts]
            assert spans == [row["target_positions"] for row in request["rewriting"]]
            assert (kl_row, kl_lookup) == (request["kl"]["ids"], request["kl"]["lookup_idx"])
            for context, row in zip(case.contexts, request["key_prompts"], strict=True):
                text, _ = reference.fill(context, edit.prompt, edit.subject)
                assert (text, reference.encode(tokenizer, text)) == (row["text"], row["ids"])
                assert reference.lookup_index(tokenizer, context, edit.prompt, edit.subject) == row["idx"]


@golden.each_case()
def test_end_to_end(case):
    """Everything from token ids: the same number of steps, the same losses, z and ΔW. Each step starts from recorded
    weights."""
    moments, M = golden.second_moments(), {}
    for step in case.steps:
        model, tokenizer = open_case(case, step)
        result = run(case, step, model, tokenizer, moments, M)
        for i, (target, request) in enumerate(zip(result.targets, case.requests(step), strict=True)):
            assert target.steps == request["n_iters"]
            for ours, theirs in TRACES.items():
                golden.assert_trace(getattr(target, ours), request[theirs])
            golden.assert_target(target, case.target(step, i))
        assert_keys(case, step, result)
        for layer in case.hp.layers:
            update = result.deltas[reference.weight(model, layer)[0]]
            assert relative(update, case.change(step, layer)) <= golden.END_TO_END
