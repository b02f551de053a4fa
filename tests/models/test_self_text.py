"""Text that a model wrote itself: seeded, kept, resumed, and never read back changed."""

import json

import pytest
import torch
from library import refused

import kedit_lib as kedit
from kedit_lib.models import self_text
from kedit_lib.models.self_text import self_texts, start_token, write_part

TOKENS = 9000


@pytest.fixture
def model(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    return kedit.load_model(tiny_folder("llama-bos"))


def kept(tmp_path):
    return sorted((tmp_path / "self-text").glob("*.json"))


@pytest.mark.slow
def test_a_part_is_the_models_own_distribution(model):
    """Over the first tokens of many documents: as often as the model's probabilities after the start token say."""
    part = write_part(model, seed=0, part=0)
    assert part == write_part(model, seed=0, part=0) != write_part(model, seed=0, part=1)
    assert 0 < part["tokens"] <= self_text.AT_ONCE * self_text.DOCUMENT
    counts, n = {}, 0
    with torch.no_grad():
        p = model.hf(input_ids=torch.tensor([[start_token(model.tokenizer)]])).logits[0, -1].softmax(-1)
    for seed in range(1, 7):
        for text in write_part(model, seed=seed, part=0)["texts"]:
            counts[text[:1]] = counts.get(text[:1], 0) + 1
            n += 1
    letters = {}
    for token, chance in enumerate(p.tolist()):
        letter = model.tokenizer.decode([token], skip_special_tokens=True).strip()[:1]
        letters[letter] = letters.get(letter, 0) + chance
    likely = max((letter for letter in letters if letter.isalpha()), key=letters.get)
    assert counts[likely] / n == pytest.approx(letters[likely], abs=4 * (letters[likely] / n) ** 0.5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_text(model, tmp_path, monkeypatch):
    whole = self_texts(model, TOKENS, progress=False)
    (path,) = kept(tmp_path)
    about = json.loads(path.read_text())
    assert about["recipe"]["model"] == model.checksum and about["tokens"] >= TOKENS
    assert self_texts(model, TOKENS, progress=False) == whole
    path.unlink()
    made, parts = [], self_text.write_part

    def write_one(model, seed, part):
        if made:
            raise KeyboardInterrupt
        made.append(part)
        return parts(model, seed, part)

    monkeypatch.setattr(self_text, "write_part", write_one)
    with pytest.raises(KeyboardInterrupt):
        self_texts(model, TOKENS, progress=False)
    assert kept(tmp_path) == []
    monkeypatch.setattr(self_text, "write_part", parts)
    assert self_texts(model, TOKENS, progress=False) == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_changed_text_is_refused(model, tmp_path):
    self_texts(model, 100, progress=False)
    (path,) = kept(tmp_path)
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "texts": about["texts"][1:]}))
    refused(lambda: self_texts(model, 100, progress=False), "checksum mismatch", "remove it")
