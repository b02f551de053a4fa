"""What a bench asks a model: edits, and facts that no edit touches, of the lab, a data set or the real world."""

import contextlib
import os
import random
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from ..data.edit import Edit, Question, around_places
from ..data.files import read_texts
from ..data.words import places
from ..data.world import KnownWorld
from ..errors import KeditError
from ..evaluation.health import HealthProbe, PerplexityProbe
from ..evaluation.protocol import EditProbe, FactProbe, Probe, VitalProbe
from ..evaluation.side_effects import SELDOM, family_probes, other_prompts
from ..lab import edits as lab
from ..lab import world as invented
from ..models.self_text import SELF, WRITTEN, self_texts
from .edit_sets import ASKED, KnownAnswers, known_world, read_edits

HELD_OUT, HEALTH_TEXTS = 40, 10  # documents for perplexity, which C never sees; of these, for hidden states
REFERENCE, IDF_TEXTS = 25, 200  # lab facts that ‖v₀‖ is measured on; lab documents that words are counted on
EVERY_FACT = "all untouched"  # the cohort that is asked at the collapse points
LAB, AUTO = "lab", "auto"
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
TEXTS = 100_000  # documents for C at most: what the authors of MEMIT took


class Facts:
    """A source of edits (one per subject) and of unrelated facts, all of which the model knows. edits(n, seed): the
    first n of the seed's order. some(n): edits to look at. texts(): plain text for C. held_out: other documents, for
    perplexity. strangers(edits, limit, seed): (prompt with {}, subject, answer) of facts whose subject no edit
    names. around(edit, rng): (prompt, answer) pairs that an edit should leave alone, of other subjects and of its own.
    cohorts(edits, untouched, seed): {cohort: such pairs}. selection: a sentence on the unknown ones left out so far."""

    match = "begins"  # a model that was not trained on these sentences goes on after the answer
    perplexity_at = 1  # where the perplexity probe stands among the others: their order is part of a stored run's key

    def probes(
        self, edits, untouched: int = 500, seed: int = 0, layers=(), every: int = SELDOM, families: bool = True
    ) -> list[Probe]:
        """The standard probes of a stream: its edits; `untouched` facts that no edit touches, and for the lab all of
        them at the collapse points; a fifth as many other facts of edited subjects; perplexity on held-out text.
        families: also each edit by itself, locality, portability, distraction, overfitting, fluency and consistency,
        and the health of `layers` (the edited ones; none: without). every: edits between two checkpoints at which all
        this is asked; in between only whether the model is dead, and whether edits hold."""
        held_out, match, cohorts = tuple(self.held_out), self.match, self.cohorts(edits, untouched, seed)
        kinds = [("untouched", VitalProbe, every), ("same subjects", FactProbe, every), (EVERY_FACT, FactProbe, None)]
        found = [EditProbe(families, every, match=match)]
        for name, probe, often in kinds if families else kinds[:2]:
            if pairs := cohorts.get(name):
                found.append(probe(name, *zip(*pairs, strict=True), often, match=match))
        found.insert(self.perplexity_at, PerplexityProbe(held_out, every))
        if families:
            more, facts = self.consequences(edits), cohorts["untouched"]
            if facts:
                more.setdefault("aside", {})["new on strangers"] = other_prompts(edits, *zip(*facts, strict=True))
            if "questions" in more:  # in place of the edits' own
                edits = [replace(e, portability=()) for e in edits]
            found += family_probes(edits, unrelated=facts, **more, every=every, match=match)
            found += [HealthProbe(tuple(layers), held_out[:HEALTH_TEXTS], every=every)] if layers else []
        return found

    def consequences(self, edits) -> dict:
        """Keywords of `family_probes`: questions about what follows from the edits."""
        return {}

    def reference(self) -> list[Edit] | None:
        """Facts for ‖v₀‖ that no stream edits (None: those of `transfer`)."""
        return None


class LabFacts(Facts):
    """Edits of a lab world, every fact around them known."""

    match = "exact"  # the lab models were trained on these sentences
    perplexity_at = 3
    selection = "Every fact of the lab's world was taught, and the model knows it; none is left out."

    def __init__(self, model, n_held_out: int = HELD_OUT):
        self.world = world = invented.world_of(model)
        self.held_out, self.texts = invented.plain_texts(world, n_held_out), partial(invented.moment_texts, model)
        self.edits, self.around = partial(lab.lab_edits, world), partial(lab.lab_around, world)
        self.some = partial(self.edits, seed=0)
        self.reference = partial(self.edits, REFERENCE, 2, people=world.development)

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        rng = random.Random(f"strangers-{seed}")
        facts = lab.untouched_facts(self.world, edits, limit, seed)
        return [(rng.choice(self.world.relations[f.relation].templates), f.person, f.object) for f in facts]

    def cohorts(self, edits, untouched: int, seed: int) -> dict[str, list[tuple[str, str]]]:
        world, rng = self.world, random.Random(f"probes-{seed}")
        own = [f for e in edits for f in lab.other_facts(world, e)]
        own = rng.sample(own, min(len(own), max(1, untouched // 5)))
        strangers = lab.untouched_facts(world, edits, untouched, seed)
        facts = {"untouched": strangers, "same subjects": own, EVERY_FACT: lab.untouched_facts(world, edits)}
        return {name: [(lab.ask(world, f, rng), f.object) for f in some] for name, some in facts.items()}

    def consequences(self, edits) -> dict:
        return {
            "questions": [lab.consequences(self.world, e) for e in edits],
            "inverses": [lab.inverse_prompts(e) for e in edits],
            "references": [lab.references(self.world, e) for e in edits],
            "corpus": invented.texts(self.world, IDF_TEXTS),
            "aside": {"new on same subjects": tuple(lab.own_prompt(self.world, e) for e in edits)},
        }


class DatasetFacts(Facts):
    """Edits from a data set, the first of each subject; what no edit touches are other such records. edits, texts: a
    file, a folder, or a hub name, "owner/name" or "owner/name:configuration" (its train split); texts also as in
    `plain_texts`. chat: the prompts are questions to a chat model, put into its chat template. cache: a folder for what
    the model was found to know (None: it is asked again each time)."""

    def __init__(self, model, edits: str, texts: str, cache: Path | None = None, chat: bool = False):
        self.model, self.source, self.corpus, self.cache, self.chat = model, edits, texts, cache, chat
        self._says, self._knows = KnownAnswers(model, self.match, cache), {}

    @cached_property
    def _read(self) -> tuple[list[Edit], pd.DataFrame]:
        return read_edits(self.source, self.model, chat=self.chat)

    @cached_property
    def records(self) -> list[Edit]:
        return list({e.subject: e for e in reversed(self._read[0])}.values())[::-1]

    @cached_property
    def documents(self) -> list[str]:
        texts = plain_texts(self.model, self.corpus)
        if len(texts) < 2 * HELD_OUT:
            raise KeditError(f"texts {self.corpus!r}: holds {len(texts)} documents; give at least {2 * HELD_OUT}")
        return texts

    @property
    def held_out(self) -> list[str]:
        return self.documents[:HELD_OUT]

    def texts(self) -> list[str]:
        return self.documents[HELD_OUT:][:TEXTS]

    def edits(self, n: int, seed: int) -> list[Edit]:
        """Records without target_true are taken as they are."""
        found = _first(n, self.records, seed, ASKED, self._known)
        if len(found) < n:
            there = f"has edits of {len(self.records)} subjects, of which the model knows {len(found)}"
            raise KeditError(f"edits {self.source!r}: {there}, {n} were asked for; give more, or lower n_edits")
        return found

    def some(self, n: int) -> list[Edit]:
        return _real(self.records)[:n] or self.records[:n]

    @property
    def selection(self) -> str:
        name = Path(self.source).name if os.path.exists(self.source) else self.source
        broken = f" {n} of its records cannot be an edit." if (n := len(self._read[1])) else ""
        unknown = f"it does not know {list(self._knows.values()).count(False)}; these were left out before any edit."
        return f"Of {len(self._knows)} facts of {name} that the model was asked about {unknown}{broken}"

    def _known(self, edits: list[Edit]) -> list[Edit]:
        """The edits whose true object the unedited model knows, or that have none."""
        real = _real(edits)
        self._knows |= zip(real, self._says([(e.text, e.target_true) for e in real]), strict=True)
        return [e for e in edits if self._knows.get(e, True)]

    def cohorts(self, edits, untouched: int, seed: int) -> dict[str, list[tuple[str, str]]]:
        strangers = self.strangers(edits, untouched, seed)
        facts = [(subject.join(around_places(prompt)), answer) for prompt, subject, answer in strangers]
        facts += self.neighbors(edits, untouched - len(facts), seed)
        return {"untouched": facts, "same subjects": self.own(edits, max(1, untouched // 5), seed)}

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        edited = {e.subject for e in edits}
        others = [e for e in _real(self.records) if e.subject not in edited]
        found = _first(limit, others, f"untouched-{seed}", 2 * limit, self._known)
        return [(e.prompt, e.subject, e.target_true) for e in found]

    def own(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) of known facts of edited subjects that their edits leave true."""
        edited = {e.subject: e.text for e in edits}
        others = [e for e in _real(self._read[0]) if edited.get(e.subject, e.text) != e.text]
        found = _first(limit, others, f"own-{seed}", len(others), self._known)
        return [(e.text, e.target_true) for e in found]

    def neighbors(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) of known facts about no edited subject that fill up a panel where there are too few known
        records: those that records name as neighbors, or that the model says in a record's paraphrase only."""
        edited, real = [e.subject for e in edits], _real(self.records)
        facts = {(prompt, e.target_true) for e in real for prompt in e.neighborhood}
        facts |= {(e.paraphrases[0], e.target_true) for e in real if e.paraphrases and not self._knows.get(e)}
        facts -= {(e.text, e.target_true) for e in real}

        def known(part: list) -> list:
            part = [(p, a) for p, a in part if not any(s in p and places(p, s) for s in edited)]
            return [pair for pair, says in zip(part, self._says(part), strict=True) if says]

        return _first(max(0, limit), sorted(facts), f"neighbors-{seed}", ASKED, known)

    def around(self, edit: Edit, rng: random.Random) -> tuple[list, list]:
        return [(prompt, edit.target_true) for prompt in edit.neighborhood if edit.target_true is not None], []


def _real(edits: list[Edit]) -> list[Edit]:
    return [e for e in edits if e.target_true is not None]


def _first(n: int, items: list, seed, step: int, known) -> list:
    """The first n of the items in the seed's order that `known` leaves, asked `step` at a time."""
    order, found = random.Random(seed).sample(items, len(items)), []
    while order and len(found) < n:
        found, order = found + known(order[:step]), order[step:]
    return found[:n]


class WorldFacts(DatasetFacts):
    """Edits of cities and countries, and other facts of them, that the model says in two wordings or more."""

    @cached_property
    def known(self) -> KnownWorld:
        return known_world(self.model, self.cache)

    def edits(self, n: int, seed: int) -> list[Edit]:
        return self.known.edits(n, seed)

    def some(self, n: int) -> list[Edit]:
        return self.known.edits(min(n, len(self.known.of_subject)), 0)

    @property
    def selection(self) -> str:
        asked = len(self.known.geography.asked)
        unknown = f"the model does not know {asked - len(self.known.facts)} in two wordings"
        return f"Of {asked} facts about cities and countries (GeoNames) {unknown}; these were left out before any edit."

    def around(self, edit: Edit, rng: random.Random) -> tuple[list, list]:
        return self.known.near(edit, rng), [self.known.stated(f, rng) for f in self.known.beside(edit)]

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        rng, found = random.Random(f"strangers-{seed}"), self.known.untouched(edits, limit, seed)
        said = [rng.choice(list(self.known.facts[f].items())) for f in found]
        return [(prompt, f.subject, answer) for f, (prompt, answer) in zip(found, said, strict=True)]

    def own(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        rng, facts = random.Random(f"own-{seed}"), [f for e in edits for f in self.known.beside(e)]
        return [self.known.stated(f, rng) for f in rng.sample(facts, min(limit, len(facts)))]

    def neighbors(self, edits, limit: int, seed: int) -> list:
        return []  # every fact is a record of its own

    def consequences(self, edits) -> dict:
        """What an edited city's new country changes, asked where the unedited model answers by the old one."""
        asked = [self.known.follows(e) for e in edits]
        questions = [tuple(Question(k, p, new, gate=((p, true),)) for k, p, new, true in each) for each in asked]
        return {"questions": questions, "inverses": [self.known.inverse(e) for e in edits]}


def lab_probes(model, edits, untouched: int = 500, texts: int = HELD_OUT, seed: int = 0, **how) -> list[Probe]:
    """`Facts.probes` of a lab stream, with perplexity on `texts` documents. how: layers, every, families."""
    return LabFacts(model, texts).probes(edits, untouched, seed, **how)


def facts_of(model, edits: str, texts: str, cache: Path | None = None, chat: bool = False) -> Facts:
    """By a profile's `edits` and `texts`: both "lab", or both somewhere else."""
    if (edits == LAB) != (texts == LAB):
        why = "either both are 'lab' or neither is; name both, a file or a hub name (make: DATA= and TEXTS=)"
        raise KeditError(f"edits = {edits!r}, texts = {texts!r}: {why}")
    if chat and edits in (LAB, "world"):
        raise KeditError(f"chat = True, edits = {edits!r}: goes with a file or hub name of edits; leave it out")
    if edits == LAB:
        return LabFacts(model)
    return (WorldFacts if edits == "world" else DatasetFacts)(model, edits, texts, cache, chat)


def kept_facts(facts: Facts, edits, n: int, untouched: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, subject) of at most n known facts whose subjects neither `edits` nor the untouched panel names."""
    asked = {subject for _, subject, _ in facts.strangers(edits, untouched, seed)}
    others = facts.strangers(edits, untouched + 4 * n, seed)
    free = list({(prompt, subject): None for prompt, subject, _ in others if subject not in asked})
    return random.Random(f"kept-{seed}").sample(free, min(n, len(free)))


def plain_texts(model, source: str = AUTO, tokens: int = WRITTEN) -> list[str]:
    """Documents of plain text: "self": what the model writes itself, at least so many tokens; "auto": the hub's
    WikiText-2, or that where the hub cannot be reached; else as in `read_texts`."""
    if source == AUTO:
        with contextlib.suppress(KeditError):
            return read_texts(WIKITEXT)
    return self_texts(model, tokens) if source in (SELF, AUTO) else read_texts(source)
