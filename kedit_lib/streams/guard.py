"""A guard for edit sequences: known facts are asked again while edits are made, and a sequential test says when too
many of them are lost.

    guard = kedit.CollapseGuard(canaries)            # (prompt, answer) pairs or edits that nobody makes
    run = kedit.run_stream(model, edits, method, guard=guard)            # warns, stops, rolls back, or writes one batch
    guard.check(model)                               # after each edit of any other tool's loop

**The test.** Each look asks `looks_at` canaries drawn anew from those that the unedited model knows. x = 1 for one that
is lost. While the share of lost facts is at most `tolerated` (τ), the product of the likelihood ratios

    L = Π (q/τ)^x ((1 − q)/(1 − τ))^(1 − x),        q > τ the share that is to be noticed

over the looks from any start on is a supermartingale, and so is the mixture Σⱼ Πᵢ≥ⱼ Lᵢ / j(j + 1) over all starts j. By
Ville's inequality it ever exceeds 1/α with probability at most α: the false-alarm rate holds over all looks together,
however many there are (Shin, Ramdas and Rinaldo 2022, arXiv 2203.03532; Ramdas et al. 2023, arXiv 2210.01948).
"""

from __future__ import annotations

import random
import warnings
from dataclasses import asdict, dataclass, field
from math import log10

import torch

from ..errors import KeditError
from ..models.tokenization import encode, target_ids

ACTIONS = ("warn", "stop", "roll back", "batch")
SURE = 0.5  # least probability of a continuation that the model itself supplies as a canary


class Collapsing(UserWarning):
    """The guard's alarm."""


@dataclass(frozen=True)
class Reading:
    """One look. evidence: log10 of the e-value; alarm: it has exceeded 1/α, now or before."""

    edits: int
    right: int
    asked: int
    evidence: float
    alarm: bool

    def __str__(self) -> str:
        seen = f"{self.right} of {self.asked} known facts still right after {self.edits} edits"
        return f"{seen}, evidence 10^{self.evidence:.1f}"

    @classmethod
    def of(cls, edits: int, right: int, asked: int, e_value: float, alarm: bool) -> Reading:
        return cls(edits, right, asked, log10(max(e_value, 1e-300)), alarm)


@dataclass
class CollapseGuard:
    """Known facts asked again, and when to say stop.

    canaries   (prompt, answer) pairs, or edits (their true object is the answer), that no edit of the sequence makes;
               None: continuations that the model itself is sure of, of its own sampled text
    every      edits between two looks in `run_stream`;  looks_at: canaries a look
    tolerated  τ, share of lost facts that is no alarm;  noticed: q, a share that is to be noticed soon
    alpha      the chance of ever raising an alarm while no more than τ is lost
    action     of run_stream at the alarm: "warn", "stop", "roll back" to the last look without evidence, or the rest in
               one "batch" from there
    """

    canaries: list | None = None
    every: int = 5
    looks_at: int = 40
    tolerated: float = 0.15
    noticed: float = 0.35
    alpha: float = 0.05
    action: str = "warn"
    seed: int = 0
    readings: list[Reading] = field(default_factory=list)
    _known: list | None = None
    _mixture: float = 0.0

    def __post_init__(self):
        if not 0 < self.tolerated < self.noticed < 1 or not 0 < self.alpha < 1:
            raise KeditError("guard: needs 0 < tolerated < noticed < 1 and 0 < alpha < 1")
        if self.action not in ACTIONS:
            raise KeditError(f"guard: action = {self.action!r}; use one of {', '.join(ACTIONS)}")
        if self.every < 1 or self.looks_at < 1:
            raise KeditError("guard: every and looks_at must be at least 1")

    @property
    def alarm(self) -> bool:
        return bool(self.readings) and self.readings[-1].alarm

    def start(self, model, tokenizer=None) -> int:
        """Keep the canaries that this model, still unedited, says; how many. KeditError when there are too few."""
        pairs = own_canaries(model, tokenizer, 4 * self.looks_at, self.seed) if self.canaries is None else self.canaries
        pairs = [p if isinstance(p, tuple) else (p.text, p.target_true) for p in pairs]
        rows = [_row(model, tokenizer, *pair) for pair in pairs if pair[1] is not None]
        self._known = [row for row, right in zip(rows, _says(model, rows), strict=True) if right]
        if len(self._known) < 10:
            raise KeditError(f"guard: the model knows {len(self._known)} of {len(pairs)} canaries; give facts it knows")
        return len(self._known)

    def check(self, model, edits: int | None = None, tokenizer=None) -> Reading:
        """Look once. model: an EditableModel, or a transformers model with its tokenizer; edits: made so far (None: one
        more than at the last look). The first look of an unstarted guard takes the model as the unedited one."""
        if self._known is None:
            self.start(model, tokenizer)
        look = len(self.readings) + 1
        edits = (self.readings[-1].edits if self.readings else -1) + 1 if edits is None else edits
        asked = random.Random(f"{self.seed}-{look}").sample(self._known, min(self.looks_at, len(self._known)))
        right = sum(_says(model, asked))
        e_value = self.weigh(len(asked) - right, len(asked))
        reading = Reading.of(edits, right, len(asked), e_value, self.alarm or e_value >= 1 / self.alpha)
        if reading.alarm and not self.alarm:
            warnings.warn(f"guard: {reading}; the model is losing what no edit names", Collapsing, stacklevel=2)
        self.readings.append(reading)
        return reading

    def weigh(self, lost: int, asked: int) -> float:
        """The e-value after a further look that lost so many: the mixture over all starts, Σⱼ Πᵢ≥ⱼ Lᵢ / j(j + 1)."""
        look = len(self.readings) + 1
        ratio = (self.noticed / self.tolerated) ** lost
        ratio *= ((1 - self.noticed) / (1 - self.tolerated)) ** (asked - lost)
        self._mixture = min((self._mixture + 1 / (look * (look + 1))) * ratio, 1e300)
        return self._mixture

    @property
    def identity(self) -> list:
        """What decides the numbers of a guarded stream."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("readings", "canaries", "_known", "_mixture")}
        return [settings, None if self.canaries is None else list(map(repr, self.canaries))]

    def state(self) -> dict:
        """Plain data for a checkpoint."""
        return {"readings": [asdict(r) for r in self.readings], "mixture": self._mixture, "known": self._known}

    def resume(self, state: dict) -> None:
        self.readings = [Reading(**r) for r in state["readings"]]
        self._mixture = state["mixture"]
        self._known = state["known"] and [tuple(map(tuple, row)) for row in state["known"]]


def alarms_at(lost: list[tuple[int, int, int]], **settings) -> int | None:
    """The edit at which a guard would have raised its alarm over looks (edits, lost, asked); None: at none."""
    guard = CollapseGuard([], **settings)
    for edits, some, asked in lost:
        e_value = guard.weigh(some, asked)
        guard.readings.append(Reading.of(edits, asked - some, asked, e_value, e_value >= 1 / guard.alpha))
        if guard.alarm:
            return edits
    return None


def own_canaries(model, tokenizer, n: int, seed: int) -> list[tuple[str, str]]:
    """n (text, next word) pairs of text that the model samples itself, where it is sure of the word."""
    hf, tokenizer = _parts(model, tokenizer)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise KeditError("guard: the tokenizer has no start token to sample from; give canaries")
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(20):
            ids = torch.full((16, 1), start, device=hf.device)
            said = hf.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=24, pad_token_id=start
            )
            p = hf(said).logits.softmax(-1)
            for row, chances in zip(said, p, strict=True):
                for at in range(8, len(row) - 1):
                    best = chances[at].max(-1)
                    word = tokenizer.decode(best.indices)
                    if best.values > SURE and word.startswith(" ") and word.strip().isalpha():
                        found.append((tokenizer.decode(row[1 : at + 1]), word.strip()))
                        break
            if len(found) >= n:
                return found[:n]
    return found


def _parts(model, tokenizer):
    hf = getattr(model, "hf", model)
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise KeditError("guard: a transformers model comes without its tokenizer; pass tokenizer=")
    return hf, tokenizer


def _row(model, tokenizer, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt ids, answer ids)"""
    _, tokenizer = _parts(model, tokenizer)
    return tuple(encode(tokenizer, prompt)), tuple(target_ids(tokenizer, prompt, answer))


@torch.no_grad()
def _says(model, rows) -> list[bool]:
    """Whether every token of the answer is the model's own choice, row by row; one padded pass."""
    if not rows:
        return []
    hf = getattr(model, "hf", model)
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=hf.device)
    mask = torch.zeros_like(ids)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        mask[i, : len(prompt) + len(answer)] = 1
    best = hf(ids, attention_mask=mask).logits.argmax(-1)
    ends = [(len(prompt) - 1, len(prompt) + len(answer) - 1) for prompt, answer in rows]
    return [
        tuple(best[i, a:b].tolist()) == answer for i, ((a, b), (_, answer)) in enumerate(zip(ends, rows, strict=True))
    ]
