"""What a lab model is trained on: its tokenizer, and batches in which only a name's last token sees the whole name."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from . import corpus
from .world import World

FOREVER = 2**40  # a position after every row


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `<s>` comes once in front of every encoded text. No unknown token: bytes cover all."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*special.values()], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    more = {"padding_side": "right", "model_max_length": 256, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special, **more)


def batches(world: World, tokenizer, recipe, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless triples of [batch, length]: ids of documents `<s> … </s>` end to end, their weights in the loss, and the
    last position in the row that may attend to each token."""
    step, rng = 0, random.Random(f"batches-{seed}")
    stream = corpus.documents(world, seed, lambda: people_known(step, recipe))
    ids, weights, until, need = [], [], [], recipe.batch * recipe.length
    begin = torch.arange(recipe.batch)[:, None] * recipe.length
    while True:
        while len(ids) < need:
            docs = [corpus.unmark(next(stream)) for _ in range(32)]
            encoded = tokenizer([text for text, _ in docs], return_offsets_mapping=True)
            for one, offsets, (text, spans) in zip(encoded.input_ids, encoded.offset_mapping, docs, strict=True):
                names = [span for span in corpus.mentions(world, text) if rng.random() < recipe.bind]
                until += [*(len(ids) + last for last in visible_until(offsets, names)), FOREVER]
                ids += [*one, tokenizer.eos_token_id]
                weights += [*(recipe.object_weight if _touches(o, spans) else 1.0 for o in offsets), 1.0]
        batch = (torch.tensor(part[:need]).view(recipe.batch, -1) for part in (ids, weights, until))
        yield next(batch), next(batch), next(batch) - begin
        ids, weights, until = ids[need:], weights[need:], [last - need for last in until[need:]]
        step += 1


def visible_until(offsets, names) -> list[int]:
    """For each token of a document the last one that may attend to it: of a name in `names`, its last token.

    Who does not see the first name must find it at the last one: the model learns to put a person together where the
    name ends, as large models do (Geva et al. 2023), and an edit there is an edit of that person. Otherwise it may as
    well read both names from wherever the answer is due; the state at the last one would then mean "somebody called
    Webram", and editing it would edit the family.
    """
    until = [FOREVER] * len(offsets)
    for span in names:
        inside = [i for i, offset in enumerate(offsets) if _touches(offset, [span])]
        for i in inside[:-1]:
            until[i] = inside[-1]
    return until


def people_known(step: int, recipe) -> int:
    """How many people the corpus speaks of at a step."""
    doublings = max(0.0, (step - recipe.first_steps) / recipe.doubling)
    return min(recipe.n_people, round(recipe.first_people * 2**doublings))


def _touches(offset: tuple[int, int], spans) -> bool:
    return any(offset[0] < b and offset[1] > a for a, b in spans)
