"""Reading the golden numbers: what the authors' own programs computed on a tiny Llama, in the folder $KEDIT_GOLDEN.

Each case is a folder `<method>_<variant>_<batch>` with `case.json` (requests, every token id, losses) and
`tensors.safetensors`. Whatever cases the folder holds are tested; without the folder, the tests skip and say so.
"""

import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

FOLDER = Path(os.environ["KEDIT_GOLDEN"]) if os.environ.get("KEDIT_GOLDEN") else None
NEWER = FOLDER.parent / "golden-newer" if FOLDER and (FOLDER.parent / "golden-newer").is_dir() else None
MISSING = "KEDIT_GOLDEN does not name the folder of golden numbers"

# Relative errors that are attainable in float32, as measured by whoever recorded the numbers.
CLOSED_FORM = 1e-5  # ΔW from given z, K and C
CLOSED_FORM_ALPHAEDIT = 3e-5
CLOSED_FORM_ROME_WITH_C = 5e-4  # the authors invert C in float32
KEYS = 1e-5
TARGETS = 1e-4
END_TO_END = 1e-3
TRACE, TRACE_ABSOLUTE = 1e-4, 1e-6  # losses and probabilities of every step


def closed_form_tolerance(case):
    if case.method.endswith("rome") and case.hp.mom2_adjustment:
        return CLOSED_FORM_ROME_WITH_C
    return CLOSED_FORM_ALPHAEDIT if case.method == "alphaedit" else CLOSED_FORM


def each_case(*methods, newer=False):
    """Parametrise a test over the cases of these methods (all, if none is named)."""
    folder = NEWER if newer else FOLDER
    names = sorted(path.parent.name for path in folder.glob("*/case.json")) if folder else []
    chosen = [name for name in names if not methods or name.split("_")[0] in methods]
    why = f"{folder.name} has no case of {methods}" if folder else MISSING
    skipped = pytest.param(None, marks=pytest.mark.skip(reason=why), id="-")
    return pytest.mark.parametrize("case", [pytest.param(Case(name, folder), id=name) for name in chosen] or [skipped])


def relative(value, expected):
    """Distance in units of the expected length (of 1, where zero is expected)."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    assert value.shape == expected.shape, f"shape {tuple(value.shape)} is not {tuple(expected.shape)}"
    return float((value - expected).norm() / (expected.norm() or 1))


def assert_trace(values, expected):
    """Losses or probabilities of all steps, their number included."""
    assert len(values) == len(expected)
    assert [float(value) for value in values] == pytest.approx(expected, rel=TRACE, abs=TRACE_ABSOLUTE)


def assert_target(target, recorded):
    """z within its tolerance, and δ by the same distance: relative to z, or to itself where z was not recorded."""
    if recorded.z is not None:
        assert relative(target.z, recorded.z) <= TARGETS
    if recorded.delta is not None:
        longer = 1 if recorded.z is None else max(1.0, float(recorded.z.norm() / recorded.delta.norm()))
        assert relative(target.delta, recorded.delta) <= TARGETS * longer
    assert recorded.z is not None or recorded.delta is not None, "nothing was recorded"


def second_moments():
    return {int(name.removeprefix("layer")): C for name, C in load_file(FOLDER / "cov.safetensors").items()}


class Case:
    """One recorded case; nothing is read before it is asked for. The newer editors' are of the same model, C and
    contexts, in the folder `golden-newer` beside the first."""

    def __init__(self, name, folder):
        self.name, self.folder, self.method = name, folder, name.split("_")[0]

    @cached_property
    def record(self):
        return json.loads((self.folder / self.name / "case.json").read_text())

    @cached_property
    def tensors(self):
        return load_file(self.folder / self.name / "tensors.safetensors")

    @property
    def hp(self):
        return SimpleNamespace(**self.record["hparams"])

    @property
    def contexts(self):
        return self.record["contexts_flat"]

    @property
    def steps(self):
        return range(len(self.record["steps"]))

    @property
    def tokenizer_folder(self):
        return FOLDER / self.record["tokenizer"]["dir"]

    def requests(self, step):
        return self.record["steps"][step]["requests"]

    def edits(self, step, make=SimpleNamespace):
        return [
            make(prompt=r["prompt"], subject=r["subject"], target_new=r["target_new"].removeprefix(" "))
            for r in self.requests(step)
        ]

    def change(self, step, layer):
        """The recorded change of one layer's weights in one step."""
        return self.tensors[f"step{step}.layer{layer}.delta"]

    def changes_before(self, step):
        """{parameter name: what the steps before this one changed}."""
        names = {layer: f"model.layers.{layer}.mlp.down_proj.weight" for layer in self.hp.layers if step}
        return {name: sum(self.change(s, layer) for s in range(step)) for layer, name in names.items()}

    def save_model(self, folder):
        """A folder with the unedited model and the tokenizer of this case."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model, words = FOLDER / "model", self.tokenizer_folder
        parts = [model / name for name in ("config.json", "generation_config.json", "model.safetensors")]
        for path in (*parts, words / "tokenizer.json", words / "tokenizer_config.json"):
            shutil.copyfile(path, folder / path.name)
        return folder

    def target(self, step, index):
        """What was recorded of one optimisation: z and delta (None where it was not)."""
        found = {
            key.rsplit(".", 1)[1].removesuffix("_mlp"): value
            for key, value in self.tensors.items()
            if key.startswith(f"step{step}.req{index}.")
        }
        return SimpleNamespace(**{name: found.get(name) for name in ("z", "delta")})

    def __repr__(self):
        return self.name
