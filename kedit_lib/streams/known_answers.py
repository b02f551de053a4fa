"""The unedited model's answers, kept in a folder so that no question is asked twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from ..data.atomic import replacing
from ..data.provenance import ALGORITHMS, key_of
from ..evaluation import generation_accuracy

ASKED = 256  # questions that are asked between two savings


class KnownAnswers:
    """Called with (prompt, answer) pairs: for each whether the unedited model says the answer by greedy decoding.

    match   as in `generation_accuracy`
    folder  where the answers are kept, one file for a model's weights and setting; None: the next process asks again
    """

    def __init__(self, model, match: str, folder: Path | None = None):
        self.model, self.match, self.found = model, match, {}
        key = key_of(model=[model.checksum, model.setting], match=match, algorithms=ALGORITHMS)
        self.path = None if folder is None else Path(folder) / f"answers-{key}.json"
        self._read()

    def __call__(self, pairs: list[tuple[str, str]]) -> list[bool]:
        names = [_name(*pair) for pair in pairs]
        ask = [pair for name, pair in dict(zip(names, pairs, strict=True)).items() if name not in self.found]
        for part in (ask[k : k + ASKED] for k in range(0, len(ask), ASKED)):
            with self.model.temporarily():
                right = generation_accuracy(self.model, [p for p, _ in part], [a for _, a in part], self.match)
            self._read()
            self.found.update(zip((_name(*pair) for pair in part), right, strict=True))
            if self.path is not None:
                with replacing(self.path) as partial:
                    partial.write_text(json.dumps(self.found))
        return [self.found[name] for name in names]

    def _read(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError):
                self.found = json.loads(self.path.read_text()) | self.found


def _name(prompt: str, answer: str) -> str:
    return hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()[:16]
