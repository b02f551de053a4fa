"""Single edits: the model's answers before and after one; and whether independent ones are healthy on this model."""

import random

import pandas as pd

from ..data.edit import Edit
from ..errors import check_editable, check_kind
from ..models.generation import complete
from .accuracy import generation_accuracy
from .teacher_forcing import teacher_forced


def ask(model, edit: Edit) -> pd.DataFrame:
    """Rows: the edit prompt, its paraphrases, its neighbors; what the model says, p of the new and the true object."""
    check_editable(model, "ask")
    check_kind("ask: edit", edit, Edit, "give one edit, kedit.Edit(prompt, subject, target_new)")
    kinds = {"edit": [edit.text], "paraphrase": edit.paraphrases, "neighbor": edit.neighborhood}
    table = pd.DataFrame([(kind, p) for kind, prompts in kinds.items() for p in prompts], columns=["", "prompt"])
    objects = {"p(new)": edit.target_new} | ({} if edit.target_true is None else {"p(true)": edit.target_true})
    prompts = table.prompt.tolist()
    table["says"] = complete(model.hf, model.tokenizer, prompts, answers=list(objects.values()))
    scored = teacher_forced(model, prompts * len(objects), [a for a in objects.values() for _ in prompts])
    table[list(objects)] = scored.probability.view(len(objects), -1).T.numpy()
    return table.set_index("").round(4)


def ask_table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The answers of `ask` before and after the edit, side by side."""
    columns = {"prompt": before.prompt, "said before": before.says, "says after": after.says}
    return pd.DataFrame({**columns, "p(new) before": before["p(new)"], "p(new) after": after["p(new)"]})


def single_edits(model, method, edits, moments, contexts, around, seed: int = 0, match: str = "exact") -> pd.DataFrame:
    """Each edit alone on the original weights: a row with shares of right answers by free generation. edit: its prompt
    gives the new object (0 or 1); templates: the other phrasings of the relation give it; near: facts of subjects that
    share a name part or the relation are still right; same_subject: so are the subject's other relations. Also what
    `interference` gives. around: (edit, rng) -> (prompt, answer) lists, near and same subject. match: `accuracy`'s."""
    rng, rows = random.Random(f"single-{seed}"), []
    for edit in edits:
        near, own = around(edit, rng)
        templates = [(prompt, edit.target_new) for prompt in edit.paraphrases]
        asked = {"edit": [(edit.text, edit.target_new)], "templates": templates, "near": near, "same_subject": own}
        prompts, answers = map(list, zip(*(pair for pairs in asked.values() for pair in pairs), strict=True))
        outcome = method.apply(model, [edit], moments=moments, contexts=contexts)
        right = iter(generation_accuracy(model, prompts, answers, match))
        model.restore()
        target = outcome.targets[0]
        shares = {name: pd.Series([next(right) for _ in of], dtype=float).mean() for name, of in asked.items()}
        row = {"method": method.name, "layers": "-".join(map(str, method.layers)), **shares}
        row |= {"probability_last": target.probabilities[-1], "steps": target.steps, "clamped": target.clamped}
        row |= {"interference": interference(model, outcome.deltas, moments), "relation": edit.relation}
        rows.append(row | {"prompt": edit.prompt} | {f"s_{i}": s[0].item() for i, s in outcome.s.items()})
    return pd.DataFrame(rows)


def interference(model, deltas: dict, moments) -> float:
    """Σ over edited layers of tr(Δ C Δᵀ) = E‖Δk‖² ≥ 0 over the text that C was measured on: how much an edit changes
    the layers' outputs on ordinary text, in squared units of the residual stream. ROME and MEMIT minimise it. Source:
    Meng et al. 2022, appendix A; Meng et al. 2023, eq. 10."""
    total = 0.0
    for layer in range(model.n_layers):
        if (delta := deltas.get(model.weight_name(layer))) is not None:
            delta = (delta.T if model.layout.transposed else delta).double().cpu()
            total += ((delta @ moments.tensors[layer].double().cpu()) * delta).sum().item()
    return total
