"""Plain text that a model wrote itself, for C = E[k kᵀ] and for perplexity, where there is no corpus: documents sampled
at temperature 1. The draws are seeded, but rounding differs between machines and one token changes all that follow:
recipe, device and hash are kept beside the text, and SmolLM2's comes with the library, so that C is one matrix."""

import json
import lzma
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data.atomic import cached, remove
from ..data.provenance import key_of, sha256
from ..errors import KeditError, explained
from .generation import decode
from .hooks import no_bar
from .loading import cache_folder

WRITTEN_BEFORE = Path(__file__).parent / "written"  # texts that come with the library, one <key>.json.xz each
SELF = "self"  # as a profile's `texts`
DOCUMENT, AT_ONCE = 128, 64  # tokens of a document at most; documents written side by side, one part of the work
WRITTEN = 210_000  # tokens: 200,000 for C, and the documents that perplexity is measured on
COMPACT = 16  # steps after which rows that have ended leave the batch


def self_texts(model, tokens: int = WRITTEN, seed: int = 0, progress: bool = True) -> list[str]:
    """Documents that the unedited `model` wrote, at least `tokens` tokens: kept, or written now into the cache. A
    stopped call goes on where it was. KeditError when the cache cannot be read or holds something else."""
    recipe = {"model": model.checksum, "setting": model.setting, "start": start_token(model.tokenizer)}
    recipe |= {"temperature": 1.0, "document": DOCUMENT, "at_once": AT_ONCE, "tokens": tokens, "seed": seed}
    key = key_of(**recipe)
    path = cache_folder() / "self-text" / f"{key}.json"
    for kept in (WRITTEN_BEFORE / f"{key}.json.xz", path):
        if kept.exists():
            return _read(kept)
    parts, part, held, texts = path.with_suffix(""), 0, 0, []
    with tqdm(total=tokens, desc="the model writes its plain text", unit="token", disable=no_bar(progress)) as bar:
        while held < tokens:
            found = cached(parts / f"{part:04}.json", partial(write_part, model, seed, part))
            texts, held, part = texts + found["texts"], held + found["tokens"], part + 1
            bar.update(found["tokens"])
    about = {"recipe": recipe, "device": str(model.device), "torch": torch.__version__}
    about |= {"tokens": held, "texts": texts, "sha256": sha256("\0".join(texts))}
    cached(path, lambda: about)
    remove(parts)
    return texts


def start_token(tokenizer) -> int:
    """What stands in front of every document: BOS, or EOS where there is none. KeditError when there is neither."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise KeditError("plain text: the tokenizer has no start token to write from; name a corpus (make: TEXTS=)")


def write_part(model, seed: int, part: int) -> dict:
    """AT_ONCE documents of the unedited model: {"texts", "tokens"}. The same seed and part, the same draws."""
    tokenizer, generator = model.tokenizer, torch.Generator().manual_seed(10_000 * seed + part)
    ends = {start := start_token(tokenizer), tokenizer.eos_token_id}

    def sampled(logits):
        return torch.multinomial(logits.float().cpu().softmax(-1), 1, generator=generator)

    def stay(going: list[int], out) -> list[int]:
        tokens = len(out[going[0]])
        going = going if tokens % COMPACT else [i for i in going if ends.isdisjoint(out[i])]
        return going if tokens < DOCUMENT else []

    with model.temporarily():
        documents = decode(model.hf, dict.fromkeys(range(AT_ONCE), [start]), sampled, stay).values()
    written = [list(takewhile(lambda token: token not in ends, ids)) for ids in documents]
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
    tokens = sum(len(ids) for ids, text in zip(written, texts, strict=True) if text)
    return {"texts": [text for text in texts if text], "tokens": tokens}


def _read(path: Path) -> list[str]:
    with explained(f"plain text {path}: cannot be read", "remove it, and it is written again"):
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            found = json.load(file)
        if sha256("\0".join(found["texts"])) != found["sha256"]:
            raise ValueError("checksum mismatch")
        return found["texts"]
