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
    assert imported == {"contextlib", "functools", "types", "torch"}


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


def test_last_step_only_measures(tiny_model):
    """n steps are n losses and n - 1 updates."""
    loaded = tiny_model("llama")
    one = reference.optimise_z(loaded.model, loaded.tokenizer, EDITS[0], tiny.CONTEXTS, hyper(v_num_grad_steps=1))
    assert (one.steps, float(one.delta.norm())) == (1, 0.0)
    two = reference.optimise_z(loaded.model, loaded.tokenizer, EDITS[0], tiny.CONTEXTS, hyper(v_num_grad_steps=2))
    assert two.steps == 2
    assert torch.allclose(two.delta.abs(), torch.full_like(two.delta, 0.5), atol=1e-4)  # Adam's first step is its rate
