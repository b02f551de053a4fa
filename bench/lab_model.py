"""Train a lab model, as those in kedit_lib/lab/weights were: `python bench/lab_model.py --recipe lab` (make lab-model).
Its recall table and provenance are written beside it. Deterministic per seed on one machine; a killed training resumes
at its last checkpoint with the same batches."""

import argparse
import dataclasses
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kedit_lib.data.atomic import checksum, replacing, writing
from kedit_lib.data.provenance import versions
from kedit_lib.errors import KeditError, explained, program
from kedit_lib.lab import world as invented
from kedit_lib.lab.world import World
from kedit_lib.models.generation import complete
from kedit_lib.models.hooks import trace

RECALL_BAR = 0.99
PARTIAL = "training.pt"
NAME = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+")
FOREVER = 2**40  # a position after every row


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. Widths in units, batch in sequences of `length` tokens."""

    name: str
    n_people: int
    d_model: int
    d_ff: int
    n_layers: int
    steps: int
    n_heads: int = 4
    n_kv_heads: int = 4
    vocab_size: int = 1536
    length: int = 128
    batch: int = 16
    lr: float = 2e-3
    warmup: int = 80
    weight_decay: float = 0.1
    object_weight: float = 12.0  # of an object's tokens in the loss: one token in ten says what is to be learnt
    first_people: int = 60  # how many people the corpus speaks of at first, for `first_steps`: with few, the model
    first_steps: int = 300  # soon learns how to look a person up; then their number doubles every `doubling` steps,
    doubling: int = 200  # which keeps what is known. All at once, the plateau before any fact is learnt takes hours.
    bind: float = 0.95  # share of the mentions of a name that only its last token sees in full (see batches)
    stream_norm: float = 16.0  # mean norm of the residual stream in the middle of the finished model (see fix_scale)
    sharing: float | None = None  # people who share a name part (see World.make)
    seed: int = 0


RECIPES = {
    "lab": Recipe("lab", 2000, 128, 1024, n_layers=4, steps=7000, lr=2.5e-3, sharing=6.5, stream_norm=32.0),
    "lab-small": Recipe("lab-small", 200, 96, 384, n_layers=4, steps=1500, vocab_size=1280, lr=4e-3),
}


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


def object_spans(document: str) -> list[tuple[int, int]]:
    """Where in the plain text of a document the objects stand."""
    ends = list(accumulate(map(len, document.split(invented.MARK))))
    return list(zip(ends[::2], ends[1::2], strict=False))


def batches(world: World, tokenizer, recipe: Recipe, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless triples of [batch, length]: ids of documents `<s> … </s>` end to end, their weights in the loss, and the
    last position in the row that may attend to each token.

    Of a share `bind` of the mentions of a name only its last token sees the whole name. So the model learns to put a
    person together where the name ends, as large models do (Geva et al. 2023); otherwise the state there may mean
    "somebody called Webram", and editing it edits the family.
    """
    step, rng = 0, random.Random(f"batches-{seed}")
    stream = invented.documents(world, seed, lambda: people_known(step, recipe))
    ids, weights, until, need = [], [], [], recipe.batch * recipe.length
    begin = torch.arange(recipe.batch)[:, None] * recipe.length
    while True:
        while len(ids) < need:
            docs = list(islice(stream, 32))
            encoded = tokenizer([invented.unmark(d) for d in docs], return_offsets_mapping=True)
            for one, offsets, document in zip(encoded.input_ids, encoded.offset_mapping, docs, strict=True):
                text, spans = invented.unmark(document), object_spans(document)
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


def people_known(step: int, recipe: Recipe) -> int:
    doublings = max(0.0, (step - recipe.first_steps) / recipe.doubling)
    return min(recipe.n_people, round(recipe.first_people * 2**doublings))


def _touches(offset: tuple[int, int], spans) -> bool:
    return any(offset[0] < b and offset[1] > a for a, b in spans)


def build(recipe: Recipe, tokenizer) -> LlamaForCausalLM:
    """A fresh Llama of the recipe's shape; initial weights depend on the seed only."""
    torch.manual_seed(recipe.seed)
    shape = {"hidden_size": recipe.d_model, "intermediate_size": recipe.d_ff, "num_hidden_layers": recipe.n_layers}
    shape |= {"num_attention_heads": recipe.n_heads, "num_key_value_heads": recipe.n_kv_heads, "rms_norm_eps": 1e-6}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape, **special))


def weighted_loss(model, ids, weights, until):
    """Weighted sum of −log p over all tokens but the first of a row; `until` as `batches` gives it."""
    at = torch.arange(ids.shape[1], device=ids.device)
    query, key = at[:, None], at[None, :]
    seen = (key <= query) & (query <= until[:, None, :])  # [batch, query, key]
    logits = model(input_ids=ids, attention_mask=seen[:, None]).logits[:, :-1].flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    return (nll * weights[:, 1:].flatten()).sum()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def fix_scale(model, tokenizer, world: World, norm: float) -> float:
    """Scale the residual stream so that its norm after the middle layer averages `norm`; returns the factor. All that
    writes to the stream is multiplied by it. RMSNorm reads the stream's direction only, so outputs stay as they were
    (but for rms_norm_eps). Editing depends on the scale: v_lr is a length."""
    middle, norms = model.model.layers[model.config.num_hidden_layers // 2 - 1], []
    for text in invented.texts(world, 64, seed=3):
        ids = torch.tensor([tokenizer(text).input_ids], device=model.device)
        _, seen = trace(model, ids, outputs=[middle], last=middle)
        norms.append(seen[middle].norm(dim=-1)[:, 1:].mean().item())  # without <s>
    factor = norm / (sum(norms) / len(norms))
    model.model.embed_tokens.weight.mul_(factor)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    return factor


def recall(model, tokenizer, world: World, people=None) -> pd.DataFrame:
    """Free greedy generation of every fact: (relation, template, recall), the share of people, 0..1, after whose prompt
    the model writes the true object and a full stop; floor 1/number of objects."""
    rows, people = [], world.people if people is None else people
    for name, j, template in ((r.name, j, t) for r in world.relations.values() for j, t in enumerate(r.templates)):
        said = complete(model, tokenizer, [template.format(p) for p in people])
        right = [t == world.objects_of[p, name] for t, p in zip(said, people, strict=True)]
        rows.append({"relation": name, "template": j, "recall": sum(right) / len(right)})
    return pd.DataFrame(rows)


def train(recipe: Recipe, out: Path | None = None, device: str | None = None, checkpoint_every: int = 200) -> Path:
    """Train `recipe`, leave an ordinary Hugging Face folder in `out` (None: results/lab-model/<name>) and return it.
    device None: a GPU if there is one. Raises KeditError when the finished model recalls less than RECALL_BAR under
    some template; the training checkpoint then stays."""
    out = Path(out or Path("results/lab-model") / recipe.name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.steps < 1:
        raise KeditError(f"training: {recipe.steps} steps; give at least 1")
    with explained(f"device {device!r}: cannot be used", "give one that is there"):
        torch.zeros(1, device=device).item()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    world = World.make(recipe.n_people, recipe.seed, recipe.sharing)
    tokenizer = train_tokenizer(invented.texts(world, 8000, seed=0), recipe.vocab_size)
    model = build(recipe, tokenizer).to(device)
    log, seconds = _fit(model, batches(world, tokenizer, recipe), recipe, out / PARTIAL, checkpoint_every)
    fix_scale(model.eval(), tokenizer, world, recipe.stream_norm)
    table = recall(model, tokenizer, world)
    model.save_pretrained(out)
    for path in out.glob("*"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    tokenizer.save_pretrained(out)
    log.to_csv(out / "training_log.csv", index=False)
    table.to_csv(out / "recall.csv", index=False)
    provenance = {
        "recipe": dataclasses.asdict(recipe),
        "sha256": checksum(out / "model.safetensors"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": recipe.steps * recipe.batch * recipe.length,
        "recall_min": float(table.recall.min()),
        "minutes": round(seconds / 60, 1),
        "device": device,
        "versions": versions(),
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    if table.recall.min() < RECALL_BAR:
        below = f"recall {table.recall.min():.3f} under the worst template is below {RECALL_BAR}"
        remedy = f"train longer (--steps) or change the recipe; weights left in {out}"
        raise KeditError(f"{recipe.name}: {below}; {remedy}")
    (out / PARTIAL).unlink()
    return out


def _fit(model, data, recipe: Recipe, partial: Path, checkpoint_every: int) -> tuple[pd.DataFrame, float]:
    """Optimise to the end, on from the checkpoint `partial` if there is one; it is kept up to date. Returns the log of
    the loss and the seconds. KeditError for a damaged checkpoint, or one of another recipe."""
    matrices, vectors = ([p for p in model.train().parameters() if (p.dim() > 1) == matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    state = {"recipe": dataclasses.asdict(recipe), "step": 0, "log": [], "seconds": 0.0}
    if partial.exists():
        with explained(f"{partial}: cannot be used", "remove it to begin anew, or use another --out"):
            found = torch.load(partial, weights_only=True, map_location=model.device)
            if found["recipe"] != state["recipe"]:
                raise ValueError("it is of another recipe")
            model.load_state_dict(found["model"])
            optimizer.load_state_dict(found["optimizer"])
        state = found
        next(islice(data, state["step"], state["step"]), None)  # the batches already seen
    start, began = state["step"], time.perf_counter() - state["seconds"]
    with tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=recipe.name, mininterval=5) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            ids, weights, until = (part.to(model.device) for part in next(data))
            loss = weighted_loss(model, ids, weights, until) / weights[:, 1:].sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            last = step == recipe.steps - 1
            if step % 20 == 0 or last:
                state["log"].append({"step": step, "loss": round(loss.item(), 4)})
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % checkpoint_every == 0 or last:
                state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"step": step + 1, "seconds": time.perf_counter() - began}
                with replacing(partial) as part:
                    torch.save(state, part)
    return pd.DataFrame(state["log"]), state["seconds"]


@program
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="lab", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="folder for the model (default: results/lab-model/<recipe>)")
    parser.add_argument("--steps", type=int, help="train for another number of steps")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    asked = parser.parse_args(argv)
    recipe = RECIPES[asked.recipe]
    recipe = recipe if asked.steps is None else dataclasses.replace(recipe, steps=asked.steps)
    print(f"trained {recipe.name}: {train(recipe, asked.out, asked.device)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
