"""Answers scored under teacher forcing: the model is given the answer so far and asked for its next token. And which of
two answers it prefers: the scores ES, PS, NS, EM, PM, NM and S of CounterFact (Meng et al. 2022a)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import KeditError
from ..models.hooks import logits_at
from ..models.tokenization import encoded, targets_of


@dataclass(frozen=True)
class Forced:
    """One pass over n (prompt, answer) pairs; t_1 … t_|t| are an answer's tokens.

    log_probability  [n] float64: (1/|t|) Σ_j log p(t_j | prompt, t_<j), nats a token. Range ≤ 0
    tokens_right     [n] float64: token accuracy, (1/|t|) Σ_j [t_j is the argmax at its place], 0..1. Lenient: after a
                     wrong first token the model is given the right one, and long answers keep credit for endings that
                     follow from their beginnings. Source: `rewrite_acc` of EasyEdit (`test_prediction_acc`)
    said             n tuples of |t| ids: the argmax at each place of the answer; the first is what the model says next
    begun            n tuples of ids: how greedy decoding from the prompt begins. The answer's tokens as long as each
                     is the argmax, and the first argmax that is not its next token, or that stands after it
    """

    log_probability: Tensor
    tokens_right: Tensor
    said: tuple[tuple[int, ...], ...]
    begun: tuple[tuple[int, ...], ...]

    @property
    def probability(self) -> Tensor:
        """[n] the geometric mean of the token probabilities, exp(log_probability). Range 0..1. Source: ROME's and
        MEMIT's evaluation (`test_batch_prediction`), which compare answers by its logarithm."""
        return self.log_probability.exp()

    def at(self, indices) -> "Forced":
        """Some of the pairs, so that prompts of several kinds can share a pass."""
        i = list(indices)
        said, begun = (tuple(x[k] for k in i) for x in (self.said, self.begun))
        return Forced(self.log_probability[i], self.tokens_right[i], said, begun)


def teacher_forced(model, prompts: list[str], answers: list[str], separators: list[str | None] | None = None) -> Forced:
    """Score each answer after its prompt, all in batches of like length; separators as in `Edit` (None: derived).
    KeditError for an answer that the tokenizer cannot write, ValueError when there is not one answer a prompt."""
    targets = targets_of(model.tokenizer, prompts, answers, separators)
    for target in targets:
        if isinstance(target, KeditError):
            raise target
    return forced_ids(model, encoded(model.tokenizer, prompts), targets)


def compared(model, *two: tuple[list[str], list[str]]) -> tuple[Forced, Forced]:
    """Two times (prompts, answers), n of each, scored in one pass."""
    (prompts, wanted), (others, other) = two
    both, n = teacher_forced(model, [*prompts, *others], [*wanted, *other]), len(prompts)
    return both.at(range(n)), both.at(range(n, 2 * n))


def strict_accuracy(forced: Forced) -> Tensor:
    """[n] 1 where every token of the answer is the argmax, else 0. Source: ROME's `rewrite_prompts_correct`."""
    return (forced.tokens_right == 1).double()


def success(wanted: Forced, other: Forced) -> Tensor:
    """[n] 1 where the wanted answer is the more probable one, [p(wanted) > p(other)], else 0 (a tie or NaN too). p by
    the mean token log-probability, so that long answers do not lose for their length. ES: wanted new, other true, on
    the edit prompt; PS: the same on paraphrases; NS: wanted true, other new, on neighbors. Floor about ½."""
    return (wanted.log_probability > other.log_probability).double()


def magnitude(wanted: Forced, other: Forced) -> Tensor:
    """[n] p(wanted) − p(other), p the geometric mean over the answer's tokens: EM, PM and NM. Range −1..1, floor 0."""
    return wanted.probability - other.probability


def score(es: float, ps: float, ns: float) -> float:
    """S = 3 / (1/ES + 1/PS + 1/NS), the harmonic mean: 0 as soon as one of them is 0. Range 0..1; floor about ½."""
    return 3 / (1 / es + 1 / ps + 1 / ns) if min(es, ps, ns) > 0 else 0.0


@torch.no_grad()
def forced_ids(model, prompts: list[tuple[int, ...]], targets: list[tuple[int, ...]]) -> Forced:
    """`teacher_forced` of ids."""
    if not all(prompts):
        raise KeditError("prompt '': has no token, and the tokenizer puts none in front; give a text")
    found: list[tuple] = [()] * len(prompts)
    texts = [p + t for p, t in zip(prompts, targets, strict=True)]
    places = [range(len(p) - 1, len(text)) for p, text in zip(prompts, texts, strict=True)]
    for part, logits in logits_at(model, texts, places):
        guess, log_softmax = logits.argmax(-1), logits.log_softmax(-1)
        # The position after the answer is not scored; the answer's first token is a placeholder there.
        token = torch.tensor([t for i in part for t in (*targets[i], targets[i][0])], device=guess.device)
        each, lengths = log_softmax.gather(1, token[:, None])[:, 0].double().cpu(), [len(places[i]) for i in part]
        for i, p, says in zip(part, each.split(lengths), guess.cpu().split(lengths), strict=True):
            says = tuple(says.tolist())
            hits = [a == b for a, b in zip(says, targets[i], strict=False)]
            agreed = hits.index(False) if False in hits else len(hits)
            found[i] = p[:-1].mean(), sum(hits) / len(hits), says[:-1], says[: agreed + 1]
    log_p, right, said, begun = zip(*found, strict=True) if found else [()] * 4
    return Forced(torch.tensor(log_p, dtype=torch.float64), torch.tensor(right, dtype=torch.float64), said, begun)
