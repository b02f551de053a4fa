"""Second moments C = E[k kᵀ] of the edited map's inputs over plain text. Source: `layer_stats.py` of kmeng01/rome:
uncentred, over all non-padding tokens, sum over count."""

import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data.atomic import replacing
from ..data.files import texts_of
from ..data.provenance import sha256
from ..errors import KeditError, check_editable, explained
from ..models.architectures import check_owner
from ..models.hooks import no_bar, pad, trace
from ..models.tokenization import encode, positions_of, windows

SYMMETRIC = 1e-4  # largest difference of mirrored entries, relative to the largest entry: what rounding may leave
NO_LIMIT = 2048  # tokens of a window for models whose positions do not end


class SecondMoments:
    """C of each layer, tensors {layer: [d_ff, d_ff]}, and the model they belong to, model_checksum (None: unknown, as
    of given tensors). about: corpus hash, number of texts and tokens, dtype."""

    def __init__(self, tensors: dict[int, Tensor], model_checksum: str | None = None, about: dict | None = None):
        for layer, c in tensors.items():
            problem = None
            if not isinstance(c, Tensor) or not c.is_floating_point() or c.dim() != 2 or c.shape[0] != c.shape[1]:
                shape = f"{getattr(c, 'dtype', type(c).__name__)}, shape {tuple(getattr(c, 'shape', ()))}"
                problem = f"{shape}; C must be a square tensor of floating-point numbers, d_ff × d_ff"
            elif not torch.isfinite(c).all():
                problem = "hold NaN or inf; estimate them again"
            elif (off := float((c - c.T).abs().max())) > SYMMETRIC * float(c.abs().max()):
                problem = f"C is not symmetric (mirrored entries differ by {off:.3g}), E[k kᵀ] is; estimate them again"
            if problem:
                raise KeditError(f"moments of layer {layer}: {problem}")
        self.tensors, self.model_checksum, self.about = tensors, model_checksum, about or {}
        self._factors: dict[tuple[int, float], Tensor] = {}
        self.null_spaces: dict = {}  # by cut, see NullSpace.from_moments

    def __repr__(self) -> str:
        tokens, width = self.about.get("tokens"), len(next(iter(self.tensors.values()), ()))
        measured = "given as tensors" if tokens is None else f"of {tokens} tokens"
        return f"SecondMoments(C of layers {sorted(self.tensors)}, {width} × {width}, {measured})"

    @classmethod
    def from_tensors(cls, tensors: dict[int, Tensor], model_checksum: str | None = None) -> Self:
        """From given matrices {layer: [d_ff, d_ff]}."""
        return cls(dict(tensors), model_checksum)

    @classmethod
    def estimate(cls, model, texts, layers, cache=None, batch_tokens=8192, progress=False, tokens=None) -> Self:
        """Measure C on `texts` at `layers` of the unedited model, by products in float32 (float64 for a float64 model)
        summed in float64; padding never counts. texts: documents, rows with a field `text`, or a file: a .txt whose
        paragraphs are documents, or records. A document beyond the model's context is read in windows. cache: a folder
        that keeps results by model, corpus, layers and dtype. tokens: only the first texts, up to that many."""
        if tokens is not None and not (type(tokens) is int and tokens >= 1):
            raise KeditError(f"moments: tokens = {tokens!r}; must be a whole number of at least 1, or None for all")
        check_editable(model, "moments")
        layers, texts = model.check_layers(layers), texts_of(texts, "moments")
        limit = min(positions_of(model.hf.config), NO_LIMIT)
        about = {"corpus": sha256("\x00".join(texts)), "texts": len(texts), "dtype": str(model.dtype)}
        about |= {"layers": list(layers)} | ({} if tokens is None else {"budget": tokens})
        # No text has more tokens than bytes.
        if any(len(encode(model.tokenizer, text)) > limit for text in texts if len(text.encode()) > limit):
            about["windows"] = limit
        key = sha256(json.dumps([model.checksum, model.setting, about], sort_keys=True))[:20]
        path = cache and Path(cache) / f"moments-{key}.safetensors"
        if path and path.exists():
            return cls.load(path).warned(model.d_ff)
        rows, about["tokens"] = [], 0
        for text in texts:
            if tokens is None or about["tokens"] < tokens:
                cut = windows(model.tokenizer, text, limit)
                rows, about["tokens"] = rows + cut, about["tokens"] + sum(map(len, cut))
        moments = cls(_mean_products(model, rows, layers, batch_tokens, progress), model.checksum, about)
        if path:
            moments.save(path)
        return moments.warned(model.d_ff)

    def warned(self, d_ff: int) -> Self:
        """Itself, with a warning if fewer tokens than d_ff were measured: C's rank is at most their number."""
        if (tokens := self.about.get("tokens", d_ff)) < d_ff:
            says = f"C says nothing about {d_ff - tokens} of {d_ff} directions; estimate it on at least {10 * d_ff}"
            warnings.warn(f"moments: {tokens} tokens were measured, {says} tokens", stacklevel=3)
        return self

    def check(self, model, layers, invert: float | None = 0.0) -> None:
        """KeditError unless these belong to `model`, cover `layers`, and C + invert·I, if not None, has an inverse."""
        check_owner("moments: are", self.model_checksum, model, "estimate them on this one")
        self.warned(model.d_ff)
        for layer in layers:
            if layer not in self.tensors:
                there = f"there are {sorted(self.tensors)}"
                raise KeditError(f"moments: none for layer {layer} ({there}); estimate that layer too")
            if (width := len(self.tensors[layer])) != model.d_ff:
                whose = f"{model.name} has d_ff {model.d_ff}; they belong to another model"
                raise KeditError(f"moments of layer {layer}: width {width}, {whose}")
            if invert is not None:
                self.factor(layer, invert, model.device)

    @cached_property
    def identity(self) -> str:
        """A hash of the matrices' values that names them in stores."""
        data = {i: c.cpu().contiguous().view(torch.uint8).numpy().data for i, c in sorted(self.tensors.items())}
        hashes = [(i, str(self.tensors[i].dtype), sha256(values)) for i, values in data.items()]
        return sha256(json.dumps([self.model_checksum, *hashes], sort_keys=True))[:20]

    def factor(self, layer: int, shift: float = 0.0, device: torch.device | None = None) -> Tensor:
        """Lower Cholesky factor of C + shift·I in float64, computed once and kept on the `device` last asked for (None:
        where it is, at first C's own). KeditError if it is not positive definite."""
        if (found := self._factors.get((layer, shift))) is None:
            c = self.tensors[layer].to(device, torch.float64)
            c = (c + c.T).mul_(0.5)
            c.diagonal().add_(shift)
            found, info = torch.linalg.cholesky_ex(c)
            if info.item():
                remedy = f"estimate it on more text, at least ten times d_ff = {c.shape[0]} tokens"
                problem = f"C is not positive definite (leading minor {info.item()})"
                raise KeditError(f"moments of layer {layer}: {problem}; {remedy}")
        self._factors[layer, shift] = found.to(device)
        return self._factors[layer, shift]

    def solve(self, layer: int, k: Tensor, shift: float = 0.0) -> Tensor:
        """(C + shift·I)⁻¹ k in float64 for k [n, d_ff] (rows), as [n, d_ff]."""
        return torch.cholesky_solve(k.double().T, self.factor(layer, shift, k.device)).T

    def save(self, path) -> None:
        """Write one safetensors file, atomically, with owner and corpus in its header."""
        meta = {"model_checksum": self.model_checksum or "", "about": json.dumps(self.about), "identity": self.identity}
        with replacing(path) as partial:
            save_file({f"layer{i}": c.contiguous() for i, c in self.tensors.items()}, str(partial), metadata=meta)

    @classmethod
    def load(cls, path) -> Self:
        """What `save` wrote. KeditError when the file is missing or damaged, or its matrices are no moments."""
        damaged = explained(f"moments file {path}: cannot be read", "remove it and estimate again")
        with damaged, safe_open(str(path), "pt") as file:
            meta, names = file.metadata() or {}, list(file.keys())
            tensors = {int(name.removeprefix("layer")): file.get_tensor(name) for name in names}
            moments = cls(tensors, meta.get("model_checksum") or None, json.loads(meta.get("about", "{}")))
            if meta.get("identity", moments.identity) != moments.identity:  # older files have none
                raise ValueError("checksum mismatch")
            return moments


@torch.no_grad()
def _mean_products(model, rows: list[tuple], layers, batch_tokens: int, progress: bool) -> dict[int, Tensor]:
    """{layer: C} of rows of token ids; sorted by length, so that there is little padding."""
    rows, modules, count = sorted(rows, key=len), {layer: model.mlp_out(layer) for layer in layers}, sum(map(len, rows))
    total = {i: torch.zeros(model.d_ff, model.d_ff, dtype=torch.float64, device=model.device) for i in layers}
    with model.temporarily(), tqdm(total=len(rows), desc="second moments", disable=no_bar(progress)) as bar:
        while rows:
            size = max(1, batch_tokens // max(1, len(rows[-1])))
            part, rows = rows[-size:], rows[:-size]
            seen, _ = trace(model.hf, pad(part, model.device), modules.values(), last=modules[max(layers)])
            for layer, module in modules.items():
                k = torch.cat([x[: len(row)] for x, row in zip(seen[module], part, strict=True)]).to(model.math_dtype)
                total[layer] += (k.T @ k).double()
            bar.update(len(part))
    return {i: (c / count).to(model.math_dtype).cpu() for i, c in total.items()}
