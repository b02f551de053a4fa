"""`check_pipeline`: quiet about ids as they should be, one line about each of the two public bugs."""

import pytest
import tiny
import torch
from library import refused

import kedit_lib as kedit
from kedit_lib.models.tokenization import encode_prompt, target_ids


@pytest.fixture(params=tiny.KINDS)
def tokenizer(request):
    return tiny.tokenizer(request.param)


def pipeline(tokenizer, edit, side="right", start=False):
    """What a pipeline makes of an edit in three contexts; indices are always counted as if padded on the right."""
    prompt, subject, new = edit
    target = target_ids(tokenizer, prompt.format(subject), new)
    target = (tokenizer.bos_token_id, *target) if start else target
    prompts = [encode_prompt(tokenizer, c, prompt, subject) for c in tiny.CONTEXTS]
    rows = [[*p.ids, *target[:-1]] for p in prompts]
    longest = max(map(len, rows))
    fill = [[tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    ids = [f + r if side == "left" else r + f for r, f in zip(rows, fill, strict=True)]
    mask = [[0] * len(f) + [1] * len(r) for r, f in zip(rows, fill, strict=True)]
    mask = mask if side == "left" else [m[::-1] for m in mask]
    labels = [[-100] * longest for _ in rows]
    for row, label in zip(rows, labels, strict=True):
        label[len(row) - len(target) : len(row)] = target
    return {
        "subject": subject,
        "input_ids": torch.tensor(ids),
        "lookup": [p.lookup for p in prompts],
        "target_ids": torch.tensor(target),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


@pytest.mark.parametrize("edit", tiny.EDITS, ids=lambda e: e[1])
def test_nothing_is_said_where_nothing_is_wrong(tokenizer, edit):
    given = pipeline(tokenizer, edit)
    assert kedit.check_pipeline(tokenizer, **given) == []
    given["attention_mask"] = None
    assert kedit.check_pipeline(tokenizer, **given) == []


@pytest.mark.parametrize("edit", tiny.EDITS, ids=lambda e: e[1])
def test_left_padding_that_is_counted_as_right_is_told_row_by_row(tokenizer, edit):
    given = pipeline(tokenizer, edit, side="left")
    padded = [i for i, row in enumerate(given["attention_mask"].tolist()) if not row[0]]
    for mask in (given["attention_mask"], None):
        said = kedit.check_pipeline(tokenizer, **{**given, "attention_mask": mask, "labels": None})
        assert [line.split(":")[0] for line in said] == [f"row {i}" for i in padded]
        assert all("padding_side = 'right'" in line for line in said)
    said = kedit.check_pipeline(tokenizer, **given)
    assert sum("target is expected" in line for line in said) == len(padded)


def test_a_start_token_in_the_target_is_told_and_where_it_came_to_stand(tokenizer):
    given = pipeline(tokenizer, tiny.EDITS[1], start=True)
    said = kedit.check_pipeline(tokenizer, **given)
    assert "add_special_tokens=False" in said[0] and tokenizer.bos_token in said[0]
    assert [line.split(":")[0] for line in said[1:]] == ["row 0", "row 1", "row 2"]
    assert all("between prompt and target" in line for line in said[1:])


def test_another_token_and_another_subject_are_told_and_a_negative_index_counts_from_the_end(tokenizer):
    given = pipeline(tokenizer, tiny.EDITS[0])
    right = given["lookup"]
    given["lookup"] = [at - given["input_ids"].shape[1] for at in right]
    assert kedit.check_pipeline(tokenizer, **given) == []
    given["lookup"] = [at + 1 for at in right]
    said = kedit.check_pipeline(tokenizer, **given)
    assert len(said) == 3 and all("last token is" in line and "padding_side" not in line for line in said)
    given["subject"] = "Nobody"
    assert "'Nobody' is not in it" in kedit.check_pipeline(tokenizer, **given)[0]
    given["lookup"] = right[:2]
    refused(lambda: kedit.check_pipeline(tokenizer, **given), "3 rows", "2 lookups", "one index per row")
