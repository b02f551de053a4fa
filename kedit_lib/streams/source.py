"""The interface of a source of facts, with the standard probes of a stream, and the lab's world as such a source."""

import random
from dataclasses import replace
from functools import partial

from ..data.edit import Edit
from ..evaluation.edit_probes import EditProbe, FactProbe, VitalProbe
from ..evaluation.health import PerplexityProbe
from ..evaluation.protocol import Probe
from ..evaluation.side_effects import SELDOM, family_probes, other_prompts
from ..lab import corpus, moment_texts, world_of
from ..lab import edits as lab

HELD_OUT = 40  # documents that perplexity is measured on, and C is not
REFERENCE, IDF_TEXTS = 25, 200  # lab facts that ‖v₀‖ is measured on; lab documents that words are counted on
EVERY_FACT = "all untouched"  # the cohort that is asked at the collapse points


class Facts:
    """A source of edits, one a subject, and of facts that no edit touches, all of which the model knows.

    edits(n, seed)    the first n of the seed's order;  some(n): edits to look at
    texts()           plain text for C;  held_out: other documents, for perplexity
    strangers(edits, limit, seed)  (prompt with {}, subject, answer) of facts whose subject no edit names
    around(edit, rng)  (prompt, answer) pairs that an edit should leave alone: of other subjects, and of its own
    cohorts(edits, untouched, seed)  {cohort: (prompt, answer) pairs that the edits should leave alone}
    reference()       facts for ‖v₀‖ that no stream edits (None: those of `transfer`)
    selection         a sentence on the facts left out so far, because the model does not know them
    """

    match = "begins"  # a model that was not trained on these sentences goes on after the answer
    perplexity_at = 1  # where the perplexity probe stands among the others: their order is part of a stored run's key

    def probes(
        self, edits, untouched: int = 500, seed: int = 0, layers=(), every: int = SELDOM, families: bool = True
    ) -> list[Probe]:
        """The standard probes of a stream.

        edits; `untouched` facts that no edit touches, and for the lab all of them at the collapse points; a fifth as
        many other facts of edited subjects; perplexity on held-out text. families: also each edit by itself, locality,
        portability, distraction, overfitting, fluency and consistency, and the health of `layers` (the edited ones;
        none: without). every: edits between two checkpoints at which all this is asked; in between only whether the
        model is dead, and whether edits hold.
        """
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
            asked = {"unrelated": facts, "texts": held_out, "layers": layers, **more}
            found += family_probes(edits, **asked, every=every, match=match)
        return found

    def consequences(self, edits) -> dict:
        """Keywords of `family_probes`: questions about what follows from the edits."""
        return {}

    def reference(self) -> list[Edit] | None:
        return None

    def some(self, n: int) -> list[Edit]:
        return self.edits(n, 0)


class LabFacts(Facts):
    """Edits of a lab world, every fact around them known."""

    match = "exact"  # the lab models were trained on these sentences
    perplexity_at = 3
    selection = "Every fact of the lab's world was taught, and the model knows it; none is left out."

    def __init__(self, model, n_held_out: int = HELD_OUT):
        self.world = world = world_of(model)
        self.held_out, self.texts = corpus.plain_texts(world, n_held_out), partial(moment_texts, model)
        self.edits, self.around = partial(lab.lab_edits, world), partial(lab.lab_around, world)

    def reference(self) -> list[Edit]:
        return lab.lab_edits(self.world, REFERENCE, 2, people=self.world.development)

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
            "corpus": corpus.texts(self.world, IDF_TEXTS),
            "aside": {"new on same subjects": tuple(lab.own_prompt(self.world, e) for e in edits)},
        }


def lab_probes(model, edits, untouched: int = 500, texts: int = HELD_OUT, seed: int = 0, **how) -> list[Probe]:
    """The standard probes of a lab stream, with perplexity on `texts` documents. how: layers, every and families, as in
    `Facts.probes`."""
    return LabFacts(model, texts).probes(edits, untouched, seed, **how)
