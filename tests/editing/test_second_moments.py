"""Second moments: the plain sum over every token that is no padding, kept on disk under a name that says whose."""

import contextlib
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from library import assert_same_weights, holds, refused, snapshot
from safetensors.torch import load_file

import kedit_lib as kedit

TEXTS = [*tiny.LINES[:7], "Zoë.", "I", "The organ is old. " * 6]
LAYERS = [0, 3]
MODEL = "llama", torch.float32


def recorded(model, rows, layer):
    """What the plain model gives the map of a layer, one row of ids after the other."""
    keys, module = [], model.mlp_out(layer)
    handle = module.register_forward_hook(lambda module, args, out: keys.append(args[0][0]))
    for row in rows:
        model.hf(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(keys)


def second_moment(k):
    return k.double().T @ k.double() / len(k)


@pytest.mark.parametrize("kind", ["llama-bos", "gpt2"])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["double", "single"])
def test_every_token_counts_once_and_padding_never(tiny_folder, kind, dtype, close):
    model = kedit.load_model(tiny_folder(kind), dtype=dtype)
    k = {layer: recorded(model, [model.tokenizer(t).input_ids for t in TEXTS], layer) for layer in LAYERS}
    for batch_tokens in (1, 60, 8192):  # one text at a time, a few, all
        moments = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS, batch_tokens=batch_tokens)
        assert moments.about["tokens"] == len(k[0])
        assert sorted(moments.tensors) == LAYERS
        for layer in LAYERS:
            expected = second_moment(k[layer])
            assert float((moments.tensors[layer].double() - expected).norm() / expected.norm()) < close


def test_the_unedited_model_is_measured(model):
    clean = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS)
    given = kedit.SecondMoments.from_tensors(tiny.second_moments())
    edit, edited = kedit.Edit("{} plays the", "Zoë", "violin"), kedit.MEMIT(layers=[0, 1], v_num_grad_steps=3)
    edited.apply(model, [edit], moments=given, contexts=["{}"])
    weights = snapshot(model)
    again = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS)
    assert_same_weights(again.tensors, clean.tensors)
    assert holds(model, weights)


@pytest.mark.parametrize("kind", ["gpt2", "llama-bos"])
def test_a_text_beyond_the_models_length_counts_whole_in_windows(tiny_folder, kind):
    """128 positions. A window begins as a text does: with BOS, where the tokenizer puts one in front."""
    model = kedit.load_model(tiny_folder(kind), dtype=torch.float64)
    text, words = "The organ is old. " * 100, model.tokenizer
    begin = [words.bos_token_id] if kind == "llama-bos" else []
    ids, step = words(text, add_special_tokens=False).input_ids, 128 - len(begin)
    rows = [begin + ids[i : i + step] for i in range(0, len(ids), step)]
    k = recorded(model, rows, 0)
    moments = kedit.SecondMoments.estimate(model, [text], layers=[0])
    assert moments.about["tokens"] == len(k) == len(ids) + len(begin) * len(rows)
    assert torch.allclose(moments.tensors[0], second_moment(k), rtol=1e-12, atol=1e-15)
    assert kedit.SecondMoments.estimate(model, [text, *TEXTS], layers=[0], tokens=300).about["tokens"] == len(k)


@pytest.mark.parametrize("given", ["name", "jsonl", "rows", "table", "iterator"])
def test_texts_however_they_are_handed_over(model, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    texts = [text.strip() for text in TEXTS]
    (tmp_path / "wiki.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    forms = {
        "name": "wiki.txt",
        "jsonl": tmp_path / "wiki.jsonl",
        "rows": [{"text": t, "id": 1} for t in texts],
        "table": pd.DataFrame({"text": texts}),
        "iterator": iter(texts),
    }
    found = kedit.SecondMoments.estimate(model, forms[given], layers=[0])
    assert torch.equal(found.tensors[0], kedit.SecondMoments.estimate(model, texts, layers=[0]).tensors[0])


NO_TEXTS = [
    ("no-such.txt", "there is no file 'no-such.txt'"),
    (Path("no-such.txt"), "there is no file 'no-such.txt'"),
    ("owner/wikitext", "there is no file 'owner/wikitext'"),
    ([{"body": "The organ is old."}], "text 0 is not text ({'body': 'The organ"),
    ([7], "text 0 is not text (7)"),
    ([], "no texts"),
    (b"The organ", "bytes"),
]


def test_what_is_no_text_is_refused(model):
    estimate = kedit.SecondMoments.estimate
    for texts, says in NO_TEXTS:
        refused(lambda texts=texts: estimate(model, texts, layers=[0]), "moments", says)
    for wrong in (0, -5, 1.5, True):
        refused(lambda n=wrong: estimate(model, TEXTS, LAYERS, tokens=n), "tokens = ", "whole number of at least 1")


def test_too_few_tokens_are_a_warning_and_no_null_space(model):
    edits = [kedit.Edit(*tiny.EDITS[4])]
    with pytest.warns(match=f"{tiny.D_FF} directions"):
        moments = kedit.SecondMoments.estimate(model, TEXTS[:1], layers=[1])
    assert moments.about["tokens"] < tiny.D_FF
    alphaedit = kedit.AlphaEdit(layers=[1], nullspace_rank=9)
    with pytest.warns(match="directions"):
        refused(lambda: alphaedit.apply(model, edits, moments=moments), "null space", "rank", f"d_ff = {tiny.D_FF}")
    with pytest.warns(match="directions"), contextlib.suppress(kedit.KeditError):  # it may also be singular
        kedit.MEMIT(layers=[1]).apply(model, edits, moments=moments, contexts=["{}"])


def test_solving_is_multiplying_by_the_inverse_and_identity_tells_values_apart():
    C = tiny.second_moments()
    moments, k = kedit.SecondMoments.from_tensors(C), torch.randn(3, tiny.D_FF, dtype=torch.float64)
    expected = torch.linalg.solve(C[2].double(), k.T).T
    for _ in range(2):  # with and without the factor at hand
        assert torch.allclose(moments.solve(2, k), expected, rtol=1e-8)
    factor = moments.factor(2)
    assert factor.dtype == torch.float64
    assert torch.allclose(factor @ factor.T, C[2].double(), rtol=1e-10)
    other = {**C, 2: C[2] * 1.0001}
    given = (C, {**C}, dict(reversed(C.items())), other)
    identity = [kedit.SecondMoments.from_tensors(each).identity for each in given]
    assert identity[0] == identity[1] == identity[2] != identity[3]
    assert kedit.SecondMoments.from_tensors(C, model_checksum="a").identity != identity[0]


def test_saved_and_loaded(model, tmp_path):
    measured = kedit.SecondMoments.estimate(model, TEXTS, layers=LAYERS)
    for moments in (measured, kedit.SecondMoments.from_tensors(tiny.second_moments())):
        moments.save(tmp_path / "a" / "C.safetensors")
        again = kedit.SecondMoments.load(tmp_path / "a" / "C.safetensors")
        assert again.model_checksum == (model.checksum if moments is measured else None)
        assert (again.about, again.identity) == (moments.about, moments.identity)
        assert all(torch.equal(again.tensors[layer], c) for layer, c in moments.tensors.items())
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["C.safetensors"]


def test_the_cache(tiny_folder, model, tmp_path, monkeypatch):
    estimate = kedit.SecondMoments.estimate
    first = estimate(model, TEXTS, layers=LAYERS, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    assert sorted(load_file(path)) == ["layer0", "layer3"]
    # The key names windows only where a text is cut into some: what was cached before there were any is found.
    about = {"corpus": hashlib.sha256("\x00".join(TEXTS).encode()).hexdigest(), "texts": len(TEXTS)}
    about |= {"dtype": str(model.dtype), "layers": LAYERS}
    whole = json.dumps([model.checksum, model.setting, about], sort_keys=True)
    assert path.name == f"moments-{hashlib.sha256(whole.encode()).hexdigest()[:20]}.safetensors"

    with monkeypatch.context() as m:
        m.setattr("kedit_lib.editing.second_moments.trace", lambda *args, **named: pytest.fail("the model ran again"))
        again = estimate(kedit.load_model(tiny_folder("llama"), dtype=torch.float32), iter(TEXTS), LAYERS, tmp_path)
    assert again.identity == first.identity

    others = [(model, TEXTS[:-1], LAYERS), (model, TEXTS[::-1], LAYERS), (model, TEXTS, [0, 2])]
    for kind, dtype in (("llama", torch.float64), ("llama-bos", torch.float32)):
        others.append((kedit.load_model(tiny_folder(kind), dtype=dtype), TEXTS, LAYERS))
    for n, (of, texts, layers) in enumerate(others, 2):
        estimate(of, texts, layers, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == n

    path.write_bytes(path.read_bytes()[:-8])
    again = "cannot be read", "remove it and estimate again"
    refused(lambda: estimate(model, TEXTS, layers=LAYERS, cache=tmp_path), str(path), *again)


def test_a_token_budget_takes_the_first_texts(model, tmp_path):
    held = [len(model.tokenizer(text).input_ids) for text in TEXTS]
    budgeted = kedit.SecondMoments.estimate(model, TEXTS, LAYERS, cache=tmp_path, tokens=held[0] + 1)
    first_two = kedit.SecondMoments.estimate(model, TEXTS[:2], LAYERS)
    assert budgeted.about["tokens"] == held[0] + held[1]
    assert all(torch.equal(budgeted.tensors[layer], first_two.tensors[layer]) for layer in LAYERS)
    whole = kedit.SecondMoments.estimate(model, TEXTS, LAYERS, cache=tmp_path)  # not the cached one
    assert whole.about["tokens"] == sum(held)
    assert kedit.SecondMoments.estimate(model, TEXTS, LAYERS, tokens=10**9).about["tokens"] == sum(held)
