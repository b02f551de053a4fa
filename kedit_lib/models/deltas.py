"""Edits on disk: deltas by themselves (`outcome.save`, `load_deltas`), and an edited model that transformers loads
(`model.save_pretrained`). A file of deltas names the model it belongs to, its edits, and how they were made."""

import json
import os
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from ..data.atomic import replacing, writing
from ..data.edit import Edit
from ..data.provenance import versions
from ..errors import KeditError, explained
from .architectures import digest_of

# Files of weights, by the names that transformers gives them, and of adapters: none may outlive those of a new model.
WEIGHTS = re.compile(r"((pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?)|adapter_(config|model)\..*")
DELTAS, RECORD = "deltas.safetensors", "kedit_edits.json"


@dataclass
class Deltas:
    """The weight changes of one call of a method, and how they came about."""

    method: str
    edits: list[Edit]
    deltas: dict[str, Tensor]  # {parameter name: tensor of its shape}
    hyperparameters: dict = field(default_factory=dict, kw_only=True)
    model_checksum: str | None = field(default=None, kw_only=True)  # of the unedited model, in the dtype that it had

    @property
    def record(self) -> dict:
        return record_of(self.method, self.hyperparameters, self.edits)

    def save(self, folder) -> Path:
        """`<folder>/deltas.safetensors`, in an atomic write; its path."""
        tensors = {n: d.detach().cpu().contiguous() for n, d in self.deltas.items()}
        about = {"model_checksum": self.model_checksum, "sha256": digest_of(tensors)}
        about |= {name: json.dumps(part) for name, part in {"versions": versions(), **self.record}.items()}
        with replacing(path := Path(folder) / DELTAS) as partial:
            save_file(tensors, str(partial), metadata=about)
        return path


def load_deltas(path) -> Deltas:
    """What `save` wrote, from the file or its folder. KeditError when it is missing or damaged."""
    path = Path(path) / DELTAS if Path(path).is_dir() else Path(path)
    with explained(f"deltas {path}: cannot be read", "save them again"):
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        if about.get("sha256", digest_of(tensors)) != digest_of(tensors):  # older files have none
            raise ValueError("checksum mismatch")
        record = {part: json.loads(about[part]) for part in ("method", "hyperparameters", "edits")}
        record["edits"] = [Edit(**e) for e in record["edits"]]
        return Deltas(**record, deltas=tensors, model_checksum=about["model_checksum"])


def record_of(method: str, hyperparameters: dict, edits: list[Edit]) -> dict:
    plain = [{name: value for name, value in asdict(e).items() if value} for e in edits]
    return {"method": method, "hyperparameters": hyperparameters, "edits": plain}


def load_record(folder) -> list[Edit]:
    """The edits that a folder of `save_model` names. KeditError when it names none."""
    path = Path(folder) / RECORD
    with explained(f"{path}: cannot be read for the model's edits", "name them yourself (--edits)"):
        calls = json.loads(path.read_text(encoding="utf-8"))["applied"]
        if not (edits := [Edit(**edit) for call in calls or [] for edit in call["edits"]]):
            raise ValueError("it names none")
    return edits


def save_model(model, folder) -> None:
    """The model as it is now, as a folder that plain `transformers` loads, with its edits in kedit_edits.json. All is
    written aside first; weights that lay there go, other files stay. KeditError for edits that are in no weight."""
    if by := ", ".join(model.memory):
        raise KeditError(f"{model.name}: its edits by {by} are in no weight and would be lost; restore() it first")
    about = {"model": {"name": model.name, "checksum": model.checksum}, "changed": sorted(model.edited)}
    about |= {"applied": model.applied, "versions": versions()}
    with writing(folder := Path(folder).absolute()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as aside, no_progress_bar():
            try:
                model.hf.save_pretrained(aside)
            except ValueError as error:  # such as a temperature without sampling
                why = f"transformers cannot save it ({' '.join(str(error).split())}); change hf.generation_config"
                raise KeditError(f"{model.name}: {why}") from error
            model.tokenizer.save_pretrained(aside)
            Path(aside, RECORD).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            folder.mkdir(exist_ok=True)
            for name in (new := os.listdir(aside)):
                os.replace(Path(aside, name), folder / name)
        for file in folder.iterdir():
            if WEIGHTS.fullmatch(file.name) and file.name not in new:
                file.unlink()


@contextmanager
def no_progress_bar():
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
