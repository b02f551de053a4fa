"""What a bench asks a lab model: its own world, every fact of it known; and the standard probes of a lab stream."""

import random

from ..data.edit import Edit
from ..evaluation.edit_probes import EditProbe, FactProbe, PerplexityProbe, VitalProbe
from ..evaluation.protocol import Probe
from ..evaluation.side_effects import SELDOM, family_probes, other_prompts
from ..lab import corpus, moment_texts, world_of
from ..lab import edits as lab

REFERENCE = 25  # facts that ‖v₀‖ is measured on
IDF_TEXTS = 200  # lab documents that words are counted on


class LabFacts:
    """Edits of a lab world, every fact around them known. Its methods are those of `facts.DatasetFacts`."""

    match = "exact"  # the lab models were trained on these sentences
    unknown = 0
    selection = "Every fact of the lab's world was taught, and the model knows it; none is left out."

    def __init__(self, model):
        self.model, self.world = model, world_of(model)

    def edits(self, n: int, seed: int) -> list[Edit]:
        return lab.lab_edits(self.world, n, seed)

    def some(self, n: int) -> list[Edit]:
        return self.edits(n, 0)

    def texts(self) -> list[str]:
        return moment_texts(self.model)

    def probes(self, edits, untouched: int, seed: int, layers=(), every: int = SELDOM, families: bool = True) -> list:
        return lab_probes(self.model, edits, untouched, seed=seed, layers=layers, every=every, families=families)

    def reference(self) -> list[Edit]:
        """Facts for ‖v₀‖: of the development people, whom no stream edits."""
        return lab.lab_edits(self.world, REFERENCE, 2, people=self.world.development)

    def surround(self, edit: Edit) -> Edit:
        return lab.surround(self.world, edit)

    def strangers(self, edits, limit: int, seed: int) -> list[tuple[str, str, str]]:
        rng = random.Random(f"strangers-{seed}")
        facts = lab.untouched_facts(self.world, edits, limit, seed)
        return [(rng.choice(self.world.relations[f.relation].templates), f.person, f.object) for f in facts]

    def around(self, edit: Edit, rng: random.Random) -> tuple[list, list]:
        return lab.lab_around(self.world, edit, rng)


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
    the other facts of edited people; perplexity on `texts` documents of plain text. families: also each edit by itself,
    locality, portability, distraction, overfitting, fluency and consistency, and the health of `layers` (the edited
    ones; none: without). every: edits between two checkpoints at which all this is asked; in between only whether the
    model is dead, and whether edits hold.
    """
    world, rng = world_of(model), random.Random(f"probes-{seed}")

    def asked(cohort: str, facts: list, often: int | None, probe=FactProbe) -> FactProbe:
        return probe(cohort, tuple(lab.ask(world, f, rng) for f in facts), tuple(f.object for f in facts), often)

    own = [f for e in edits for f in lab.other_facts(world, e)]
    own = rng.sample(own, min(len(own), max(1, untouched // 5)))
    strangers = asked("untouched", lab.untouched_facts(world, edits, untouched, seed), every, VitalProbe)
    plain = PerplexityProbe(tuple(corpus.plain_texts(world, texts)), every)
    found = [EditProbe(families, every), strangers, asked("same subjects", own, every), plain]
    if families:
        found.append(asked("all untouched", lab.untouched_facts(world, edits), None))
        found += family_probes(
            edits,
            questions=[lab.consequences(world, e) for e in edits],
            inverses=[lab.inverse_prompts(e) for e in edits],
            unrelated=zip(strangers.prompts, strangers.answers, strict=True),
            aside={
                "new on same subjects": tuple(lab.own_prompt(world, e) for e in edits),
                "new on strangers": other_prompts(edits, strangers.prompts, strangers.answers),
            },
            references=[lab.references(world, e) for e in edits],
            corpus=corpus.texts(world, IDF_TEXTS),
            texts=plain.texts,
            layers=layers,
            every=every,
        )
    return found
