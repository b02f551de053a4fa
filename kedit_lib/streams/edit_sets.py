"""Edit sets by name or from a file: the lab's, CounterFact, zsRE, KnowEdit, and the user's own."""

import random
import warnings
from pathlib import Path

import pandas as pd

from ..data.config import results_folder
from ..data.edit import Edit, in_chat
from ..data.files import records_of
from ..data.schemas import each_rewrite, fields_of
from ..errors import KeditError, check_editable
from ..lab import world_of
from ..lab.edits import lab_edits
from ..models.tokenization import check_edit
from .known import known_world

MADE_BY_DEFAULT = 100  # edits
MADE = {"lab": "the lab model whose world the edits are about", "world": "the model whose knowledge is to be edited"}


def load_edits(
    source: str | Path, model=None, limit: int | None = None, seed: int = 0, chat: bool = False, **hub
) -> list[Edit]:
    """Edits from "lab" or "world", from a file (.json, .jsonl, .csv, .parquet), a folder, or a hub name "owner/name".

    "lab" needs a lab model; the seed decides the sample, the order and the edits (limit None: 100, or as many as there
    are people). "world", cities and countries (GeoNames, CC BY 4.0), likewise, but only facts that `model` knows in two
    wordings or more, which is asked once and kept in results/known. Of others, `limit` draws a sample of that size by
    the seed (None: all, in their order); with `model`, only of what its tokenizer can write. chat: the prompts are
    questions to a chat model and are put into the chat template of `model`. hub: keywords of `datasets.load_dataset`
    for folders and hub names, such as split, name and data_files.

    In CSV, lists are written as JSON. Records that cannot be an edit are left out with one warning; `read_edits` gives
    the reasons, which name the record and the field. KeditError where no record can be one.
    """
    source = str(source)
    if source in MADE:
        if chat or hub:
            named = ", ".join([*hub, *["chat"] * chat])
            raise KeditError(f"load_edits({source!r}): {named} goes with data sets only; leave it out")
        if model is None:
            raise KeditError(f"load_edits({source!r}): pass model=, {MADE[source]}")
        check_editable(model, "load_edits")
        if source == "world":
            known = known_world(model, results_folder() / "known")
            return known.edits(MADE_BY_DEFAULT if limit is None else limit, seed)
        world = world_of(model)
        return lab_edits(world, min(MADE_BY_DEFAULT, len(world.streamed)) if limit is None else limit, seed)
    edits, rejected = read_edits(source, model, chat, **hub)
    name, n = Path(source).name, len(rejected)
    if not edits:
        raise KeditError(f"{name}: none of {n} records can be an edit; {rejected.reason[0]}")
    same, spaces = sum(e.target_new == e.target_true for e in edits), sum(e.ends_in_space for e in edits)
    first = f"the first: {rejected.reason[0]} (read_edits lists them all)" if n else ""
    doubts = {
        f"{n} of {n + len(edits)} records cannot be edits and are left out, {first}": n,
        f"in {same} of {len(edits)} edits target_new equals target_true": same,
        f"in {spaces} of {len(edits)} edits the prompt ends in a space; take it away": spaces,
    }
    if said := "; ".join(doubt for doubt, count in doubts.items() if count):
        warnings.warn(f"{name}: {said}", stacklevel=2)
    if limit is None:
        return edits
    if not isinstance(limit, int) or not 1 <= limit <= len(edits):
        raise KeditError(f"{name}: limit = {limit!r}, the file has {len(edits)} edits; choose 1 to {len(edits)}")
    return random.Random(seed).sample(edits, limit)


def read_edits(source: str | Path, model=None, chat: bool = False, **hub) -> tuple[list[Edit], pd.DataFrame]:
    """All edits of a file, a folder or a hub name in its order, and a row for every record that cannot be one: record
    (counted from 1), id (as in the file), subject, reason (the subject is not in the prompt, or there twice; a text is
    empty; or the tokenizer of `model` cannot write a target). Arguments and errors as of `load_edits`."""
    if (made := str(source)) in MADE:
        raise KeditError(f"read_edits({made!r}): these edits are made, not read; use load_edits({made!r}, model=…)")
    if model is not None and not hasattr(model, "tokenizer"):
        check_editable(model, "load_edits")
    if chat and model is None:
        raise KeditError(f"{Path(source).name}: chat=True needs the chat template of a model; pass model=")
    edits, rejected, more = [], [], {}
    with warnings.catch_warnings(action="ignore"):  # of a whole data set, load_edits warns once
        for record in (one for whole in records_of(source, **hub) for one in each_rewrite(whole)):
            try:
                fields, unknown = fields_of(record)
                text = fields.pop("text", None)  # a prompt in which the subject stands
                edit = Edit(**fields) if text is None else Edit.from_text(text, **fields)
                edit = in_chat(edit, model.tokenizer) if chat else edit
                if model is not None:
                    check_edit(model.tokenizer, edit)
                edits.append(edit)
                more |= dict.fromkeys(unknown)
            except KeditError as error:
                reason = f"{record.where}: {str(error).removeprefix(f'{record.where}: ')}"
                subject = record.label("subject", "requested_rewrite.subject", default="")
                rejected.append((record.number, record.label("case_id", "id"), subject, reason))
    if more:
        said = ", ".join(f"{name!r}" for name in more)
        warnings.warn(f"{Path(source).name}: no field of an edit, and left out: {said}", stacklevel=2)
    return edits, pd.DataFrame(rejected, columns=["record", "id", "subject", "reason"])
