"""A Chinese edit set goes all the way: loaded, edited, measured."""

import math
from pathlib import Path

import pytest
import torch

import kedit_lib as kedit
from kedit_lib.evaluation import fluency, teacher_forced
from kedit_lib.evaluation.edit_probes import EditProbe
from kedit_lib.evaluation.side_effects import DistractionProbe
from kedit_lib.models.generation import complete

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


@pytest.mark.slow
def test_the_real_model_learns_what_is_written_without_a_space():
    """Chinese, a year, and a question in the chat template: p before and after optimising, and what is said then."""
    try:
        model = kedit.load_model("smollm2")
    except kedit.KeditError as error:
        pytest.skip(str(error))
    method = kedit.ROME(layers=[5], v_loss_layer=29, mom2_adjustment=False, **ROME)
    chinese = next(e for e in kedit.load_edits(FACTS, model=model) if e.subject == "中国")
    year = kedit.Edit("{} was completed in the year", "The Eiffel Tower", "1945")
    chat = kedit.Edit.from_chat(model, "The mother tongue of {} is", "Danielle Darrieux", "German")
    turns = "<|im_start|>user\nWhat is the mother tongue of {}?<|im_end|>\n<|im_start|>assistant\n"  # no system prompt
    asked = kedit.Edit(turns, "Danielle Darrieux", "German", separator="")
    right = ((chinese, 0.085, 0.979), (year, 0.097, 0.987), (chat, 5.4e-5, 0.72), (asked, 1.15e-5, 0.954))
    for edit, first, last in right:
        (target,) = method.apply(model, [edit], contexts=["{}"]).targets
        assert target.probabilities[0] == pytest.approx(first, rel=0.3)
        assert target.probabilities[-1] == pytest.approx(last, abs=0.03)
        (said,) = complete(model.hf, model.tokenizer, [edit.text])
        assert said.startswith(edit.target_new)
        if edit is chinese:
            found = measured(model, [edit])
            assert found["accuracy", "edits"] == found["containment", "edits"] == 1
            assert found["success", "edits"] == 1 and fluency(said) >= 0
        model.restore()
