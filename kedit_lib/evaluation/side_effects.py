"""Probes of side effects: what else has changed while the edits were made. Each asks about a panel of the edits so far;
at 0 edits of those to come, which gives the unedited model's value, the start of every curve."""

from dataclasses import asdict

from ..data.edit import Edit, Question
from ..data.words import full_stop, joint
from ..models.generation import complete
from .accuracy import generation_accuracy
from .free_text import GenerationProbe
from .protocol import SELDOM, Probe, evenly, identity_of, panel, row, rows, true_object
from .teacher_forcing import compared, magnitude, success, teacher_forced

PANEL = 25  # edits that are asked about at a checkpoint
KNOWN = 0.5  # of a kind of question, what the unedited model must be able to answer
LOCAL = 40  # prompts that are compared with the unedited model


def agreement(now, before) -> list[float]:
    """[n] share of equal places of n pairs of sequences, 0..1. Of the argmax at each token of the answer, (1/|t|) Σ_j
    [argmax_j = argmax_j⁰], it is EasyEdit's locality (`compute_locality_quality`, Wang et al. 2023; Yao et al. 2023). 1
    unedited; floor: how often a destroyed model happens to say the same, near 0 unless one answer is common."""
    both = zip(now, before, strict=True)
    return [sum(x == y for x, y in zip(a, b, strict=True)) / len(b) for a, b in both]


class LocalityProbe(Probe, version="locality-v1"):
    """Agreement with the unedited model, of argmax, first token and answer, on prompts that no edit is about."""

    cohort: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]  # what is true there
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        (now, text), (before, text_before) = self._ask(model), self.unedited(model, self._ask)
        argmax, answer = agreement(now, before), [a == b for a, b in zip(text, text_before, strict=True)]
        first = [a[0] == b[0] for a, b in zip(now, before, strict=True)]
        return rows(self.cohort, argmax_agreement=argmax, first_token_agreement=first, answer_agreement=answer)

    def _ask(self, model):
        prompts, answers = list(self.prompts), list(self.answers)
        said = teacher_forced(model, prompts, answers).said
        return said, complete(model.hf, model.tokenizer, prompts, answers=answers)


def portability(model, questions: list[Question], match: str = "exact") -> list[bool]:
    """For each question whether free greedy decoding gives the answer, by `match` as in `generation_accuracy`. Floor:
    one over the number of likely answers. Source: Yao et al. 2023; hops spelled out as by MeLLo (Zhong et al. 2023)."""
    prompts = [q.prompt for q in questions]
    hops = [i for i, q in enumerate(questions) if q.bridge]
    for i, said in zip(hops, complete(model.hf, model.tokenizer, [prompts[i] for i in hops]), strict=True):
        prompts[i] = f"{prompts[i]} {said}. {questions[i].bridge.format(said)}"
    return generation_accuracy(model, prompts, [q.answer for q in questions], match)


def answerable(model, questions: list[Question], match: str = "exact") -> list[bool]:
    """For each question whether the model, in its present state, passes the gate. Ask the unedited model, once."""
    pairs = [(i, *pair) for i, q in enumerate(questions) for pair in q.gate]
    said = generation_accuracy(model, [p for _, p, _ in pairs], [a for *_, a in pairs], match)
    failed = {i for (i, *_), right in zip(pairs, said, strict=True) if not right}
    return [i not in failed for i in range(len(questions))]


class PortabilityProbe(Probe, version="portability-v1"):
    """Accuracy on consequences, and success on inverses. At 0 edits a row "answerable" for each kind of question: the
    share whose gate is passed. Inverses form a cohort of their own then: their value is chance, not a healthy baseline.
    questions: for each edit its consequences, if any. Asked are those whose gate the unedited model passes, at most
    `limit` of a kind, and none of a kind that it passes for less than KNOWN of the edits: these may be luck. inverses:
    for each edit (prompt with the new object, prompt with the true object) or None: whether its subject is more
    probable after "Graz is the birthplace of" than after the true object's. Floor ½, where a model that learnt facts in
    one direction only is before any edit. Source: Ma et al. 2023 (reversibility of edits), as a comparison because many
    subjects share an object."""

    subjects: tuple[str, ...]
    questions: tuple[tuple[Question, ...], ...]
    inverses: tuple[tuple[str, str] | None, ...] = ()
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
        subjects = [self.subjects[i] for i in there]
        new, true = ([self.inverses[i][side] for i in there] for side in (0, 1))
        return rows(cohort, success=success(*compared(model, (new, subjects), (true, subjects))))


def distracted(edit: Edit, prompt: str) -> str:
    """The edited sentence, then a neighbor's prompt: "The mother tongue of Danielle Darrieux is English. The mother
    tongue of Léon Blum is". Score it like a neighbor: an edit that only boosts its object gives way. The unedited model
    is distracted too: show its value beside it. Source: Hoelscher-Obermaier et al. 2023 (CounterFact+)."""
    said = f"{edit.text}{joint(edit.text, edit.target_new, edit.separator)}{edit.target_new}"
    return f"{said}{full_stop(said)}{prompt}"


class DistractionProbe(Probe, version="distraction-v1"):
    """Success and magnitude of the true object over the new one, on each edit's first neighbor as in `distracted`."""

    edits: tuple[Edit, ...]
    limit: int = PANEL
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        edits = [e for e in panel(self.edits, done, self.limit) if e.neighborhood and true_object(model, e)]
        prompts = [distracted(e, e.neighborhood[0]) for e in edits]
        two = compared(model, (prompts, [e.target_true for e in edits]), (prompts, [e.target_new for e in edits]))
        return rows("distracted neighbors", success=success(*two), magnitude=magnitude(*two))


class OverfittingProbe(Probe, version="overfitting-v1"):
    """Probability of each edit's new object on a prompt that asks for something else: a target that is reached by
    making one word likely everywhere shows here first. prompts: {cohort: for each edit one such prompt}, such as
    another relation of its subject. Floor: the unedited model's. Source: Zhang et al. 2024."""

    edits: tuple[Edit, ...]
    prompts: dict[str, tuple[str, ...]]
    limit: int = PANEL
    every: int = SELDOM

    def __call__(self, model, done: list[Edit]) -> list[dict]:
        new = [e.target_new for e in panel(self.edits, done, self.limit)]
        asked = [text for texts in self.prompts.values() for text in panel(texts, done, self.limit)]
        p = teacher_forced(model, asked, new * len(self.prompts)).probability.split(len(new))
        return [row("probability", cohort, values) for cohort, values in zip(self.prompts, p, strict=True)]


def family_probes(
    edits, questions=(), inverses=(), unrelated=(), aside=(), references=(), corpus=(), every=SELDOM, match="exact"
) -> list[Probe]:
    """The probes of side effects that the material allows; distraction and fluency need the edits alone. edits: the
    sequence's, in order; their `portability` and `locality` pairs are asked too, as the cohorts "one hop" and "beside
    the edits" (LOCAL, over the whole sequence). unrelated: (prompt, answer) pairs that no edit is about, the first
    LOCAL are asked. aside: `prompts` of OverfittingProbe. every: doubled for free text, as costly as the rest."""
    edits = tuple(edits)
    begins = tuple(e.generation_prompts[0] if e.generation_prompts else e.subject for e in edits)
    free_text = GenerationProbe(begins, tuple(references), tuple(corpus), every=2 * every)
    found: list[Probe] = [DistractionProbe(edits, every=every), free_text]
    beside = [pair for e in edits for pair in e.locality]
    beside = [beside[i] for i in evenly(len(beside), LOCAL)]
    for cohort, pairs in (("untouched", tuple(unrelated)[:LOCAL]), ("beside the edits", beside)):
        if pairs:
            found.append(LocalityProbe(cohort, *zip(*pairs, strict=True), every=every))
    given = zip(edits, questions or ((),) * len(edits), strict=True)
    asked = tuple((*qs, *(Question("one hop", *pair) for pair in e.portability)) for e, qs in given)
    if any(asked) or inverses:
        subjects = tuple(e.subject for e in edits)
        found.append(PortabilityProbe(subjects, asked, tuple(inverses), every=every, match=match))
    if aside:
        found.append(OverfittingProbe(edits, aside, every=every))
    return found


def other_prompts(edits: list[Edit], prompts, answers) -> tuple[str, ...]:
    """For each edit one of the prompts about others, in turn, passing over those that its new object answers."""
    n, found = len(prompts), []
    for i, e in enumerate(edits):
        others = (k % n for k in range(i, i + n) if answers[k % n] != e.target_new)
        found.append(prompts[next(others, i % n)])
    return tuple(found)
