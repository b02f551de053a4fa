"""What a lab model is trained on: documents about the world (statements, short biographies, plain text), a tokenizer of
them, and batches in which only a name's last token sees the whole name. The second moments read the same documents.
Plain text names nobody: as in real text, most tokens are about no subject that is edited, so the keys of subjects are
rare directions of C. Its grammar is in world.yaml."""

import random
import re
from collections.abc import Callable, Iterator
from itertools import accumulate, islice

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .world import TEXT, Relation, World

PLAIN_SHARE = 0.25  # of the documents, about a third of the tokens
BIOGRAPHY_SHARE = 0.45  # of the documents about people; the others are a few unrelated statements
MARK = "\x1f"  # stands on both sides of an object in a document, and nowhere else
NAME = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+")
FOREVER = 2**40  # a position after every row
WORDS = {kind: words.split(", " if kind in ("time", "place") else " ") for kind, words in TEXT["words"].items()}


def statement(world: World, person: str, relation: Relation, template: str, called: str | None = None) -> str:
    """A true sentence about `person` (`called` He or She, say), its object marked."""
    return f"{template.format(called or person)} {MARK}{world.objects_of[person, relation.name]}{MARK}."


def unmark(document: str) -> tuple[str, list[tuple[int, int]]]:
    """The plain text of a document, and where in it the objects stand."""
    pieces = document.split(MARK)
    ends = list(accumulate(map(len, pieces)))
    return "".join(pieces), list(zip(ends[::2], ends[1::2], strict=False))


def biography(world: World, person: str, rng: random.Random) -> str:
    """Every relation of one person once, in random order and phrasing; some sentences say He or She."""
    called, relations, said = "She" if person in world.female else "He", list(world.relations.values()), []
    rng.shuffle(relations)
    for r in relations:
        form = (r.pronoun, called) if said and rng.random() < 0.25 else (rng.choice(r.templates),)
        said.append(statement(world, person, r, *form))
    return " ".join(said)


def plain(world: World, rng: random.Random) -> str:
    """Three to seven sentences that name nobody; about one in ten states where a city lies. Word frequencies fall like
    1/rank, as in text."""

    def word(slot: re.Match) -> str:
        words = WORDS[slot[1].lower()]
        (text,) = rng.choices(words, weights=[1 / (i + 2) for i in range(len(words))])
        return text.capitalize() if slot[1][0].isupper() else text

    def sentence() -> str:
        if rng.random() >= 0.1:
            return re.sub(r"\{(\w+)\}", word, rng.choice(TEXT["patterns"]))
        city = rng.choice(list(world.country_of))
        return rng.choice(("{} is a city in {}.", "The city of {} lies in {}.")).format(city, world.country_of[city])

    return " ".join(sentence() for _ in range(rng.randint(3, 7)))


def documents(world: World, seed: int, known: Callable[[], int] | None = None) -> Iterator[str]:
    """The training mixture without end, seeded, objects marked. known: called before each document, gives how many
    people (the first ones) the corpus speaks of so far; None: all. People and (person, relation, template) triples are
    drawn without replacement, pass after pass, so that every fact is stated about equally often under every
    template."""
    rng = random.Random(f"corpus-{world.seed}-{seed}")
    phrasings = [(r, t) for r in world.relations.values() for t in r.templates]
    people, triples = [], []
    while True:
        now = world.people[: known() if known else None]
        if rng.random() < PLAIN_SHARE:
            yield plain(world, rng)
        elif rng.random() < BIOGRAPHY_SHARE:
            people = people or rng.sample(now, len(now))
            yield biography(world, people.pop(), rng)
        else:
            n = rng.randint(2, 5)
            if len(triples) < n:
                triples += [(p, r, t) for p in now for r, t in phrasings]
                rng.shuffle(triples)
            yield " ".join(statement(world, *triples.pop()) for _ in range(n))


def texts(world: World, n: int, seed: int = 1) -> list[str]:
    """n documents of the mixture, not those of the training (seed 0): the corpus of the second moments."""
    return [unmark(document)[0] for document in islice(documents(world, seed), n)]


def plain_texts(world: World, n: int, seed: int = 2) -> list[str]:
    """n documents of plain text, held out from training: the perplexity is measured on them."""
    rng = random.Random(f"plain-{world.seed}-{seed}")
    return [plain(world, rng) for _ in range(n)]


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `<s>` comes once in front of every encoded text. No unknown token: bytes cover all."""
    bpe, special = Tokenizer(models.BPE()), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    options = {"special_tokens": [*special.values()], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options))
    begin = {"single": "<s> $A", "pair": "<s> $A $B", "special_tokens": [("<s>", bpe.token_to_id("<s>"))]}
    bpe.post_processor = processors.TemplateProcessing(**begin)
    more = {"padding_side": "right", "model_max_length": 256, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special, **more)


def batches(world: World, tokenizer, recipe, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless triples of [batch, length]: ids of documents `<s> … </s>` end to end, their weights in the loss, and the
    last position in the row that may attend to each token.

    Of a share `bind` of the mentions of a name only its last token sees the whole name. So the model learns to put a
    person together where the name ends, as large models do (Geva et al. 2023); otherwise the state there may mean
    "somebody called Webram", and editing it edits the family.
    """
    step, rng = 0, random.Random(f"batches-{seed}")
    stream = documents(world, seed, lambda: people_known(step, recipe))
    ids, weights, until, need = [], [], [], recipe.batch * recipe.length
    begin = torch.arange(recipe.batch)[:, None] * recipe.length
    while True:
        while len(ids) < need:
            docs = [unmark(next(stream)) for _ in range(32)]
            encoded = tokenizer([text for text, _ in docs], return_offsets_mapping=True)
            for one, offsets, (text, spans) in zip(encoded.input_ids, encoded.offset_mapping, docs, strict=True):
                people = [m.span() for m in NAME.finditer(text) if (m[0], "sport") in world.objects_of]
                until += [FOREVER] * len(one) + [FOREVER]
                for name in (span for span in people if rng.random() < recipe.bind):
                    *others, last = (len(ids) + i for i, offset in enumerate(offsets) if _touches(offset, [name]))
                    for i in others:
                        until[i] = last
                ids += [*one, tokenizer.eos_token_id]
                weights += [*(recipe.object_weight if _touches(o, spans) else 1.0 for o in offsets), 1.0]
        batch = (torch.tensor(part[:need]).view(recipe.batch, -1) for part in (ids, weights, until))
        yield next(batch), next(batch), next(batch) - begin
        ids, weights, until = ids[need:], weights[need:], [last - need for last in until[need:]]
        step += 1


def people_known(step: int, recipe) -> int:
    doublings = max(0.0, (step - recipe.first_steps) / recipe.doubling)
    return min(recipe.n_people, round(recipe.first_people * 2**doublings))


def _touches(offset: tuple[int, int], spans) -> bool:
    return any(offset[0] < b and offset[1] > a for a, b in spans)
