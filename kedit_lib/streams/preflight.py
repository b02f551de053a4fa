"""Whether a model can be edited on this machine, where, and what that will cost."""

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from ..data.config import LAB_MODELS, Profile, load_model_params, load_profile, streams_of
from ..data.edit import Edit, check_edits
from ..editing import ROME, method_class
from ..editing.compute_k import STARTERS, STYLES, generate_contexts
from ..editing.transfer import propose, write_proposal
from ..errors import KeditError, check_editable
from ..evaluation import known_edits, teacher_forced
from ..models.causal_trace import causal_trace
from ..models.loading import load_model
from ..models.model import EditableModel
from ..models.tokenization import check_edit, encode
from .edit_sets import load_edits, read_edits

TRACED, SAMPLES = 5, 3  # known facts that are traced, and noises for each
LAYER_EDITS = 20  # that the notebook on one's own model makes, at several layers


def check_model(model, edits=None, profile: str | Profile | None = None, write: bool = True) -> pd.DataFrame:
    """A table (index: what; column: value): what a model is, what one edit of it does and costs, where to edit, and the
    minutes that the notebooks would take. The weights are the ones at entry afterwards. model: an EditableModel, or
    what `load_model` takes. edits: Edits with target_true, of facts that the model may know; they are traced, and the
    first known one is tried (None: the lab's own for a lab model, else a few that most models know). profile: the run
    that minutes are estimated for (None: "lab" for a lab model, else "gpu"). write: the proposal becomes
    results/models/<name>.yaml; a model that has a file keeps it. KeditError for an unknown layout or tokenizer."""
    return check(model, edits, profile, write).table


def check(model, edits=None, profile: str | Profile | None = None, write: bool = True) -> SimpleNamespace:
    """`check_model` with what its table is made of: table; effect, of `causal_trace` at the subject's last token over
    `traced` facts (empty: it knows none that was asked); proposed layers rome and memit; path of the model's parameter
    file, if any; seconds, before, after (p(new), 0..1) and restored, of the edit that was made and taken back."""
    if isinstance(model, torch.nn.Module):
        check_editable(model, "check_model")
    model = model if isinstance(model, EditableModel) else load_model(model)
    if not isinstance(profile, Profile):
        profile = load_profile(profile or ("lab" if model.name in LAB_MODELS else "gpu"))
    given = check_edits(_own_edits(model) if edits is None else edits, "check_model")
    for edit in given:
        check_edit(model.tokenizer, edit)
    with model.temporarily():
        begin = time.perf_counter()
        known, _ = known_edits(model, given)
        seconds_asking = (time.perf_counter() - begin) / len(given)
        facts = [(e.prompt, e.subject, e.target_true) for e in known[:TRACED]]
        effect = causal_trace(model, facts, samples=SAMPLES, places=("last subject token",)) if facts else None
        sections, tried = propose(model, effect), (known or given)[0]
        rome, memit = (sections[name]["layers"] for name in ("rome", "memit"))
        trial = try_edit(model, tried, rome)
    why = f"causal tracing of {len(facts)} facts that it knows" if facts else "Llama-2-7B's depth; no fact to trace"
    path = write_proposal(model.name, sections, why) if write else None
    weights = sum(p.nbytes for p in model.hf.parameters())
    # Editing keeps W₀ and W's sum for each edited layer, C and its factor.
    kept = model.d_model * model.d_ff * (model.weight(0).element_size() + 4) + model.d_ff**2 * 12
    rows = _recognised(model) | {
        "memory, GiB: weights, while editing": f"{weights / 2**30:.2g}, {(weights + len(memit) * kept) / 2**30:.2g}",
        "facts it knows, of those asked": f"{len(known)} of {len(given)}",
        "one edit, by ROME with C off": f"{tried.text} {tried.target_new}",
        "p(new) before and after, edited model": f"{trial['before']:.3g}, {trial['after']:.3g}",
        "seconds for it": roughly(trial["seconds"], 0.1),
        "restored bit for bit": "yes" if trial["restored"] else "NO",
        "layers by": why,
        "proposed layer, ROME": str(rome)[1:-1],
        "proposed layers, MEMIT": str(memit)[1:-1],
        "proposed λ": sections["memit"]["mom2_update_weight"],
    }
    if path is not None:
        rows["parameters in use"] = "/".join(path.parts[-3:])
        rows["layers in use, MEMIT"] = str(load_model_params(model.name)["memit"]["layers"])[1:-1]
    full = trial["seconds"] * trial["most"] / trial["steps"]
    minutes = live_minutes(profile, full, seconds_asking)
    rows[f"minutes, all notebooks ({profile.name})"] = roughly(minutes, 1)
    table = pd.DataFrame({"value": rows}).rename_axis("what")
    effect = pd.DataFrame(columns=["place", "layer", "effect"]) if effect is None else effect
    return SimpleNamespace(table=table, effect=effect, traced=len(facts), rome=rome, memit=memit, path=path, **trial)


def try_edit(model, edit: Edit, layers: list[int]) -> dict:
    """One edit by ROME without C, over as many contexts as MEMIT has, and taken back."""
    method, asked = ROME(layers=layers, mom2_adjustment=False), ([edit.text], [edit.target_new])
    contexts = generate_contexts(model, style=method_class("memit").context_style)
    was = [model.weight(layer).detach().clone() for layer in layers]
    before = teacher_forced(model, *asked).probability.item()
    with model.temporarily():
        begin = time.perf_counter()
        (target,) = method.apply(model, [edit], contexts=contexts).targets
        seconds = time.perf_counter() - begin
        after = teacher_forced(model, *asked).probability.item()
    restored = all(torch.equal(w, model.weight(layer)) for w, layer in zip(was, layers, strict=True))
    found = {"seconds": seconds, "steps": target.steps, "most": method.v_num_grad_steps}
    return found | {"before": before, "after": after, "restored": restored}


def live_minutes(profile: Profile, seconds_an_edit: float, seconds_a_question: float) -> float:
    """Minutes of one process for what the notebooks run live: streams, with untouched facts, and single edits. An edit
    takes seconds_an_edit over MEMIT's contexts, and over ROME's as much more as there are more prompts."""
    asked = (1 + profile.n_edits / profile.checkpoint_every) * profile.untouched * seconds_a_question
    prompts = {style: 2 + len(STARTERS) * sum(n for n, _ in how) for style, how in STYLES.items()}  # clean and KL, too
    styles = [method_class(stream.method).context_style for stream in streams_of(profile).values()]
    edits = profile.n_edits * seconds_an_edit * sum(prompts[style] / prompts["memit"] for style in styles)
    alone = 1 + LAYER_EDITS + 3 * profile.n_single + sum(profile.mass_sizes)
    return (len(profile.live_orders) * (edits + len(styles) * asked) + alone * seconds_an_edit) / 60


def roughly(value: float, least: float) -> str:
    """ "about" the nearest of 1, 2 and 5 times a power of ten, so that a committed table is the same after each run."""
    if value < least:
        return f"< {least:g}"
    unit = 10.0 ** math.floor(math.log10(value))
    return f"about {min((unit, 2 * unit, 5 * unit, 10 * unit), key=lambda step: abs(math.log(step / value))):g}"


def _own_edits(model) -> list[Edit]:
    if model.name in LAB_MODELS:
        return load_edits("lab", model=model, limit=2 * TRACED)
    writable, _ = read_edits(Path(__file__).with_name("well_known.csv"), model)
    if not writable:
        raise KeditError(f"check_model: {model.name} can write none of the well-known facts; pass edits it may know")
    return writable


def _recognised(model) -> dict:
    tokenizer, mlp_norm = model.tokenizer, model.layout.mlp_norm
    begins = tokenizer.bos_token_id in encode(tokenizer, "The capital of France is")[:1]
    return {
        "model": model.name,
        "family": model.hf.config.model_type,
        "layers": model.n_layers,
        "d_model, d_ff": f"{model.d_model}, {model.d_ff}",
        "norm behind the MLP": f"{mlp_norm}: ROME, PMET and FT only" if mlp_norm else "none",
        "tokens, embeddings": f"{len(tokenizer)}, {model.hf.get_input_embeddings().num_embeddings}",
        "begin of text": f"{tokenizer.bos_token}, put in front" if begins else "none in front",
        "dtype, device": f"{str(model.dtype).removeprefix('torch.')}, {model.device}",
        "parameters, millions": round(model.hf.num_parameters() / 1e6, 1),
    }
