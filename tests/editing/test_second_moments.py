"""Second moments: the plain sum over every token that is no padding, kept on disk under a name that says whose."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import tiny
import torch
from library import refused
from safetensors.torch import load_file

import kedit_lib as kedit
from kedit_lib.editing.second_moments import FewTokens

TEXTS = [*tiny.SENTENCES.splitlines()[:7], "Zoë.", "I", "The organ is old. " * 6]
LAYERS = [0, 3]


def naive(model, texts):
    """One text at a time through the plain model, one token at a time into the sum."""
    total, count = {layer: torch.zeros(tiny.D_FF, tiny.D_FF, dtype=torch.float64) for layer in LAYERS}, 0
    for text in texts:
        seen = {}
        handles = [
            model.mlp_out(layer).register_forward_hook(lambda m, args, out, at=layer: seen.update({at: args[0]}))  # noqa: B023
            for layer in LAYERS
        ]
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        model.hf(input_ids=ids)
        for handle in handles:
            handle.remove()
        count += ids.shape[1]
        for layer in LAYERS:
            for k in seen[layer][0].double():
                total[layer] += torch.outer(k, k)
    return {layer: sum_ / count for layer, sum_ in total.items()}, count


@pytest.mark.parametrize("kind", ["llama-bos", "gpt2"])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["double", "single"])
def test_every_token_counts_once_and_padding_never(tiny_folder, kind, dtype, close):
    model = kedit.load_model(tiny_folder(kind), dtype=dtype)
    expected, tokens = naive(model, TEXTS)
    for batch_tokens in (1, 60, 8192):  # one text at a time, a few, all
        moments = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS, batch_tokens=batch_tokens)
        assert moments.about["tokens"] == tokens
        assert sorted(moments.tensors) == LAYERS
        for layer in LAYERS:
            c = moments.tensors[layer].double()
            assert float((c - expected[layer]).norm() / expected[layer].norm()) < close


def test_the_unedited_model_is_measured(tiny_folder):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    clean = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS)
    given = kedit.SecondMoments.from_tensors(tiny.second_moments())
    edit, edited = kedit.Edit("{} plays the", "Zoë", "violin"), kedit.MEMIT(layers=[0, 1], v_num_grad_steps=3)
    edited.apply(model, [edit], moments=given, contexts=["{}"])
    weights = model.snapshot()
    again = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS)
    assert all(torch.equal(again.tensors[layer], clean.tensors[layer]) for layer in LAYERS)
    assert all(torch.equal(value, weights[name]) for name, value in model.snapshot().items())


def keys_of(model, rows, layer):
    """What the plain model gives the map, one row after the other."""
    keys, module = [], model.mlp_out(layer)
    handle = module.register_forward_hook(lambda module, args, out: keys.append(args[0][0]))
    for row in rows:
        model.hf(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(keys)


@pytest.mark.parametrize("kind", ["gpt2", "llama-bos"])
def test_a_text_beyond_the_models_length_counts_whole_in_windows(tiny_folder, kind):
    """128 positions. A window begins as a text does: with BOS, where the tokenizer puts one in front."""
    model = kedit.load_model(tiny_folder(kind), dtype=torch.float64)
    text, words = "The organ is old. " * 100, model.tokenizer
    begin = [words.bos_token_id] if kind == "llama-bos" else []
    ids, step = words(text, add_special_tokens=False).input_ids, 128 - len(begin)
    rows = [begin + ids[i : i + step] for i in range(0, len(ids), step)]
    k = keys_of(model, rows, 0)
    moments = kedit.SecondMoments.estimate(model, [text], layers=[0])
    assert moments.about["tokens"] == len(k) == len(ids) + len(begin) * len(rows)
    assert torch.allclose(moments.tensors[0], k.T @ k / len(k), rtol=1e-12, atol=1e-15)
    assert kedit.SecondMoments.estimate(model, [text, *TEXTS], layers=[0], tokens=300).about["tokens"] == len(k)


def test_a_text_that_fits_has_the_cache_that_it_had(tiny_folder, tmp_path):
    """The key names windows only where a text is cut into some."""
    model = kedit.load_model(tiny_folder("llama"))
    kedit.SecondMoments.estimate(model, TEXTS, layers=[0], cache=tmp_path)
    about = {"corpus": hashlib.sha256("\x00".join(TEXTS).encode()).hexdigest(), "texts": len(TEXTS)}
    about |= {"dtype": str(model.dtype), "layers": [0]}
    whole = json.dumps([model.checksum, model.setting, about], sort_keys=True)
    (path,) = tmp_path.glob("*.safetensors")
    assert path.name == f"moments-{hashlib.sha256(whole.encode()).hexdigest()[:20]}.safetensors"


@pytest.mark.parametrize("given", ["name", "path", "jsonl", "rows", "iterator"])
def test_texts_however_they_are_handed_over(tiny_folder, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    texts = [text.strip() for text in TEXTS]
    (tmp_path / "wiki.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    forms = {"name": "wiki.txt", "path": tmp_path / "wiki.txt", "jsonl": "wiki.jsonl"}
    forms |= {"rows": [{"text": t, "id": 1} for t in texts], "iterator": iter(texts)}
    model = kedit.load_model(tiny_folder("llama"))
    found = kedit.SecondMoments.estimate(model, forms[given], layers=[0])
    assert torch.equal(found.tensors[0], kedit.SecondMoments.estimate(model, texts, layers=[0]).tensors[0])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("no-such.txt", "there is no file 'no-such.txt'"),
        (Path("no-such.txt"), "is no file"),
        ([{"body": "The organ is old."}], "fields body"),
        ([7], "text 0 is no text (int)"),
        ([], "no texts"),
        (b"The organ", "bytes"),
        (7, "int"),
    ],
)
def test_what_is_no_text_is_refused(tiny_folder, texts, says):
    model = kedit.load_model(tiny_folder("llama"))
    refused(lambda: kedit.SecondMoments.estimate(model, texts, layers=[0]), "moments", says)


def test_too_few_tokens_are_a_warning_and_no_null_space(tiny_folder):
    model, edits = kedit.load_model(tiny_folder("llama")), [kedit.Edit(*tiny.EDITS[4])]
    with pytest.warns(FewTokens, match=f"{tiny.D_FF} directions"):
        moments = kedit.SecondMoments.estimate(model, TEXTS[:1], layers=[1])
    assert moments.about["tokens"] < tiny.D_FF
    alphaedit = kedit.AlphaEdit(layers=[1], nullspace_rank=9)
    with pytest.warns(FewTokens):
        refused(lambda: alphaedit.apply(model, edits, moments=moments), "null space", "rank", f"d_ff = {tiny.D_FF}")
    with pytest.warns(FewTokens), contextlib.suppress(kedit.KeditError):  # it may also be singular
        kedit.MEMIT(layers=[1]).apply(model, edits, moments=moments, contexts=["{}"])


def test_solving_is_multiplying_by_the_inverse():
    C = tiny.second_moments()
    moments, k = kedit.SecondMoments.from_tensors(C), torch.randn(3, tiny.D_FF, dtype=torch.float64)
    expected = torch.linalg.solve(C[2].double(), k.T).T
    for _ in range(2):  # with and without the factor at hand
        assert torch.allclose(moments.solve(2, k), expected, rtol=1e-8)
    factor = moments.factor(2)
    assert factor.dtype == torch.float64
    assert torch.allclose(factor @ factor.T, C[2].double(), rtol=1e-10)


def test_saved_and_loaded(tiny_folder, tmp_path):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    moments = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS)
    moments.save(tmp_path / "a" / "C.safetensors")
    again = kedit.SecondMoments.load(tmp_path / "a" / "C.safetensors")
    assert again.model_checksum == model.checksum
    assert again.about == moments.about
    assert again.identity == moments.identity
    assert sorted(again.tensors) == LAYERS
    assert all(torch.equal(again.tensors[layer], moments.tensors[layer]) for layer in LAYERS)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["C.safetensors"]

    given = kedit.SecondMoments.from_tensors(tiny.second_moments())
    given.save(tmp_path / "given.safetensors")
    found = kedit.SecondMoments.load(tmp_path / "given.safetensors")
    assert found.model_checksum is None
    assert found.identity == given.identity


def test_identity_tells_values_apart():
    C = tiny.second_moments()
    same, other = {**C}, {**C, 2: C[2] * 1.0001}
    backwards = dict(reversed(C.items()))
    identity = [kedit.SecondMoments.from_tensors(given).identity for given in (C, same, backwards, other)]
    assert identity[0] == identity[1] == identity[2]
    assert identity[0] != identity[3]
    assert kedit.SecondMoments.from_tensors(C, model_checksum="a").identity != identity[0]


def test_the_cache(tiny_folder, tmp_path, monkeypatch):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float32)
    estimate = kedit.SecondMoments.estimate
    first = estimate(model, TEXTS, layers=LAYERS, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    assert sorted(load_file(path)) == ["layer0", "layer3"]

    with monkeypatch.context() as m:
        m.setattr("kedit_lib.editing.second_moments.trace", lambda *args, **named: pytest.fail("the model ran again"))
        again = estimate(kedit.load_model(tiny_folder("llama"), dtype=torch.float32), iter(TEXTS), LAYERS, tmp_path)
    assert again.identity == first.identity
    assert all(torch.equal(again.tensors[layer], first.tensors[layer]) for layer in LAYERS)

    others = {
        "texts": (model, TEXTS[:-1], LAYERS),
        "order of texts, which is another corpus": (model, TEXTS[::-1], LAYERS),
        "layers": (model, TEXTS, [0, 2]),
        "dtype": (kedit.load_model(tiny_folder("llama"), dtype=torch.float64), TEXTS, LAYERS),
        "model": (kedit.load_model(tiny_folder("llama-bos"), dtype=torch.float32), TEXTS, LAYERS),
    }
    for n, (what, (of, texts, layers)) in enumerate(others.items(), 2):
        estimate(of, texts, layers, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == n, what

    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(kedit.KeditError, match="cannot be read .* remove it and estimate again") as caught:
        estimate(model, TEXTS, layers=LAYERS, cache=tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_budget_takes_the_first_texts(tiny_folder, tmp_path):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float64)
    held = [len(model.tokenizer(text).input_ids) for text in TEXTS]
    budgeted = kedit.SecondMoments.estimate(model, TEXTS, LAYERS, cache=tmp_path, tokens=held[0] + 1)
    first_two = kedit.SecondMoments.estimate(model, TEXTS[:2], LAYERS)
    assert budgeted.about["tokens"] == held[0] + held[1]
    assert all(torch.equal(budgeted.tensors[layer], first_two.tensors[layer]) for layer in LAYERS)
    whole = kedit.SecondMoments.estimate(model, TEXTS, LAYERS, cache=tmp_path)  # not the cached one
    assert whole.about["tokens"] == sum(held)
    assert kedit.SecondMoments.estimate(model, TEXTS, LAYERS, tokens=10**9).about["tokens"] == sum(held)
    for wrong in (0, -5, 1.5, True):
        with pytest.raises(kedit.KeditError, match="tokens = .* whole number of at least 1"):
            kedit.SecondMoments.estimate(model, TEXTS, LAYERS, tokens=wrong)
