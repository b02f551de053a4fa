"""What a bench asks a model: the lab's own world, or a data set of edits and a text corpus for any other model."""

import contextlib
import hashlib
import json
import os
import random
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..data.atomic import replacing
from ..data.edit import Edit, around_places
from ..data.files import HUB_NAME, READERS, paragraphs, records_of
from ..data.provenance import ALGORITHMS, key_of
from ..data.words import places
from ..errors import KeditError
from ..evaluation import generation_accuracy
from ..evaluation.edit_probes import EditProbe, FactProbe, PerplexityProbe, VitalProbe
from ..evaluation.side_effects import SELDOM, family_probes, other_prompts
from ..models.self_text import SELF, WRITTEN, self_texts
from .edit_sets import read_edits
from .lab_facts import LabFacts

LAB, AUTO = "lab", "auto"
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
TEXTS = 100_000  # documents for C at most: what the authors of MEMIT took
HELD_OUT = 40  # documents that perplexity is measured on, and C is not
ASKED = 256  # questions that are asked between two savings


class KnownAnswers:
    """Called with (prompt, answer) pairs: for each whether the unedited model says the answer by greedy decoding, by
    `match` as in `generation_accuracy`. folder: keeps the answers, a file for a model's weights and setting; None:
    they are lost with the process."""

    def __init__(self, model, match: str, folder: Path | None = None):
        self.model, self.match, self.found = model, match, {}
        key = key_of(model=[model.checksum, model.setting], match=match, algorithms=ALGORITHMS)
        self.path = None if folder is None else Path(folder) / f"answers-{key}.json"
        self._read()

    def __call__(self, pairs: list[tuple[str, str]]) -> list[bool]:
        names = [_name(*pair) for pair in pairs]
        ask = [pair for name, pair in dict(zip(names, pairs, strict=True)).items() if name not in self.found]
        for part in (ask[k : k + ASKED] for k in range(0, len(ask), ASKED)):
            with self.model.temporarily():
                right = generation_accuracy(self.model, [p for p, _ in part], [a for _, a in part], self.match)
            self._read()
            self.found.update(zip((_name(*pair) for pair in part), right, strict=True))
            if self.path is not None:
                with replacing(self.path) as partial:
                    partial.write_text(json.dumps(self.found))
        return [self.found[name] for name in names]

    def _read(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError):
                self.found = json.loads(self.path.read_text()) | self.found


def _name(prompt: str, answer: str) -> str:
    return hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()[:16]


class DatasetFacts:
    """Edits from a data set, one a subject, of facts that the model knows; what no edit touches are other such records.

    edits, texts  a file, a folder, or a hub name, "owner/name" or "owner/name:configuration" (its train split);
                  texts also "self" or "auto", as in `plain_texts`
    chat          whether the prompts are questions to a chat model, put into its chat template
    cache         a folder for what the model was found to know (None: it is asked again each time)
    """

    match = "begins"  # a model that was not trained on these sentences goes on after the answer

    def __init__(self, model, edits: str, texts: str, cache: Path | None = None, chat: bool = False):
        self.model, self.source, self.corpus, self.cache, self.chat = model, edits, texts, cache, chat
        self.rejected = 0  # records that could not be an edit
        self._knows: dict[Edit, bool] = {}

    @cached_property
    def _read(self) -> list[Edit]:
        name, hub = _place(self.source)
        edits, rejected = read_edits(name, self.model, chat=self.chat, **hub)
        self.rejected = len(rejected)
        return edits

    @cached_property
    def records(self) -> list[Edit]:
        return list({e.subject: e for e in reversed(self._read)}.values())[::-1]  # the first of each subject

    @cached_property
    def documents(self) -> list[str]:
        texts = plain_texts(self.model, self.corpus)
        if len(texts) < 2 * HELD_OUT:
            raise KeditError(f"texts {self.corpus!r}: holds {len(texts)} documents; give at least {2 * HELD_OUT}")
        return texts

    def edits(self, n: int, seed: int) -> list[Edit]:
        """The first n of the seed's order that the model knows; records without target_true are taken as they are."""
        order = random.Random(seed).sample(self.records, len(self.records))
        found = _first(n, order, ASKED, self._known)
        if len(found) == n:
            return found
        there = f"has edits of {len(order)} subjects, of which the model knows {len(found)}"
        raise KeditError(f"edits {self.source!r}: {there}, {n} were asked for; give more, or lower n_edits")

    def some(self, n: int) -> list[Edit]:
        """Edits to look at, known or not; those whose true object is given."""
        return [e for e in self.records if e.target_true is not None][:n] or self.records[:n]

    @property
    def unknown(self) -> int:
        """Records asked about so far and left out, because the model does not know them."""
        return sum(not knows for knows in self._knows.values())

    @property
    def selection(self) -> str:
        """A sentence on the facts that were left out."""
        name = Path(self.source).name if os.path.exists(self.source) else self.source
        broken = f" {self.rejected} of its records cannot be an edit." if self.rejected else ""
        asked = f"Of {len(self._knows)} facts of {name} that the model was asked about"
        return f"{asked} it does not know {self.unknown}; these were left out before any edit.{broken}"

    def _known(self, edits: list[Edit]) -> list[Edit]:
        """The edits whose true object the unedited model knows."""
        if ask := [e for e in edits if e.target_true is not None and e not in self._knows]:
            self._knows.update(zip(ask, self._says([(e.text, e.target_true) for e in ask]), strict=True))
        return [e for e in edits if self._knows.get(e, True)]

    @cached_property
    def _says(self) -> KnownAnswers:
        return KnownAnswers(self.model, self.match, self.cache)

    def texts(self) -> list[str]:
        return self.documents[HELD_OUT:][:TEXTS]

    def probes(self, edits, untouched: int, seed: int, layers=(), every: int = SELDOM, families: bool = True) -> list:
        """As `lab_probes`; facts of edited subjects only where the source has such."""
        held_out, aside, match = tuple(self.documents[:HELD_OUT]), {}, self.match
        found = [EditProbe(families, every, match=match), PerplexityProbe(held_out, every)]
        strangers = self.strangers(edits, untouched, seed)
        facts = [(subject.join(around_places(prompt)), answer) for prompt, subject, answer in strangers]
        facts += self.neighbors(edits, untouched - len(facts), seed)
        own = self.own(edits, max(1, untouched // 5), seed)
        for cohort, pairs, probe in (("untouched", facts, VitalProbe), ("same subjects", own, FactProbe)):
            if pairs:
                found.append(probe(cohort, *zip(*pairs, strict=True), every, match=match))
        if facts:
            aside["new on strangers"] = other_prompts(edits, *zip(*facts, strict=True))
        if families:
            questions = self.consequences(edits)
            found += family_probes(
                [replace(e, portability=()) for e in edits] if questions else edits,
                questions,
                self.inverses(edits),
                facts,
                aside,
                texts=held_out,
                layers=layers,
                every=every,
                match=match,
            )
        return found

    def own(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) of known facts of edited subjects that their edits leave true."""
        edited = {e.subject: e.text for e in edits}
        others = [e for e in self._read if e.subject in edited and e.target_true is not None]
        others = [e for e in others if e.text != edited[e.subject]]
        known = self._known(random.Random(f"own-{seed}").sample(others, len(others)))
        return [(e.text, e.target_true) for e in known[:limit]]

    def neighbors(self, edits, limit: int, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) of known facts about no edited subject that records name as neighbors, or that the model
        says in a record's paraphrase only: they fill up a panel for which there are too few known records."""
        edited = [e.subject for e in edits]
        real = [e for e in self.records if e.target_true is not None]
        facts = {(prompt, e.target_true) for e in real for prompt in e.neighborhood}
        facts |= {(e.paraphrases[0], e.target_true) for e in real if e.paraphrases and not self._knows.get(e)}
        facts -= {(e.text, e.target_true) for e in real}
        others = random.Random(f"neighbors-{seed}").sample(sorted(facts), len(facts))

        def known(part: list) -> list:
            part = [(p, a) for p, a in part if not any(s in p and places(p, s) for s in edited)]
            return [pair for pair, says in zip(part, self._says(part), strict=True) if says]

        return _first(max(0, limit), others, ASKED, known)

    def consequences(self, edits) -> tuple:
        """For each edit its questions in place of its own `portability`; none: those."""
        return ()

    def inverses(self, edits) -> tuple:
        return ()

    def reference(self) -> None:
        """Facts for ‖v₀‖: none of these, which may be edited; `transfer` has its own."""
        return None

    def surround(self, edit: Edit) -> Edit:
        known = (e for e in self.records if (e.subject, e.text) == (edit.subject, edit.text))
        return replace(record, target_new=edit.target_new) if (record := next(known, None)) else edit

    def around(self, edit: Edit, rng: random.Random) -> tuple[list, list]:
        return [(prompt, edit.target_true) for prompt in edit.neighborhood if edit.target_true is not None], []

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        """(prompt with {}, subject, answer) of known facts whose subject no edit names."""
        edited = {e.subject for e in edits}
        others = [e for e in self.records if e.subject not in edited and e.target_true is not None]
        others = random.Random(f"untouched-{seed}").sample(others, len(others))
        return [(e.prompt, e.subject, e.target_true) for e in _first(limit, others, 2 * limit, self._known)]


def _first(n: int, order: list, step: int, known) -> list:
    """The first n of those that `known` leaves of `order`, `step` at a time."""
    found = []
    while order and len(found) < n:
        found, order = found + known(order[:step]), order[step:]
    return found[:n]


def facts_of(model, edits: str, texts: str, cache: Path | None = None, chat: bool = False) -> LabFacts | DatasetFacts:
    """By a profile's `edits` and `texts`: both "lab", or both somewhere else."""
    if (edits == LAB) != (texts == LAB):
        why = "either both are 'lab' or neither is; name both, a file or a hub name (make: DATA= and TEXTS=)"
        raise KeditError(f"edits = {edits!r}, texts = {texts!r}: {why}")
    if chat and edits in (LAB, "world"):
        raise KeditError(f"chat = True, edits = {edits!r}: goes with a file or hub name of edits; leave it out")
    if edits == LAB:
        return LabFacts(model)
    if edits == "world":
        from .world_facts import WorldFacts  # here: it builds on this module

        return WorldFacts(model, edits, texts, cache)
    return DatasetFacts(model, edits, texts, cache, chat)


def kept_facts(facts: LabFacts | DatasetFacts, edits, n: int, untouched: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, subject) of at most n known facts whose subjects neither `edits` nor the panel of untouched facts
    names."""
    asked = {subject for _, subject, _ in facts.strangers(edits, untouched, seed)}
    others = facts.strangers(edits, untouched + 4 * n, seed)
    free = list({(prompt, subject): None for prompt, subject, _ in others if subject not in asked})
    return random.Random(f"kept-{seed}").sample(free, min(n, len(free)))


def _place(source: str) -> tuple[str, dict]:
    """A source and its keywords for the hub: "owner/name:configuration" names both."""
    name, colon, configuration = source.partition(":")
    if os.path.exists(source) or Path(source).suffix.lower() in READERS or not HUB_NAME.fullmatch(name):
        return source, {}
    return name, {"split": "train"} | ({"name": configuration} if colon else {})


def plain_texts(model, source: str = AUTO, tokens: int = WRITTEN) -> list[str]:
    """Documents of plain text: "self": what the model wrote itself; "auto": the hub's WikiText-2, or, where the hub
    cannot be reached, what the model wrote; else as in `read_texts`. tokens: how much the model writes at least."""
    if source == SELF:
        return self_texts(model, tokens)
    if source != AUTO:
        return read_texts(source)
    try:
        return read_texts(WIKITEXT)
    except KeditError:
        return self_texts(model, tokens)


def read_texts(source: str) -> list[str]:
    """Documents: paragraphs of a .txt file (its lines, where no line is empty), or the field `text` of records."""
    if Path(source).suffix.lower() == ".txt" and Path(source).is_file():
        return paragraphs(Path(source), "texts")
    name, hub = _place(source)
    records = records_of(name, **hub)
    if not any(isinstance(r.values.get("text"), str) for r in records):
        raise KeditError(f"texts {source!r}: no record has a field 'text'; name the documents so, or give a .txt file")
    return [t.strip() for r in records if isinstance(t := r.values.get("text"), str) and t.strip()]
