"""Causal tracing: which states carry a fact (Meng et al. 2022a, section 2; `causal_trace.py` of kmeng01/rome)."""

import pandas as pd
import torch

from ..data.edit import fill
from .hooks import hooks, trace
from .tokenization import encode_prompt, target_ids

PLACES = ("first subject token", "last subject token", "next token", "last token")


@torch.no_grad()
def causal_trace(model, facts, noise=3.0, samples=5, seed=0, places: tuple[str, ...] = PLACES) -> pd.DataFrame:
    """How much of the answer's probability comes back when one state of the clean run is restored.

    facts: (prompt with {}, subject, answer) triples that the model knows. The subject's embeddings get Gaussian noise
    of `noise` standard deviations of the embedding matrix; then the stream after each layer at each of `places` is set
    to its clean value. p is of the answer's first token, behind a space that the tokenizer writes apart. Returns rows
    (place, layer, effect): mean over facts of (p_restored − p_corrupted) / (p_clean − p_corrupted), 1: all comes back.
    """
    embed = model.hf.get_input_embeddings()
    scale = getattr(embed, "scalar_embed_scale", 1.0)  # Gemma's embeddings leave the module this much larger
    sigma = noise * scale * embed.weight.float().std().item()
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(places), model.n_layers, dtype=torch.float64)
    for prompt, subject, answer in facts:
        encoded = encode_prompt(model.tokenizer, "{}", prompt, subject)
        text, begin, _ = fill("{}", prompt, subject)
        offsets = model.tokenizer(text, return_offsets_mapping=True).offset_mapping[: len(encoded.ids)]
        first = next(i for i, (a, b) in enumerate(offsets) if b > begin and b > a)
        said = target_ids(model.tokenizer, text, answer)
        space = next(i for i in range(len(said)) if model.tokenizer.decode(said[: i + 1]).strip())
        ids, answer_id = torch.tensor([encoded.ids + said[:space]], device=model.device), said[space]
        last = ids.shape[1] - 1
        where = dict(zip(PLACES, (first, encoded.lookup, min(encoded.lookup + 1, last), last), strict=True))
        _, clean = trace(model.hf, ids, outputs=model.layers)
        p_clean = _probability(model, ids, answer_id)
        shape = (samples, encoded.lookup + 1 - first, embed.weight.shape[1])
        shake = sigma * torch.randn(shape, generator=generator).to(model.device, model.dtype)

        def corrupt(module, args, output, shake=shake, first=first):
            output = output.clone()
            output[:, first : first + shake.shape[1]] += shake
            return output

        many = ids.expand(samples, -1)
        with hooks((embed, corrupt)):
            p_low = _probability(model, many, answer_id)
            for row, name in enumerate(places):
                for layer, module in enumerate(model.layers):

                    def put_back(module, args, output, at=where[name], clean=clean):
                        stream = output[0] if isinstance(output, tuple) else output
                        stream[:, at] = clean[module][:, at]
                        return output

                    with hooks((module, put_back)):
                        p = _probability(model, many, answer_id)
                    total[row, layer] += (p - p_low) / max(p_clean - p_low, 1e-6)
    table = pd.DataFrame((total / len(facts)).numpy(), index=pd.Index(list(places), name="place"))
    return table.rename_axis(columns="layer").stack().rename("effect").reset_index()


def _probability(model, ids, answer_id: int) -> float:
    logits = model.hf(input_ids=ids).logits[:, -1].to(model.math_dtype)
    return logits.softmax(-1)[:, answer_id].mean().item()
