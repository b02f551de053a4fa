"""What a bench asks a lab model: its own world, every fact of it known; and the standard probes of a lab stream."""

from __future__ import annotations

import random

from ..data.edit import Edit
from ..evaluation.edit_probes import EditProbe, FactProbe, PerplexityProbe, VitalProbe
from ..evaluation.protocol import Probe
from ..evaluation.side_effects import SELDOM, family_probes, other_prompts

REFERENCE = 25  # facts that ‖v₀‖ is measured on


class LabFacts:
    """Edits of a lab world, every fact around them known."""

    match = "exact"  # the lab models were trained on these sentences
    unknown = 0
    selection = "Every fact of the lab's world was taught, and the model knows it; none is left out."

    def __init__(self, model):
        from ..lab import world_of  # here: other models need no lab

        self.model, self.world = model, world_of(model)

    def edits(self, n: int, seed: int) -> list[Edit]:
        from ..lab.edits import lab_edits

        return lab_edits(self.world, n, seed)

    def some(self, n: int) -> list[Edit]:
        """Edits to look at, known or not."""
        return self.edits(n, 0)

    def texts(self) -> list[str]:
        from ..lab import moment_texts

        return moment_texts(self.model)

    def probes(self, edits, untouched: int, seed: int, layers=(), every: int = SELDOM, families: bool = True) -> list:
        return lab_probes(self.model, edits, untouched, seed=seed, layers=layers, every=every, families=families)

    def reference(self) -> list[Edit]:
        """Facts for ‖v₀‖: of the development people, whom no stream edits."""
        from ..lab.edits import lab_edits

        return lab_edits(self.world, REFERENCE, 2, people=self.world.development)

    def surround(self, edit: Edit) -> Edit:
        """The edit with true object, paraphrases and neighbors where they are known."""
        from ..lab.edits import surround

        return surround(self.world, edit)

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        """(prompt with {}, subject, answer): facts that no edit touches."""
        from ..lab.edits import untouched_facts

        rng = random.Random(f"strangers-{seed}")
        facts = untouched_facts(self.world, edits, limit, seed)
        return [(rng.choice(self.world.relations[f.relation].templates), f.person, f.object) for f in facts]

    def around(self, edit: Edit, rng: random.Random) -> tuple[list, list]:
        """(prompt, answer) pairs: facts of others that are near, and other facts of the same subject."""
        from ..lab.edits import lab_around

        return lab_around(self.world, edit, rng)


IDF_TEXTS = 200  # lab documents that words are counted on


def lab_probes(
    model,
    edits: list[Edit],
    untouched: int = 500,
    texts: int = 40,
    seed: int = 0,
    layers=(),
    every: int = 50,
    families: bool = True,
) -> list[Probe]:
    """The standard probes of a lab stream.

    edits; `untouched` facts of people whom no edit names, and all such facts at the collapse points; a fifth as many of
    the other facts of edited people; perplexity on `texts` documents of plain text. `families`: also each edit by
    itself, locality, portability, distraction, overfitting, fluency and consistency, and the health of `layers` (the
    edited ones; none: without). `every`: edits between two checkpoints at which all this is asked; in between only
    whether the model is dead, and whether edits hold.
    """
    from ..lab import corpus, questions, world_of
    from ..lab.edits import ask, other_facts, untouched_facts

    world, rng = world_of(model), random.Random(f"probes-{seed}")

    def asked(cohort: str, facts: list, often: int | None, probe=FactProbe) -> FactProbe:
        return probe(cohort, tuple(ask(world, f, rng) for f in facts), tuple(f.object for f in facts), often)

    own = [f for e in edits for f in other_facts(world, e)]
    own = rng.sample(own, min(len(own), max(1, untouched // 5)))
    strangers = asked("untouched", untouched_facts(world, edits, untouched, seed), every, VitalProbe)
    plain = PerplexityProbe(tuple(corpus.plain_texts(world, texts)), every)
    found = [EditProbe(families, every), strangers, asked("same subjects", own, every), plain]
    if families:
        found.append(asked("all untouched", untouched_facts(world, edits), None))
        found += family_probes(
            edits,
            questions=[questions.consequences(world, e) for e in edits],
            inverses=[questions.inverse_prompts(e) for e in edits],
            unrelated=zip(strangers.prompts, strangers.answers, strict=True),
            aside={
                "new on same subjects": tuple(questions.own_prompt(world, e) for e in edits),
                "new on strangers": other_prompts(edits, strangers.prompts, strangers.answers),
            },
            references=[questions.references(world, e) for e in edits],
            corpus=corpus.texts(world, IDF_TEXTS),
            texts=plain.texts,
            layers=layers,
            every=every,
        )
    return found
