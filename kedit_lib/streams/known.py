"""What an unedited model knows: asked once, by greedy decoding, and kept in a folder."""

import contextlib
import hashlib
import json
from pathlib import Path

from ..data.atomic import cached, replacing
from ..data.provenance import ALGORITHMS, key_of
from ..data.world import RELATIONS, Geography, KnownWorld, geography
from ..evaluation import generation_accuracy, teacher_forced

ASKED = 256  # questions that are asked between two savings


class KnownAnswers:
    """Called with (prompt, answer) pairs: for each whether the unedited model says the answer, by `match` as in
    `generation_accuracy`. folder: keeps the answers, a file for a model's weights and setting (None: they are lost)."""

    def __init__(self, model, match: str, folder: Path | None = None):
        self.model, self.match, self.found = model, match, {}
        key = key_of(model=[model.checksum, model.setting], match=match, algorithms=ALGORITHMS)
        self.path = None if folder is None else Path(folder) / f"answers-{key}.json"

    def __call__(self, pairs: list[tuple[str, str]]) -> list[bool]:
        names = [hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:16] for pair in pairs]
        self._read()
        new = [(name, *pair) for name, pair in dict(zip(names, pairs, strict=True)).items() if name not in self.found]
        for part in (new[k : k + ASKED] for k in range(0, len(new), ASKED)):
            part, prompts, answers = map(list, zip(*part, strict=True))
            with self.model.temporarily():
                right = generation_accuracy(self.model, prompts, answers, self.match)
            self._read()  # what other processes asked meanwhile
            self.found.update(zip(part, right, strict=True))
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
