"""Probes of side effects: what else has changed while the edits were made.

Each knows what to ask about every edit of the sequence, in order. At a checkpoint it asks about a panel of the edits so
far; at 0 edits about a panel of those to come: the unedited model's value, the start of every curve.
"""

from dataclasses import asdict, dataclass, field

from ..data.edit import Edit, Question
from ..models.generation import complete
from .consistency import consistency, idf_of
from .fluency import fluency, sampled_texts
from .health import hidden_health, hidden_states, weight_health
from .locality import answer_agreement, argmax_agreement, first_token_agreement
from .portability import answerable, distracted, inverse_success, portability
from .protocol import Identified, Probe, evenly, identity_of, measured, panel, row, rows, true_object
from .success import magnitude, success
from .teacher_forcing import answer_probability, compared, teacher_forced

PANEL, SELDOM = 25, 50  # edits that are asked about at a checkpoint; edits between two such checkpoints
KNOWN = 0.5  # of a kind of question, what the unedited model must be able to answer
LOCAL, HEALTH_TEXTS = 40, 10  # prompts compared with the unedited model; documents for hidden states


@dataclass(frozen=True)
class LocalityProbe(Identified):
    """Agreement with the unedited model on prompts that no edit is about; `answers`: what is true there.

    Rows for `cohort`: argmax agreement, first token agreement, answer agreement (all 1 at 0 edits).
    """

    version = "locality-v1"
    cohort: str
    prompts: tuple[str, ...] = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        now, before = self._ask(model), self.unedited(model, self._ask)
        return rows(
            self.cohort,
            argmax_agreement=argmax_agreement(now[0], before[0]),
            first_token_agreement=first_token_agreement(now[0], before[0]),
            answer_agreement=answer_agreement(now[1], before[1]),
        )

    def _ask(self, model):
        prompts, answers = list(self.prompts), list(self.answers)
        return teacher_forced(model, prompts, answers), complete(model.hf, model.tokenizer, prompts, answers=answers)


@dataclass(frozen=True)
class PortabilityProbe(Identified):
    """Accuracy on consequences, and success on inverses.

    questions  for each edit its consequences, if any. Asked are those whose gate the unedited model passes, at most
               `limit` of a kind, and none of a kind that it passes for less than KNOWN of the edits: these may be luck
    inverses   for each edit (prompt with the new object, prompt with the true object) or None

    At 0 edits a row "answerable" for each kind: the share that passes. Inverses have their own cohort then, for it is
    not a healthy value but chance.
    """

    version = "portability-v1"
    subjects: tuple[str, ...] = field(repr=False)
    questions: tuple[tuple[Question, ...], ...] = field(repr=False)
    inverses: tuple[tuple[str, str] | None, ...] = field(default=(), repr=False)
    limit: int = PANEL
    every: int = SELDOM
    match: str = "exact"

    @property
    def identity(self) -> str:
        asked = [[asdict(q) for q in qs] for qs in self.questions]
        match = [] if self.match == "exact" else [self.match]
        return identity_of(self.version, [self.subjects, asked, self.inverses, self.limit, self.every, *match])

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        every = [q for qs in self.questions for q in qs]
        passed = self.unedited(model, lambda m: dict(zip(every, answerable(m, every, self.match), strict=True)))
        kinds = dict.fromkeys(q.kind for q in every)
        known = {kind: row("answerable", kind, [passed[q] for q in every if q.kind == kind]) for kind in kinds}
        if not done:
            return [*known.values(), *self._inverse(model, len(self.subjects), "inverse, unedited")]
        found = []
        for kind in (k for k in kinds if known[k]["value"] >= KNOWN):
            so_far = [q for qs in self.questions[: len(done)] for q in qs if q.kind == kind and passed[q]]
            asked = [so_far[i] for i in evenly(len(so_far), self.limit)]
            found += rows(kind, accuracy=portability(model, asked, self.match))
        return found + self._inverse(model, len(done), "inverse")

    def _inverse(self, model, n: int, cohort: str) -> list[dict]:
        there = [i for i in evenly(n, self.limit) if self.inverses and self.inverses[i]]
        new, true = ([self.inverses[i][side] for i in there] for side in (0, 1))
        return rows(cohort, success=inverse_success(model, [self.subjects[i] for i in there], new, true))


@dataclass(frozen=True)
class DistractionProbe(Identified):
    """The first neighbor of each edit after the edited sentence: success and magnitude of the true object over the
    new one."""

    version = "distraction-v1"
    edits: tuple[Edit, ...] = field(repr=False)
    limit: int = PANEL
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        edits = [e for e in panel(self.edits, done, self.limit) if e.neighborhood and true_object(model, e)]
        prompts = [distracted(e, e.neighborhood[0]) for e in edits]
        two = compared(model, prompts, [e.target_true for e in edits], [e.target_new for e in edits])
        return rows("distracted neighbors", success=success(*two), magnitude=magnitude(*two))


@dataclass(frozen=True)
class OverfittingProbe(Identified):
    """Probability of each edit's new object on a prompt that asks for something else: a target that is reached by
    making one word likely everywhere shows here first. Floor: the unedited model's. Source: Zhang et al. 2024.

    prompts  {cohort: for each edit one such prompt}, such as another relation of its subject
    """

    version = "overfitting-v1"
    edits: tuple[Edit, ...] = field(repr=False)
    prompts: dict[str, tuple[str, ...]] = field(repr=False, hash=False)
    limit: int = PANEL
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        new = [e.target_new for e in panel(self.edits, done, self.limit)]
        asked = [text for texts in self.prompts.values() for text in panel(texts, done, self.limit)]
        p = answer_probability(model, asked, new * len(self.prompts)).split(len(new))
        return [row("probability", cohort, values) for cohort, values in zip(self.prompts, p, strict=True)]


@dataclass(frozen=True)
class GenerationProbe(Identified):
    """Fluency and consistency of freely sampled text about a few edits' subjects.

    prompts     for each edit, what the text begins with
    references  for each edit, texts about others that have its new object; corpus: what idf is counted on
    limit       edits at a checkpoint: 100 tokens cost as much as many short answers
    """

    version = "generation-v1"
    prompts: tuple[str, ...] = field(repr=False)
    references: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    corpus: tuple[str, ...] = field(default=(), repr=False)
    limit: int = 10
    tokens: int = 100
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        texts = sampled_texts(model, panel(self.prompts, done, self.limit), self.tokens)
        found = rows("free text", fluency=measured([fluency(t) for t in texts]))
        if self.references:
            idf, references = idf_of(list(self.corpus)), panel(self.references, done, self.limit)
            like = [consistency(t, list(r), idf) for t, r in zip(texts, references, strict=True)]
            found += rows("free text", consistency=measured(like))
        return found


@dataclass(frozen=True)
class HealthProbe(Identified):
    """Weights of the edited `layers`; hidden states on plain `texts` after each of them and after the last layer."""

    version = "health-v1"
    layers: tuple[int, ...]
    texts: tuple[str, ...] = field(repr=False)
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        seen, texts = sorted({*self.layers, model.n_layers - 1}), list(self.texts)
        before = self.unedited(model, lambda m: hidden_states(m, texts, seen))
        now = hidden_states(model, texts, seen)
        found = [(layer, weight_health(model, layer)) for layer in self.layers]
        found += [(layer, hidden_health(now[layer], before[layer])) for layer in seen]
        return [row(name, f"layer {layer}", [v]) for layer, values in found for name, v in values.items()]


def family_probes(
    edits,
    questions=(),
    inverses=(),
    unrelated=(),
    aside: dict[str, tuple[str, ...]] | None = None,
    references=(),
    corpus=(),
    texts=(),
    layers=(),
    every: int = SELDOM,
    match: str = "exact",
) -> list[Probe]:
    """All probes of side effects that the given material allows; distraction and fluency need the edits alone.

    edits       those of the sequence, in order; their own `portability` and `locality` pairs are asked too, as the
                cohorts "one hop" and "beside the edits" (LOCAL of these, over the whole sequence)
    questions   for each edit its consequences; inverses: for each edit two prompts or None
    unrelated   (prompt, answer) pairs that no edit is about; the first LOCAL are asked
    aside       {cohort: for each edit a prompt that asks for something else}
    references  for each edit texts about others with its new object; corpus: texts to count idf on
    texts       plain documents, the first HEALTH_TEXTS for hidden states; layers: the edited ones
    every       edits between two checkpoints at which they are asked; twice as many for free text, which costs as much
                as all the others
    match       what counts as right where a consequence is asked, as in `generation_accuracy`
    """
    edits, unrelated = tuple(edits), tuple(unrelated)[:LOCAL]
    begins = tuple(e.generation_prompts[0] if e.generation_prompts else e.subject for e in edits)
    found: list[Probe] = [
        DistractionProbe(edits, every=every),
        GenerationProbe(begins, tuple(references), tuple(corpus), every=2 * every),
    ]
    beside = [pair for e in edits for pair in e.locality]
    beside = [beside[i] for i in evenly(len(beside), LOCAL)]
    for cohort, pairs in (("untouched", unrelated), ("beside the edits", beside)):
        if pairs:
            found.append(LocalityProbe(cohort, *map(tuple, zip(*pairs, strict=True)), every=every))
    given = tuple(map(tuple, questions)) or ((),) * len(edits)
    hops = [tuple(Question("one hop", *pair) for pair in e.portability) for e in edits]
    asked = tuple(qs + hop for qs, hop in zip(given, hops, strict=True))
    if any(asked) or inverses:
        subjects = tuple(e.subject for e in edits)
        found.append(PortabilityProbe(subjects, asked, tuple(inverses), every=every, match=match))
    if aside:
        found.append(OverfittingProbe(edits, aside, every=every))
    if layers and texts:
        found.append(HealthProbe(tuple(layers), tuple(texts)[:HEALTH_TEXTS], every=every))
    return found


def other_prompts(edits: list[Edit], prompts, answers) -> tuple[str, ...]:
    """For each edit one of the prompts about others, in turn, passing over those that its new object answers."""
    n, found = len(prompts), []
    for i, e in enumerate(edits):
        others = (k % n for k in range(i, i + n) if answers[k % n] != e.target_new)
        found.append(prompts[next(others, i % n)])
    return tuple(found)
