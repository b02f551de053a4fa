"""Edit sets by name or from a file (the lab's, CounterFact, zsRE, KnowEdit, one's own), and what a model knows."""

import contextlib
import json
import random
import warnings
from pathlib import Path

import pandas as pd

from ..data.atomic import cached, replacing
from ..data.config import results_folder
from ..data.edit import Edit, in_chat
from ..data.files import records_of
from ..data.provenance import ALGORITHMS, key_of, sha256
from ..data.schemas import each_rewrite, fields_of
from ..data.world import RELATIONS, Geography, KnownWorld, geography
from ..errors import KeditError, check_editable
from ..evaluation import generation_accuracy, teacher_forced
from ..lab.edits import lab_edits
from ..lab.world import world_of
from ..models.tokenization import check_edit

MADE_BY_DEFAULT = 100  # edits
ASKED = 256  # questions that are asked between two savings
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
    for folders and hub names, such as split, name and data_files. In CSV, lists are written as JSON. Records that
    cannot be an edit are left out with one warning; `read_edits` gives the reasons, which name the record and the
    field. KeditError where no record can be one."""
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


class KnownAnswers:
    """Called with (prompt, answer) pairs: for each whether the unedited model says the answer, by `match` as in
    `generation_accuracy`. folder: keeps the answers, a file for a model's weights and setting (None: they are lost)."""

    def __init__(self, model, match: str, folder: Path | None = None):
        self.model, self.match, self.found = model, match, {}
        key = key_of(model=[model.checksum, model.setting], match=match, algorithms=ALGORITHMS)
        self.path = None if folder is None else Path(folder) / f"answers-{key}.json"

    def __call__(self, pairs: list[tuple[str, str]]) -> list[bool]:
        names = [sha256(json.dumps(pair))[:16] for pair in pairs]
        self._read()
        new = [(name, *pair) for name, pair in dict(zip(names, pairs, strict=True)).items() if name not in self.found]
        for part in (new[k : k + ASKED] for k in range(0, len(new), ASKED)):
            some, prompts, answers = map(list, zip(*part, strict=True))
            with self.model.temporarily():
                right = generation_accuracy(self.model, prompts, answers, self.match)
            self._read()  # what other processes asked meanwhile
            self.found.update(zip(some, right, strict=True))
            if self.path is not None:
                with replacing(self.path) as partial:
                    partial.write_text(json.dumps(self.found))
        return [self.found[name] for name in names]

    def _read(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError):
                self.found |= json.loads(self.path.read_text())


def known_world(model, cache: Path | None = None) -> KnownWorld:
    """The facts of `geography` that the unedited model says, and in which wordings. All are asked in the first
    statement of their relation; known ones then in the first question, the others in the second statement (each in
    every wording would take three times as long). The text must begin with the answer, "the" or not. cache: a folder
    where the answers are kept, by the model's weights and every word asked."""
    world = geography()
    asked = [world.asked, {name: r.wordings for name, r in RELATIONS.items()}]
    key = key_of(world=asked, model=[model.checksum, model.setting], algorithms=ALGORITHMS)
    with model.temporarily():
        said = cached(None if cache is None else Path(cache) / f"{key}.json", lambda: _ask(model, world))
    return KnownWorld(world, {f: s for f, s in zip(world.asked, said, strict=True) if s})


def _ask(model, world: Geography) -> list[dict[str, str]]:
    """{wording: the object as it was said} of each fact."""
    facts: list[tuple] = [(fact, {}) for fact in world.asked]
    # The wording to ask, of facts that were said in so many before.
    for kind, i, before in (("statements", 0, 0), ("questions", 0, 1), ("statements", 1, 1)):
        asked = [(f, s, getattr(RELATIONS[f.relation], kind)[i]) for f, s in facts if len(s) == before]
        prompts = [wording.format(f.subject) for f, _, wording in asked]
        right = generation_accuracy(model, prompts, [f.object for f, *_ in asked], "begins") if asked else []
        for (f, s, wording), says in zip(asked, right, strict=True):
            if says:
                s[wording] = f.object
    # Of objects that English puts "the" before, the form that the model says is the one to be scored.
    if both := [(f, s, wording) for f, s in facts if f.object in world.articles for wording in s]:
        prompts, the = [wording.format(f.subject) for f, _, wording in both], [f"the {f.object}" for f, *_ in both]
        share = teacher_forced(model, prompts, the).tokens_right.tolist()
        for (_, s, wording), right, answer in zip(both, share, the, strict=True):
            if right == 1:
                s[wording] = answer
    return [said for _, said in facts]
