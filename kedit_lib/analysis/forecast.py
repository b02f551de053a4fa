"""How many single edits a model will bear, forecast before the first one from a few edits made apart.

What edits do to another subject adds up like a random walk (notebook 06), so N_model needs no stream:

    spills   n edits, each made on the unedited model, move the state h of each stranger u, after the last edited layer
             at the subject's last token, by a_ju = ‖h_j(u) − h(u)‖² / ‖h(u)‖²
    bearing  the sum of the n updates, stretched more and more: at which shift θ is half of the strangers' facts lost?
    walk     after N edits a stranger's squared shift is a sum of N of the a's; N_model is where its median is θ²
"""

import math
import warnings

import numpy as np
import torch

from ..editing.compute_k import outputs_at, prompts_of
from ..editing.compute_z import Doubtful
from ..errors import KeditError
from ..evaluation import generation_accuracy

STRETCH = tuple(2.0**i for i in range(-2, 7))  # factors on the sum of the updates
WALKERS, FURTHEST = 1000, 3000  # simulated strangers; edits beyond which nothing is foretold


def foretell(
    model, method, edits, strangers, moments=None, contexts=None, seed: int = 0, match: str = "exact"
) -> dict[str, float]:
    """Forecast N_model from a few edits made apart: {"N" (inf: beyond FURTHEST edits), "theta": θ, "spill": mean a}.
    edits: a sample. strangers: (prompt with {}, subject, answer) of facts that no edit touches and the unedited model
    knows. match: as in `generation_accuracy`; "begins" for models that write on. Afterwards the weights are those at
    entry. KeditError without edits or strangers, or if the method writes no weights."""
    if not edits or not strangers:
        raise KeditError("foretell: needs at least one edit and one unrelated fact; give both")
    prompts = prompts_of(model, strangers)
    asked, answers = [p.replace("{}", s) for p, s, _ in strangers], [answer for *_, answer in strangers]
    above, total, spills = model.layers[max(method.layers)], {}, []
    with model.temporarily(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Doubtful)
        unedited = outputs_at(model, prompts, above)

        def shift() -> torch.Tensor:
            return (outputs_at(model, prompts, above) - unedited).norm(dim=1) / unedited.norm(dim=1)

        for edit in edits:
            outcome = method.apply(model, [edit], moments=moments, contexts=contexts)
            spills.append(shift().square())
            model.restore()
            for name, delta in outcome.deltas.items():
                total[name] = total.get(name, 0) + delta
        if not total:
            raise KeditError(f"foretell: {method.name} writes no weights, so nothing adds up; run it and ask the model")
        shifts, right = [], []
        for factor in STRETCH:
            model.add({name: factor * delta for name, delta in total.items()})
            shifts.append(shift())
            right += generation_accuracy(model, asked, answers, match)
            model.restore()
    theta = _bearing(torch.cat(shifts).cpu().numpy(), np.array(right, dtype=bool))
    pool = torch.stack(spills).flatten().double().cpu().numpy()
    return {"N": _walk(pool, theta, seed), "theta": theta, "spill": float(pool.mean())}


def _bearing(shift: np.ndarray, right: np.ndarray) -> float:
    """θ that best tells the lost from the kept: the fewest facts are kept beyond it or lost below it."""
    order = np.argsort(shift)
    shift, right = shift[order], right[order]
    cut = int(np.argmin(np.cumsum([0, *np.where(right, -1, 1)])))  # below a cut a lost fact counts 1, a kept one −1
    if cut == 0:
        return float(shift[0])
    return math.inf if cut == len(shift) else float(np.sqrt(shift[cut - 1] * shift[cut]))


def _walk(pool: np.ndarray, theta: float, seed: int) -> float:
    """The first N at which the median of sums of N draws from the pool exceeds θ²."""
    sums = np.random.default_rng(seed).choice(pool, (FURTHEST, WALKERS)).cumsum(axis=0)
    beyond = np.median(sums, axis=1) > theta**2
    return float(beyond.argmax() + 1) if beyond.any() else math.inf
