"""What must hold of the plain reference by mathematics alone: no recorded numbers, no library."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from golden import relative

EDITS = [SimpleNamespace(prompt=prompt, subject=subject, target_new=target) for prompt, subject, target in tiny.EDITS]


def hyper(**changes):
    return SimpleNamespace(**{**tiny.HYPER, "nll_loss_factor": 1.0, "mom2_adjustment": True, **changes})


def test_the_reference_does_not_use_the_library():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"contextlib", "types", "torch"}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_lookup_is_the_last_token_of_the_subject(tiny_model, kind):
    tokenizer = tiny_model(kind).tokenizer
    for edit in EDITS:
        for context in [*tiny.CONTEXTS, *tiny.BRACES]:
            text, end = reference.fill(context, edit.prompt, edit.subject)
            ids = reference.encode(tokenizer, text)
            index = reference.lookup_index(tokenizer, context, edit.prompt, edit.subject)
            assert ids.count(tokenizer.bos_token_id) == (kind in ("llama-bos", "llama-metaspace"))
            assert tokenizer.decode(ids[: index + 1], skip_special_tokens=True) == text[:end]
            assert tokenizer.decode(ids[:index], skip_special_tokens=True) != text[:end]


def test_doubled_braces_of_a_context_are_single_ones_in_the_text():
    texts = [reference.fill(context, "{} plays", "Zoë")[0] for context in tiny.BRACES]
    assert texts == ["Zoë plays", "I read {1} and {}. Zoë plays", "{A} I read. Zoë plays"]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_target_ids_continue_the_prompt(tiny_model, kind):
    tokenizer = tiny_model(kind).tokenizer
    for edit in EDITS:
        prompt = edit.prompt.format(edit.subject)
        ids = reference.target_ids(tokenizer, prompt, edit.target_new)
        assert not set(ids) & {tokenizer.bos_token_id, tokenizer.eos_token_id}
        joined = tokenizer.decode(reference.encode(tokenizer, prompt) + ids, skip_special_tokens=True)
        assert joined == f"{prompt} {edit.target_new}"
        assert tokenizer.decode(ids).strip()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_padding_on_the_right_changes_nothing(tiny_model, kind):
    loaded = tiny_model(kind)
    rows = reference.rewriting(loaded.tokenizer, EDITS[1], tiny.CONTEXTS).rows
    with torch.no_grad():
        together = loaded.model(input_ids=reference.right_padded(rows, pad=7)).logits
        for logits, row in zip(together, rows, strict=True):
            assert relative(logits[: len(row)], loaded.model(input_ids=torch.tensor([row])).logits[0]) < 1e-12


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", ["rome", "rrome", "prome"])
@pytest.mark.parametrize("with_C", [True, False])
def test_rome_writes_its_value_at_its_key(tiny_model, kind, variant, with_C):
    """After the edit the layer answers v* exactly, at the key the variant speaks of."""
    loaded, hp = tiny_model(kind), hyper(layers=[2], v_num_grad_steps=2, mom2_adjustment=with_C)
    edit, C = EDITS[0], tiny.second_moments() if with_C else None
    result = reference.rome(loaded.model, loaded.tokenizer, edit, tiny.CONTEXTS, hp, C, kind=variant)
    _, outputs = reference.keys_of(loaded.model, loaded.tokenizer, edit, tiny.CONTEXTS, 2)
    answer = outputs.mean(0) if variant == "rrome" else outputs[0]
    assert relative(answer, result.targets[0].z) < 1e-12
    (update,) = result.deltas.values()
    assert torch.linalg.matrix_rank(update) == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_single_edits_with_history_are_one_batch(tiny_model, kind):
    """Recursive least squares: one layer, clean prompts only and frozen z, so that no key moves."""
    C, hp, contexts = tiny.second_moments(), hyper(layers=[2]), ["{}"]
    generator = torch.Generator().manual_seed(0)
    targets = [SimpleNamespace(z=torch.randn(tiny.D_MODEL, generator=generator, dtype=torch.float64)) for _ in EDITS]
    together, alone = tiny_model(kind), tiny_model(kind)
    batch = reference.memit(together.model, together.tokenizer, EDITS, contexts, hp, C, targets=targets)
    M, total = {}, 0
    for edit, target in zip(EDITS, targets, strict=True):
        (update,) = reference.memit(alone.model, alone.tokenizer, [edit], contexts, hp, C, M, [target]).deltas.values()
        total = total + update
    (expected,) = batch.deltas.values()
    assert relative(total, expected) < 1e-10


def random_problem():
    generator = torch.Generator().manual_seed(1)
    R = torch.randn(tiny.D_MODEL, 5, generator=generator, dtype=torch.float64)
    K = torch.randn(tiny.D_FF, 5, generator=generator, dtype=torch.float64)
    return R, K, tiny.second_moments()[0]


def test_memit_minimises_its_objective():
    """|R - D K|^2 + weight tr(D C D^T) has no slope at the update."""
    R, K, C = random_problem()
    update = reference.memit_update(R, K, C, 3.0).requires_grad_(True)
    loss = ((R - update @ K) ** 2).sum() + 3.0 * torch.trace(update @ C.double() @ update.T)
    (slope,) = torch.autograd.grad(loss, update)
    assert slope.abs().max() < 1e-10


def test_emmet_without_ridge_writes_exactly():
    R, K, C = random_problem()
    assert relative(reference.emmet_update(R, K, C, 2.0, ridge=0.0, eta=0.0) @ K, R) < 1e-10


def test_emmet_with_one_edit_has_no_ridge_and_is_rome():
    R, K, C = random_problem()
    update = reference.emmet_update(R[:, :1], K[:, :1], C, 2.0, ridge=0.1, eta=0.0)
    assert relative(update, reference.rome_update(C, K[:, 0], K[:, 0], R[:, 0])) < 1e-10


def test_alphaedit_is_its_small_form_and_stays_in_the_null_space():
    R, K, C = random_problem()
    C, M = C.double(), K[:, :2] @ K[:, :2].T
    values, U = torch.linalg.eigh(C)
    threshold = float(values[20:22].mean())
    U = U[:, values < threshold]
    P = reference.null_projection(C, threshold)
    update = reference.alphaedit_update(R, K, P, 10.0, M)
    small = U.T @ (K @ K.T + M) @ U + 10.0 * torch.eye(U.shape[1], dtype=torch.float64)
    assert relative(update, (U @ torch.linalg.solve(small, U.T @ K @ R.T)).T) < 1e-10
    assert relative(update @ P, update) < 1e-10


def test_optimisation_stops_before_stepping_when_the_loss_is_small(tiny_model):
    loaded, hp = tiny_model("llama"), hyper(kl_factor=1e-4, v_num_grad_steps=25)
    trace = reference.optimise_z(loaded.model, loaded.tokenizer, EDITS[-1], tiny.CONTEXTS, hp)
    assert 1 < trace.steps < 25
    assert trace.losses[-1] < 0.05 <= min(trace.losses[:-1])


def test_last_step_only_measures(tiny_model):
    """n steps are n losses and n - 1 updates."""
    loaded = tiny_model("llama")
    one = reference.optimise_z(loaded.model, loaded.tokenizer, EDITS[0], tiny.CONTEXTS, hyper(v_num_grad_steps=1))
    assert (one.steps, float(one.delta.norm())) == (1, 0.0)
    two = reference.optimise_z(loaded.model, loaded.tokenizer, EDITS[0], tiny.CONTEXTS, hyper(v_num_grad_steps=2))
    assert two.steps == 2
    assert torch.allclose(two.delta.abs(), torch.full_like(two.delta, 0.5), atol=1e-4)  # Adam's first step is its rate


def test_pmet_scales_the_likelihood_once_learned_and_stops_at_little_divergence(tiny_model):
    loaded, edit = tiny_model("llama"), EDITS[-1]

    def surprise(trace):
        return -torch.tensor(trace.probabilities[-1]).log()

    scaled = reference.optimise_pmet(loaded.model, loaded.tokenizer, edit, tiny.CONTEXTS, hyper())
    assert scaled.steps == tiny.HYPER["v_num_grad_steps"]
    assert scaled.nlls[-1] < 0.2 * surprise(scaled)
    few = hyper(kl_factor=1e-4, v_weight_decay=2.0)
    stopped = reference.optimise_pmet(loaded.model, loaded.tokenizer, edit, tiny.CONTEXTS, few)
    assert stopped.steps < scaled.steps
    assert stopped.losses[-1] > 0.05
    assert stopped.nlls[-1] > surprise(stopped)  # the factor was not applied at the step that stops
