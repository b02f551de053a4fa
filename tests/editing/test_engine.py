"""The two engines: what δ can change alone, and the whole model, give the same numbers for every architecture."""

import families
import pytest
import tiny
import torch
from library import EDITS, refused

import kedit_lib as kedit
from kedit_lib.editing.engine import ENGINES, Plain, Suffix, requests_of
from kedit_lib.models import llama
from kedit_lib.models.llama import LARGE, multiplies_in_bfloat16, weights_of

# GPT-J and Gemma 2 compute their attention in float32 whatever the weights are.
SAME = {"gptj": 1e-5, "gemma2": 1e-5}
SINGLE = ("llama-bos", "mistral")  # in single precision their layers are written out
EVERY = [*tiny.KINDS, *families.EVERY, *((name, torch.float32) for name in SINGLE)]


@pytest.fixture(scope="module")
def model(tmp_path_factory, request):
    name, dtype = (request.param, torch.float64) if isinstance(request.param, str) else request.param
    made, same = tiny if name in tiny.KINDS else families, 1e-5 if dtype == torch.float32 else SAME.get(name, 1e-9)
    return kedit.load_model(made.save(name, tmp_path_factory.mktemp(name)), dtype=dtype), same


def methods(model):
    """z of the stream, of the map's output, and of two outputs; the nll read at the last layer and below it."""
    fast = {"v_num_grad_steps": 3}
    found = [kedit.ROME(layers=[2], **fast), kedit.PMET(layers=[1], **fast), kedit.PMET(layers=[4], **fast)]
    if model.layout.mlp_norm is None:
        found += [kedit.MEMIT(layers=[1], **fast), kedit.MEMIT(layers=[0], v_loss_layer=2, **fast)]
    return found


@pytest.mark.parametrize("model", EVERY, indirect=True)
def test_the_engines_agree_on_every_term_of_the_loss_and_on_its_gradient(model):
    model, same = model
    requests = requests_of(model.tokenizer, EDITS, tiny.CONTEXTS)
    for method in methods(model):
        suffix, plain = (engine(model, requests, method._site(model)) for engine in (Suffix, Plain))
        assert torch.allclose(suffix.v0, plain.v0, rtol=same, atol=same)
        assert torch.allclose(suffix.keys, plain.keys, rtol=same, atol=same)
        torch.manual_seed(0)
        for active in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 3, 4], [3]):
            delta = torch.randn_like(plain.v0) * (suffix._kl_before is not None)  # the first call's δ is 0
            terms, gradients = [], []
            for engine in (suffix, plain):
                x = delta.clone().requires_grad_(True)
                nll, kl, said = engine.loss_terms(x, torch.tensor(active))
                terms.append((nll, kl, said.double()))
                gradients.append(torch.autograd.grad(nll.sum() + kl.sum(), x)[0])
            for ours, theirs in zip(*terms, strict=True):
                assert ours.shape[0] == len(active)
                assert torch.allclose(ours, theirs, rtol=same, atol=same)
            assert torch.allclose(*gradients, rtol=100 * same, atol=100 * same)
            assert gradients[1][active].abs().amax() > 1e-3


@pytest.mark.parametrize("model", ["llama-bos"], indirect=True)
@pytest.mark.parametrize("method", [kedit.MEMIT, kedit.PMET, kedit.ROME], ids=lambda m: m.__name__)
def test_an_edit_may_ask_for_whole_passes(model, method, monkeypatch):
    model, calls = model[0], []

    class Noted(Plain):
        def loss_terms(self, *given):
            calls.append(given)
            return super().loss_terms(*given)

    monkeypatch.setitem(ENGINES, "plain", Noted)
    method = method(layers=[2], v_num_grad_steps=4)
    given = {"moments": kedit.SecondMoments.from_tensors(tiny.second_moments()), "contexts": tiny.CONTEXTS}
    fast = method.apply(model, EDITS[:3], **given)
    model.restore()
    assert not calls
    plain = method.apply(model, EDITS[:3], **given, engine="plain")
    model.restore()
    assert len(calls) >= 4
    for name, delta in fast.deltas.items():
        assert torch.allclose(plain.deltas[name], delta, rtol=1e-8, atol=1e-11)
    assert fast.record == plain.record
    refused(
        lambda: method.apply(model, EDITS[:1], **given, engine="fast"), "engine = 'fast'", "suffix, plain, bfloat16"
    )
    refused(lambda: kedit.FT(layers=[2]).apply(model, EDITS[:1], engine="plain"), "engine=None")


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_whole_passes_in_half_precision_add_in_single(model):
    half = kedit.load_model(model[0].folder, dtype=torch.bfloat16)
    requests = requests_of(half.tokenizer, EDITS[:2], ["{}"])
    site = kedit.MEMIT(layers=[1])._site(half)
    delta, both = torch.full((2, 1, tiny.D_MODEL), 0.1), torch.arange(2)
    terms = [engine(half, requests, site).loss_terms(delta, both) for engine in (Suffix, Plain)]
    assert all(t.dtype == torch.float32 for t in terms[1][:2])
    assert torch.allclose(terms[0][0], terms[1][0], rtol=0.05)


@pytest.mark.parametrize("model", [("llama-bos", torch.float32)], indirect=True)
def test_weights_kept_transposed_follow_an_edit_above_z(model):
    model, requests = model[0], requests_of(model[0].tokenizer, EDITS[:2], ["{}"])
    site, nll = kedit.MEMIT(layers=[1])._site(model), []
    for _ in range(2):
        delta = torch.zeros(2, 1, tiny.D_MODEL)
        engines = [engine(model, requests, site) for engine in (Suffix, Plain)]
        assert engines[0]._written_out
        suffix, plain = (engine.loss_terms(delta, torch.arange(2))[0] for engine in engines)
        assert torch.allclose(suffix, plain, rtol=1e-5)
        nll.append(plain)
        model.add({model.weight_name(3): torch.ones_like(model.weight(3))})
    model.restore()
    assert not torch.allclose(*nll, rtol=1e-2)


@pytest.mark.parametrize("model", [("llama-bos", torch.float32)], indirect=True)
def test_a_large_head_is_read_in_another_order(model, monkeypatch):
    model, requests = model[0], requests_of(model[0].tokenizer, EDITS[:2], ["{}"])
    site, found = kedit.MEMIT(layers=[1])._site(model), []
    for large, engine in ((0, Suffix), (LARGE, Suffix), (LARGE, Plain)):
        monkeypatch.setattr(llama, "LARGE", large)
        llama._kept.clear()
        delta, both = torch.full((2, 1, tiny.D_MODEL), 0.1, requires_grad=True), torch.arange(2)
        engine = engine(model, requests, site)
        nll = engine.loss_terms(delta, both)[0]
        found.append((nll, *torch.autograd.grad(nll.sum(), delta)))
        if not engine.whole:
            assert all(w.is_mkldnn == (large == 0) for w in vars(weights_of(model.head, torch.float32)).values())
    for one in found[:2]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one, found[2], strict=True))
    llama._kept.clear()


def test_rows_of_large_weights_do_not_share_lines_of_a_cache(monkeypatch):
    monkeypatch.setattr(llama, "LARGE", 4000)
    for rows, columns, stride in ((4, 1024, 1040), (4, 1000, 1000), (3, 1024, 1024)):
        weight = torch.rand(rows, columns)
        assert torch.equal(llama.in_order(weight), weight)
        assert llama.in_order(weight).stride() == (stride, 1)


@pytest.mark.skipif(not multiplies_in_bfloat16(), reason="no products in bfloat16 on this CPU")
@pytest.mark.parametrize("model", [("mistral", torch.float32)], indirect=True)
def test_products_in_bfloat16_are_near_and_asked_for(model, tmp_path):
    model, method = model[0], kedit.MEMIT(layers=[1], v_num_grad_steps=4)
    given = {"moments": kedit.SecondMoments.from_tensors(tiny.second_moments()), "contexts": tiny.CONTEXTS}
    found = []
    for engine in (None, "bfloat16"):
        found.append(method.apply(model, EDITS[:3], **given, engine=engine))
        model.restore()
    for exact, near in zip(*(outcome.targets for outcome in found), strict=True):
        assert near.losses != exact.losses
        assert near.losses == pytest.approx(exact.losses, rel=0.03)
    for name, delta in found[0].deltas.items():
        assert 1e-4 < (found[1].deltas[name] - delta).norm() / delta.norm() < 0.2
    double = kedit.load_model(tiny.save("gpt2", tmp_path))
    refused(lambda: method.apply(double, EDITS[:1], **given, engine="bfloat16"), "engine = 'bfloat16'", "leave it out")
