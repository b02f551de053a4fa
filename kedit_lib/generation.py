"""Greedy completion in batches, for measuring what a model says when nobody hands it the answer."""

from __future__ import annotations

import torch


@torch.no_grad()
def generate_ids(
    model, tokenizer, prompts: list[str], max_new_tokens: int, batch: int = 256, stop: tuple[int, ...] = ()
) -> list[list[int]]:
    """Greedy continuations of each prompt, as token ids without the prompt, up to `</s>` and with it.

    A batch ends early once every row has said `</s>` or one of the ids in `stop`.

    Prompts are grouped by length so that no padding is needed: position numbers and attention are
    then the ones of a prompt run alone, whatever the tokenizer's padding side.
    """
    device = next(model.parameters()).device
    ends = torch.tensor([tokenizer.eos_token_id, *stop], device=device)
    ids = tokenizer(prompts).input_ids if prompts else []
    by_length: dict[int, list[int]] = {}
    for i, one in enumerate(ids):
        by_length.setdefault(len(one), []).append(i)
    out: list[list[int]] = [[] for _ in prompts]
    for members in by_length.values():
        for begin in range(0, len(members), batch):
            rows = members[begin : begin + batch]
            step = torch.tensor([ids[i] for i in rows], device=device)
            past, new = None, []
            ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
            for _ in range(max_new_tokens):
                result = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
                past = result.past_key_values
                step = result.logits[:, -1].argmax(-1, keepdim=True)
                new.append(step)
                ended |= torch.isin(step[:, 0], ends)
                if ended.all():
                    break
            for i, said in zip(rows, torch.cat(new, 1).tolist(), strict=True):
                out[i] = said
    eos = tokenizer.eos_token_id
    return [said[: said.index(eos) + 1] if eos in said else said for said in out]


def complete(model, tokenizer, prompts: list[str], max_new_tokens: int = 8, batch: int = 256) -> list[str]:
    """What the model says after each prompt up to the first full stop, line end or `</s>`, stripped."""
    return [text for text, _ in completions(model, tokenizer, prompts, max_new_tokens, batch)]


def completions(
    model, tokenizer, prompts: list[str], max_new_tokens: int = 8, batch: int = 256
) -> list[tuple[str, bool]]:
    """The same, each with whether it came to its end (False: cut off after `max_new_tokens`)."""
    stop = tuple(tokenizer(".", add_special_tokens=False).input_ids[-1:])
    out = []
    for ids in generate_ids(model, tokenizer, prompts, max_new_tokens, batch, stop):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        said = text.split(".")[0].split("\n")[0]
        out.append((said.strip(), said != text or ids[-1:] == [tokenizer.eos_token_id]))
    return out
