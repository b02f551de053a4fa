"""A guard for edit sequences: it asks known facts again between edits, and a sequential test raises the alarm.

    guard = kedit.CollapseGuard(canaries)
    run = kedit.run_stream(model, edits, method, guard=guard)  # or guard.check(model, tokenizer=…) in any loop

A look asks `looks_at` canaries, drawn anew; x = 1 for a lost one. While at most a share τ (`tolerated`) is lost,
L = Π (q/τ)^x ((1 − q)/(1 − τ))^(1 − x) from any look on is a supermartingale (q: `noticed`), and so is the mixture
Σⱼ Πᵢ≥ⱼ Lᵢ / j(j + 1) over all starts j. By Ville's inequality it ever exceeds 1/α with probability at most α, over all
looks together (Shin, Ramdas and Rinaldo 2022, arXiv 2203.03532; Ramdas et al. 2023, arXiv 2210.01948). The alarm then
waits until a line through the looks since half of the edits reaches one half lost in the next `within` edits: never
before the test's, so the rate holds.

A model can die within ten edits, too fast for looks five edits apart. ‖v₀‖, from which each edit starts, grows first:
while its median over SPAN edits is `swelling` times the first, there is a look after every edit, and evidence is an
alarm without the wait. Growth alone is none: other words change ‖v₀‖, too. 2.5, τ, q and `within` were chosen on half
of the stored sequences and are judged on the other half (notebook 11).
"""

import math
import random
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import linear_regression, median

import torch
from pydantic import TypeAdapter, ValidationError

from ..data.edit import Edit, Pair
from ..errors import KeditError, explained
from ..models.hooks import pad
from ..models.tokenization import encode, target_ids

PAIR = TypeAdapter(Pair)
BACK = ("roll back", "batch")  # actions that go back to the last healthy look
ACTIONS = ("warn", "stop", *BACK)
DEAD = 0.5  # share of lost facts at which a model counts as dead
SPAN = 5  # edits in the medians of ‖v₀‖
MISUSE = AttributeError, KeyError, TypeError  # raised for a probe that is none
SURE = 0.5  # least probability of a continuation that the model itself supplies as a canary


class Collapsing(UserWarning):
    """The guard's alarm."""


@dataclass
class Reading:
    """One look. evidence: log10 of the e-value; alarm: raised now or before; seconds: that the look took; told: what
    the guard's probes found, and the growth of ‖v₀‖ where it is `swelling` or more."""

    edits: int
    right: int
    asked: int
    evidence: float
    alarm: bool
    seconds: float = field(default=0.0, compare=False)
    told: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        seen = f"{self.right} of {self.asked} known facts still right after {self.edits} edits"
        told = "".join(f", {what} {value:.3g}" for what, value in self.told.items())
        return f"{seen}, evidence 10^{self.evidence:.1f}{told}"


@dataclass
class CollapseGuard:
    """Asks known facts again while edits are made, and raises an alarm when too many are lost.

    canaries: (prompt, answer) pairs, or edits (their true object is the answer), that no edit of the sequence makes;
    None: continuations that the model itself is sure of, of its own sampled text. looks_at: canaries a look. every:
    edits between two looks in `run_stream`. tolerated: τ, a share of lost facts that is no alarm. noticed: q, a share
    that is to be noticed soon. alpha: the chance of ever raising an alarm while no more than τ is lost. within:
    edits; no alarm before half of the facts will be lost so soon (None: on the evidence alone). swelling: growth of
    ‖v₀‖ at which there is a look after every edit and no such wait, in `run_stream` or after `due` (None: at none).
    action of `run_stream` at the alarm: "warn", "stop", "roll back" to the last look without evidence, or from there
    the rest in one "batch". Not part of the test: probes (as of `run_stream`), and foretold (N of `kedit.foretell`).
    """

    canaries: list | None = None
    every: int = 5
    looks_at: int = 40
    tolerated: float = 0.1
    noticed: float = 0.2
    alpha: float = 0.05
    within: int | None = 80
    swelling: float | None = 2.5
    action: str = "warn"
    seed: int = 0
    probes: Sequence = ()
    foretold: float | None = None
    readings: list[Reading] = field(default_factory=list, init=False)
    _known: list | None = field(default=None, init=False)
    _mixture: float = field(default=0.0, init=False)
    _norms: list[float] = field(default_factory=list, init=False)

    def __post_init__(self):
        n = {name: x if isinstance(x, (int, float)) else math.nan for name, x in vars(self).items()}
        fits = {
            "action": self.action in ACTIONS,
            "seed": isinstance(self.seed, int),
            "noticed": n["noticed"] < 1,
            "tolerated": 0 < n["tolerated"] < n["noticed"],
            "alpha": 0 < n["alpha"] < 1,
            "within": self.within is None or n["within"] >= 1,
            "swelling": self.swelling is None or n["swelling"] > 1,
            "foretold": self.foretold is None or n["foretold"] > 0,
            "probes": isinstance(self.probes, Sequence) and all(map(callable, self.probes)),
            **{name: isinstance(n[name], int) and n[name] >= 1 for name in ("every", "looks_at")},
        }
        if outside := [name for name, holds in fits.items() if not holds]:
            rule = "0 < tolerated < noticed < 1, 0 < alpha < 1 < swelling, foretold > 0, every, looks_at, within ≥ 1"
            own = {"action": f"use one of {', '.join(ACTIONS)}", "probes": "give a list of probes, as of run_stream"}
            rule = own.get(outside[0], f"needed are {rule}, a whole seed")
            raise KeditError(f"guard: {outside[0]} = {getattr(self, outside[0])!r}; {rule}")
        if self.canaries is not None:
            self.canaries = list(self.canaries) if isinstance(self.canaries, Iterable) else [self.canaries]
            for i, canary in enumerate(self.canaries):
                try:
                    self.canaries[i] = canary if isinstance(canary, Edit) else PAIR.validate_python(canary)
                except ValidationError:
                    pairs = "give (prompt, answer) pairs of text, or edits (kedit.load_edits)"
                    raise KeditError(f"guard: canary {canary!r:.60} is none; {pairs}") from None

    def __str__(self) -> str:
        if not self.readings:
            return "has not looked yet"
        alarm = next((f"alarm: {r}" for r in self.readings if r.alarm), f"no alarm: {self.readings[-1]}")
        if self.foretold is not None:
            end = self.readings[-1].edits + self.edits_left()
            alarm += f"; half lost after {end:.0f} edits by the looks, after {self.foretold:.0f} as foretold"
        return f"{alarm} ({len(self.readings)} looks, {sum(r.seconds for r in self.readings):.1f} s)"

    @property
    def alarm(self) -> bool:
        return self.readings != [] and self.readings[-1].alarm

    @property
    def doubts(self) -> bool:
        """Whether the evidence of the last look is enough for an alarm."""
        return self.readings != [] and self.readings[-1].evidence >= -math.log10(self.alpha)

    @property
    def swollen(self) -> float:
        """‖v₀‖ as a multiple of what it was at first, where that is `swelling` or more; else 0."""
        first, last = (median(few or [0.0]) for few in (self._norms[:SPAN], self._norms[-SPAN:]))
        return last / first if first and last >= (self.swelling or math.inf) * first else 0.0

    def due(self, edits: int, norms=()) -> bool:
        """Whether to look after so many edits. norms: ‖v₀‖ of each of them (NaN: not known)."""
        self._norms = [n for n in norms if n == n]
        return self.swollen > 0 or not self.readings or edits - self.readings[-1].edits >= self.every

    def start(self, model, tokenizer=None) -> int:
        """Begin anew: keep the canaries that this model, still unedited, says; how many. KeditError when too few."""
        hf, tokenizer = _whom(model, tokenizer)
        given = own_canaries(hf, tokenizer, 4 * self.looks_at, self.seed) if self.canaries is None else self.canaries
        self.readings, self._mixture, self._norms = [], 0.0, []
        pairs = [one if isinstance(one, tuple) else (one.text, one.target_true) for one in given]
        pairs = [[prompt, answer] for prompt, answer in pairs if answer is not None]
        self._known = [pair for pair, right in zip(pairs, _says(hf, tokenizer, pairs), strict=True) if right]
        if len(self._known) < 10:
            raise KeditError(f"guard: the model knows {len(self._known)} of {len(pairs)} canaries; give facts it knows")
        return len(self._known)

    def check(self, model, edits: int | None = None, tokenizer=None, made=()) -> Reading:
        """Look once. model: an EditableModel, or a causal language model of transformers, which needs tokenizer= at
        each look; edits: how many are made by now (None: one more than at the last look); made: they themselves, for
        the probes. The first look of an unstarted guard takes the model as the unedited one."""
        begin = time.perf_counter()
        if self._known is None:
            self.start(model, tokenizer)
        before, looks, last = self.alarm, len(self.readings), self.readings[-1].edits if self.readings else -1
        edits = last + 1 if edits is None else edits
        if not isinstance(edits, int) or edits < max(0, last):
            raise KeditError(f"guard: edits = {edits!r}; give how many are made by now, {max(0, last)} or more")
        asked = random.Random(f"{self.seed}-{looks + 1}").sample(self._known, min(self.looks_at, len(self._known)))
        lost = len(asked) - sum(_says(*_whom(model, tokenizer), asked))
        asks = [getattr(probe, "brief", probe) if made else probe for probe in self.probes]
        with explained("guard: a probe failed", "give such as of run_stream", lambda error: isinstance(error, MISUSE)):
            told = {f"{r['metric']} on {r['cohort']}": r["value"] for ask in asks for r in ask(model, made)}
        reading = self.judge(edits, lost, len(asked), time.perf_counter() - begin)
        reading.told |= told
        if reading.alarm and not before:
            warnings.warn(f"guard: {reading}; the model is losing unrelated facts", Collapsing, stacklevel=2)
        return reading

    def judge(self, edits: int, lost: int, asked: int, seconds: float = 0.0) -> Reading:
        """Take note of a further look, at which so many facts were lost."""
        look, tau, q = len(self.readings) + 1, self.tolerated, self.noticed
        ratio = (q / tau) ** lost * ((1 - q) / (1 - tau)) ** (asked - lost)  # L of this look
        self._mixture = min((self._mixture + 1 / (look * (look + 1))) * ratio, 1e300)  # Σⱼ Πᵢ≥ⱼ Lᵢ / j(j + 1)
        evidence = math.log10(max(self._mixture, 1e-300))
        told = {"growth of ‖v₀‖": self.swollen} if self.swollen else {}
        reading = Reading(edits, asked - lost, asked, evidence, self.alarm, seconds, told)
        self.readings.append(reading)
        reading.alarm |= self.doubts and (self.within is None or self.swollen > 0 or self.edits_left() <= self.within)
        return reading

    def edits_left(self) -> float:
        """Edits until half of the facts are lost, by a line through the looks since half of the edits; inf: never."""
        now = self.readings[-1].edits
        recent = [r for r in self.readings if r.edits >= now / 2]
        recent = recent if len(recent) > 1 else self.readings[-2:]
        shares = [1 - r.right / r.asked for r in recent]
        slope, lost = 0.0, shares[-1]  # one look has no slope
        if recent[0].edits < now:
            slope, lost = linear_regression([r.edits - now for r in recent], shares)
        return 0.0 if lost >= DEAD else (DEAD - lost) / slope if slope > 0 else math.inf

    @property
    def identity(self) -> list:
        """What decides the numbers of a guarded stream; rule: by which the same looks gave another alarm before."""
        apart = ("canaries", "probes", "foretold")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in apart}
        found = [settings | {"rule": 2}, None if self.canaries is None else list(map(repr, self.canaries))]
        return [*found, [probe.identity for probe in self.probes]] if self.probes else found

    def state(self) -> dict:
        """Plain data for a checkpoint, the arguments of `resume`."""
        return {"readings": [asdict(r) for r in self.readings], "mixture": self._mixture, "known": self._known}

    def resume(self, readings: list[dict], mixture: float = 0.0, known: list | None = None) -> None:
        self.readings, self._mixture, self._known = [Reading(**r) for r in readings], mixture, known


def own_canaries(hf, tokenizer, n: int, seed: int) -> list[tuple[str, str]]:
    """n (text, next word) pairs of text that a transformers model samples itself, where it is sure of the word."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise KeditError("guard: the tokenizer has no start token to sample from; give canaries")
    ids, found = torch.full((16, 1), start, device=hf.device), []
    sampling = {"do_sample": True, "max_new_tokens": 24, "pad_token_id": start}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(20):
            said = hf.generate(ids, attention_mask=torch.ones_like(ids), **sampling)
            best = hf(said).logits.softmax(-1).max(-1)
            for row, sure, tokens in zip(said, best.values > SURE, best.indices, strict=True):
                for at in range(8, len(row) - 1):
                    before, both = tokenizer.decode(row[at]), tokenizer.decode([row[at], tokens[at]])
                    word = both.removeprefix(before)  # decoded alone, Llama-2's tokens lose their space
                    if sure[at] and word.startswith(" ") and word.strip().isalpha():
                        found.append((tokenizer.decode(row[1 : at + 1]), word.strip()))
                        break
            if len(found) >= n:
                break
    return found[:n]


def _whom(model, tokenizer):
    """The transformers model and the tokenizer to ask."""
    hf, tokenizer = getattr(model, "hf", model), tokenizer or getattr(model, "tokenizer", None)
    if not callable(tokenizer):
        raise KeditError(f"guard: tokenizer = {tokenizer!r:.40}; give tokenizer=AutoTokenizer.from_pretrained(…)")
    if getattr(hf, "get_output_embeddings", lambda: None)() is None or hf.config.is_encoder_decoder:
        raise KeditError(f"guard: a {type(hf).__name__} is not a causal language model with its head; give one")
    return hf, tokenizer


@torch.no_grad()
def _says(hf, tokenizer, pairs) -> list[bool]:
    """Whether each token of an answer is the model's own choice behind its prompt, as the tokenizer now writes it."""
    if not pairs:
        return []
    rows = [(encode(tokenizer, p), list(target_ids(tokenizer, p, a))) for p, a in pairs]
    best = hf(pad([prompt + answer for prompt, answer in rows], hf.device)).logits.argmax(-1).tolist()
    return [b[len(p) - 1 : len(p) + len(a) - 1] == a for b, (p, a) in zip(best, rows, strict=True)]
