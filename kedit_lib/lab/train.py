"""Train a lab model: `kedit train-lab --recipe lab` (make lab-model).

Deterministic per seed on one machine; a killed training resumes at its last checkpoint with the same batches. Ends by
measuring recall of every fact under every template and refuses to install weights that miss the bar.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from ..data.atomic import checksum, replacing, writing
from ..data.provenance import versions
from ..errors import KeditError, first_line
from ..models.generation import complete
from ..models.hooks import hooks
from . import corpus
from .batches import batches, train_tokenizer
from .world import World

WEIGHTS = Path(__file__).parent / "weights"
RECALL_BAR = 0.99
PARTIAL = "training.pt"


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
    bind: float = 0.95  # share of the mentions of a name that only its last token sees in full (batches.visible_until)
    stream_norm: float = 16.0  # mean norm of the residual stream in the middle of the finished model (see fix_scale)
    sharing: float | None = None  # people who share a name part (see World.make)
    seed: int = 0


RECIPES = {
    "lab": Recipe("lab", 2000, 128, 1024, n_layers=4, steps=7000, lr=2.5e-3, sharing=6.5, stream_norm=32.0),
    "lab-small": Recipe("lab-small", 200, 96, 384, n_layers=4, steps=1500, vocab_size=1280, lr=4e-3),
}


def build(recipe: Recipe, tokenizer) -> LlamaForCausalLM:
    """A fresh Llama of the recipe's shape; initial weights depend on the seed only."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_ff,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rms_norm_eps=1e-6,
    )
    return LlamaForCausalLM(config)


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
    """Scale the residual stream so that its norm after the middle layer averages `norm`; returns the factor.

    RMSNorm reads the stream's direction only, so multiplying everything that writes to it (embeddings, attention and
    MLP output maps) by one factor leaves every output as it was, but for rms_norm_eps; training stops at whatever scale
    its learning rate led to. Editing depends on it: v_lr is an absolute length.
    """
    middle, norms = model.model.layers[model.config.num_hidden_layers // 2 - 1], []

    def note(module, args, output):
        norms.append(output.norm(dim=-1)[:, 1:].mean().item())  # without <s>

    with hooks((middle, note)):
        for text in corpus.texts(world, 64, seed=3):
            model(input_ids=torch.tensor([tokenizer(text).input_ids], device=model.device))
    factor = norm / (sum(norms) / len(norms))
    maps = [m for layer in model.model.layers for m in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for module in (model.model.embed_tokens, *maps):
        module.weight.mul_(factor)
    return factor


def recall(model, tokenizer, world: World, people=None) -> pd.DataFrame:
    """Free greedy generation of every fact under every template, one row per (relation, template).

    `recall`: share of people whose generated continuation up to the full stop equals the true object. Range 0..1; the
    floor is 1/number of objects.
    """
    rows = []
    people = list(world.people if people is None else people)
    for r in world.relations.values():
        for j, template in enumerate(r.templates):
            said = complete(model, tokenizer, [template.format(p) for p in people])
            right = [t == world.objects_of[p, r.name] for t, p in zip(said, people, strict=True)]
            rows.append({"relation": r.name, "template": j, "recall": sum(right) / len(right)})
    return pd.DataFrame(rows)


def train(recipe: Recipe, out: Path, workers: int = 2, device: str = "cpu", checkpoint_every: int = 200) -> Path:
    """Train `recipe`, leave an ordinary Hugging Face folder in `out` and return it.

    On the CPU `workers` processes of one thread each share every batch; elsewhere one process does it all. Raises
    KeditError when the finished model recalls less than 99 % under some template; the training checkpoint then stays.
    """
    out = Path(out)
    if recipe.steps < 1 or workers < 1:
        raise KeditError(f"training: {recipe.steps} steps with {workers} workers; give at least 1 of each")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise KeditError(f"device {device!r}: cannot be used ({first_line(error)}); give one that is there") from error
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    _check_resume(recipe, out / PARTIAL)
    workers = workers if device == "cpu" else 1
    if workers == 1:
        _fit(0, 1, recipe, out, device, checkpoint_every)
    else:
        (out / ".workers").unlink(missing_ok=True)  # of a killed training
        torch.multiprocessing.spawn(_fit, (workers, recipe, out, device, checkpoint_every), nprocs=workers)
    return _finish(recipe, out, workers, device)


def _check_resume(recipe: Recipe, partial: Path) -> None:
    if not partial.exists():
        return
    try:
        begun = torch.load(partial, weights_only=True, map_location="cpu")["recipe"]
    except Exception as error:  # whatever it makes of a damaged file
        raise KeditError(f"{partial}: cannot be read ({first_line(error)}); remove it to begin anew") from error
    if begun != dataclasses.asdict(recipe):
        raise KeditError(f"{partial}: was written by another recipe; remove the file or use another --out")


def _fit(rank: int, workers: int, recipe: Recipe, out: Path, device: str, checkpoint_every: int) -> None:
    """One of `workers` processes: optimise to the end, on its share of the rows of every batch."""
    if workers > 1:
        torch.set_num_threads(1)
        store = torch.distributed.FileStore(str(out / ".workers"), workers)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    model, world, tokenizer = _model(recipe)
    model.to(device).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    flat = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    data, start, log, spent = batches(world, tokenizer, recipe), 0, [], 0.0
    if (out / PARTIAL).exists():
        state = torch.load(out / PARTIAL, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, log, spent = state["step"], state["log"], state["seconds"]
        for _ in range(start):  # the batches already seen
            next(data)

    began, mine = time.perf_counter(), slice(rank, None, workers)
    steps = range(start, recipe.steps)
    with tqdm(steps, initial=start, total=recipe.steps, desc=recipe.name, mininterval=5, disable=rank > 0) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            ids, weights, until = (part.to(device) for part in next(data))
            loss = weighted_loss(model, ids[mine], weights[mine], until[mine]) / weights[:, 1:].sum()
            loss.backward()
            loss = loss.detach()
            for tensor in [loss, *(p.grad for p in model.parameters())] if workers > 1 else []:
                torch.distributed.all_reduce(tensor)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            last = step == recipe.steps - 1
            if step % 20 == 0 or last:
                log.append({"step": step, "loss": round(loss.item(), 4)})
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if rank == 0 and ((step + 1) % checkpoint_every == 0 or last):
                state = {
                    "recipe": dataclasses.asdict(recipe),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "log": log,
                    "seconds": spent + time.perf_counter() - began,
                }
                with replacing(out / PARTIAL) as partial:
                    torch.save(state, partial)
    if workers > 1:
        torch.distributed.destroy_process_group()
        (out / ".workers").unlink(missing_ok=True)


def _model(recipe: Recipe):
    """An untrained model, its world and its tokenizer."""
    world = World.make(recipe.n_people, recipe.seed, recipe.sharing)
    tokenizer = train_tokenizer(corpus.texts(world, 8000, seed=0), recipe.vocab_size)
    return build(recipe, tokenizer), world, tokenizer


def _finish(recipe: Recipe, out: Path, workers: int, device: str) -> Path:
    """Scale, measure and save what `_fit` left."""
    state = torch.load(out / PARTIAL, weights_only=True, map_location=device)
    model, world, tokenizer = _model(recipe)
    model.load_state_dict(state["model"])
    model.to(device).eval()
    fix_scale(model, tokenizer, world, recipe.stream_norm)
    table = recall(model, tokenizer, world)
    model.save_pretrained(out)
    for path in out.glob("*"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    tokenizer.save_pretrained(out)
    pd.DataFrame(state["log"]).to_csv(out / "training_log.csv", index=False)
    table.to_csv(out / "recall.csv", index=False)
    provenance = {
        "recipe": dataclasses.asdict(recipe),
        "sha256": checksum(out / "model.safetensors"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": recipe.steps * recipe.batch * recipe.length,
        "recall_min": float(table.recall.min()),
        "minutes": round(state["seconds"] / 60, 1),
        "device": device,
        "workers": workers,
        "versions": versions(),
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    if table.recall.min() < RECALL_BAR:
        raise KeditError(
            f"{recipe.name}: recall {table.recall.min():.3f} under the worst template is below {RECALL_BAR}; "
            f"train longer (--steps) or change the recipe; weights left in {out}"
        )
    (out / PARTIAL).unlink()
    return out


def train_recipe(
    name: str, out: Path | None = None, steps: int | None = None, workers: int = 2, device: str | None = None
) -> Path:
    """`train` with the recipe of that name; None: results/lab-model/<name>, its own steps, a GPU if there is one."""
    recipe = RECIPES[name] if steps is None else dataclasses.replace(RECIPES[name], steps=steps)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return train(recipe, out or Path("results/lab-model") / name, workers, device)
