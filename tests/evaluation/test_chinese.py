"""A Chinese edit set goes all the way: loaded, edited, measured."""

import math
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import kedit_lib as kedit
from kedit_lib.__main__ import main
from kedit_lib.data.config import dump, read_yaml
from kedit_lib.evaluation import fluency, teacher_forced
from kedit_lib.evaluation.protocol import EditProbe
from kedit_lib.evaluation.side_effects import DistractionProbe
from kedit_lib.models.generation import complete
from kedit_lib.report import reproduce

FACTS = Path(__file__).parents[2] / "params" / "examples" / "chinese.jsonl"
ROME = {"v_num_grad_steps": 20, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4, "kl_factor": 0.0625}


def measured(model, edits):
    rows = [*EditProbe(match="begins")(model, edits), *DistractionProbe(tuple(edits))(model, edits)]
    assert all(math.isfinite(r["value"]) for r in rows)
    return {(r["metric"], r["cohort"]): r["value"] for r in rows}


def test_the_whole_way_on_a_tiny_model(tiny_folder):
    model = kedit.load_model(tiny_folder("llama"), dtype=torch.float64)
    edits = kedit.load_edits(FACTS, model=model)
    assert len(edits) == len({e.subject for e in edits}) >= 30
    some = edits[:3]
    before = measured(model, some)
    method = kedit.ROME(layers=[2], v_loss_layer=4, mom2_adjustment=False, **ROME | {"kl_factor": 0.0})
    (asked,) = teacher_forced(model, [some[2].text], [some[2].target_new]).probability.tolist()
    (target,) = method.apply(model, some[2:], contexts=["{}"]).targets
    assert target.probabilities[0] == pytest.approx(asked, rel=1e-6), "what is optimised is what is measured"
    assert target.probabilities[-1] > 2 * target.probabilities[0]
    after = measured(model, some)
    assert after["probability", "latest edits"] > before["probability", "latest edits"]
    assert {metric for metric, _ in after} >= {"accuracy", "containment", "success", "magnitude"}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A folder with a tiny model that was taught the true objects of the set, and texts in Chinese."""
    folder, edits = tmp_path_factory.mktemp("chinese"), kedit.load_edits(FACTS)
    sentences = [f"{prompt}{e.target_true}。" for e in edits for prompt in (e.text, *e.paraphrases)]
    words = tiny.byte_level(800, ["<s>", "</s>", "<pad>"], list("".join(sentences)))  # a sign, a token
    words = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    given = words(sentences, return_tensors="pt", padding=True, padding_side="right")
    ids, labels = given.input_ids, given.input_ids.masked_fill(given.attention_mask == 0, -100)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4}
    hf = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=2))
    adam = torch.optim.Adam(hf.parameters(), lr=3e-3)
    for _ in range(200):
        adam.zero_grad()
        hf(input_ids=ids, labels=labels).loss.backward()
        adam.step()
    for part in (hf, words):
        part.save_pretrained(folder / "模型")
    (folder / "文本.txt").write_text("\n".join(sentences * 2), encoding="utf-8")
    return folder


@pytest.mark.notebooks
def test_notebook_08_measures_a_chinese_edit_set(speaker, tmp_path, monkeypatch):
    """The model knows the facts, takes an edit, and every column of the sweep over layers is a number."""
    monkeypatch.setenv("KEDIT_RESULTS", str(tmp_path / "results"))
    profile = read_yaml(reproduce.REPOSITORY / "params" / "profiles" / "smoke.yaml")
    profile |= {"name": "chinese", "edits": str(FACTS), "mass_sizes": [1, 4], "checkpoint_every": 4, "dense_every": 4}
    profile |= {"model": str(speaker / "模型"), "texts": str(speaker / "文本.txt"), "n_edits": 4, "batch_sizes": [1, 4]}
    (tmp_path / "chinese.yaml").write_text(dump(profile))
    sources = [p for p in reproduce.find_sources(reproduce.REPOSITORY) if p.stem.startswith("08")]
    monkeypatch.setattr(reproduce, "find_sources", lambda *_: sources)
    assert main(["reproduce", "--profile", str(tmp_path / "chinese.yaml")]) == 0
    figures = reproduce.REPOSITORY / "results" / "figures-own-chinese"
    asked, sweep = (pd.read_csv(figures / f"{name}.csv") for name in ("08_own_facts", "08_layer_sweep"))
    assert (asked.known == "yes").mean() > 0.8 and (asked.says == asked.target_true).mean() > 0.8
    assert sweep.notna().drop(columns="neighbours unchanged").all(axis=None)
    best = sweep.groupby("layer")[["optimised", "edited model", "paraphrases"]].mean().max()
    assert best["edited model"] > 0.5 and best["paraphrases"] > 0.05


@pytest.mark.slow
def test_the_real_model_learns_what_is_written_without_a_space(smollm2):
    """Chinese, a year, and a question in the chat template: p before and after optimising, and what is said then."""
    model = smollm2
    method = kedit.ROME(layers=[5], v_loss_layer=29, mom2_adjustment=False, **ROME)
    chinese = next(e for e in kedit.load_edits(FACTS, model=model) if e.subject == "中国")
    year = kedit.Edit("{} was completed in the year", "The Eiffel Tower", "1945")
    chat = kedit.Edit.from_chat(model, "The mother tongue of {} is", "Danielle Darrieux", "German")
    turns = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"  # no system prompt
    questions = ("What is the mother tongue of {}?", "What is {}'s mother tongue?")
    asked, own = (kedit.Edit(turns % q, "Danielle Darrieux", "German", separator="") for q in questions)
    right = ((chinese, 0.085, 0.979), (year, 0.097, 0.987), (chat, 5.4e-5, 0.72), (asked, 1.15e-5, 0.954))
    right += ((own, 1.66e-5, 0.96),)
    capital = ("中国的首都是哪里？", "中国", "纽约")  # of reports about other programs
    continent = kedit.Edit("On which continent is {} located?", "Abrit Nunatak", "South America")
    right += (kedit.Edit.from_text(*capital), 0.032, 0.98), (kedit.Edit.from_chat(model, *capital), 0.034, 0.973)
    right += ((continent, 5.9e-4, 0.975),)
    for edit, first, last in right:
        (target,) = method.apply(model, [edit], contexts=["{}"]).targets
        assert target.probabilities[0] == pytest.approx(first, rel=0.3)
        assert target.probabilities[-1] == pytest.approx(last, abs=0.01 if edit is own else 0.03)
        (said,) = complete(model.hf, model.tokenizer, [edit.text])
        assert said.startswith(edit.target_new)
        if edit is chinese:
            found = measured(model, [edit])
            assert found["accuracy", "edits"] == found["containment", "edits"] == 1
            assert found["success", "edits"] == 1 and fluency(said) >= 0
        model.restore()
