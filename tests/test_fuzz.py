"""Fuzzed loaders: whatever a file holds, it is read or refused in one line; no other exception, and the file stays."""

import json
import os
import warnings

import pandas as pd
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kedit_lib as kedit
from kedit_lib.data.config import load_profile, params_folder
from kedit_lib.report import reproduce
from kedit_lib.streams.store import Checkpoint, RunFolder

quick = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
RECORDS = [
    {"prompt": "{} plays the", "subject": "Zoë", "target_new": "violin", "paraphrases": ["Zoë plays"]},
    {"prompt": "{} speaks", "subject": "Ana", "target_new": "Dutch", "portability": [["Ana lives in", "Graz"]]},
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
fields = st.sampled_from([*kedit.Edit.__dataclass_fields__, "requested_rewrite", "src", "alt", "cases", "rephrase"])


def read_or_refused(load, path):
    before = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(path)
    except kedit.KeditError as error:
        assert "\n" not in str(error) and str(error).strip()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Cut, overwritten, with something inserted, or nothing of it left."""
    at, end = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
    inserted = draw(
        st.binary(max_size=8) | st.sampled_from([b"[" * 1200, b'{"a":' * 1200, b"9" * 5000, b"\xff\xfe", b"\0"])
    )
    kind = draw(st.sampled_from(["cut", "replaced", "inserted", "one bit", "only"]))
    if kind == "one bit" and at < len(whole):
        return whole[:at] + bytes([whole[at] ^ 1 << draw(st.integers(0, 7))]) + whole[at + 1 :]
    return {
        "cut": whole[:at],
        "replaced": whole[:at] + inserted + whole[end:],
        "inserted": whole[:at] + inserted + whole[at:],
    }.get(kind, inserted)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """{file name: (its bytes, what reads it)} of every kind of file that a user hands over."""
    folder = tmp_path_factory.mktemp("wholes")
    table = pd.DataFrame(RECORDS[:1])
    table.to_parquet(folder / "edits.parquet")
    kedit.SecondMoments.from_tensors({i: c[:4, :4] for i, c in tiny.second_moments([1, 2]).items()}).save(folder / "C")
    history = kedit.EditHistory()
    history.edits, history.model_checksum, history._b = 2, "0" * 64, "B"
    history.tensors = {"k.1": torch.ones(2, 4), "bk.1": torch.ones(2, 4)}
    history.save(folder / "H")
    profile = (params_folder() / "profiles" / "smoke.yaml").read_bytes()
    source = {"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["seed = 0\n"]}]}
    return {
        "edits.json": (json.dumps(RECORDS).encode(), kedit.load_edits),
        "edits.jsonl": ("\n".join(map(json.dumps, RECORDS)).encode(), kedit.load_edits),
        "edits.csv": (b'prompt,subject,target_new,paraphrases\n{} plays,Zo,oboe,"[""Zo is""]"\n', kedit.load_edits),
        "edits.parquet": ((folder / "edits.parquet").read_bytes(), kedit.load_edits),
        "C.safetensors": ((folder / "C").read_bytes(), kedit.SecondMoments.load),
        "H.safetensors": ((folder / "H").read_bytes(), kedit.EditHistory.load),
        "smoke.yaml": (profile, load_profile),
        "MEMIT.yaml": (b'alg_name: "MEMIT"\nlayers: [4, 5]\nv_lr: 5e-1\n', kedit.method_from_file),
        "MEMIT.json": (b'{"alg_name": "MEMIT", "layers": [4, 5], "v_lr": 0.5}', kedit.method_from_file),
        "00_a.ipynb": (json.dumps(source).encode(), reproduce.parameters_of),
    }


NAMES = "edits.json edits.jsonl edits.csv edits.parquet C.safetensors H.safetensors smoke.yaml MEMIT.yaml MEMIT.json"


@pytest.mark.parametrize("name", [*NAMES.split(), "00_a.ipynb"])
@quick
@given(data=st.data())
def test_damaged_files(wholes, tmp_path, name, data):
    whole, load = wholes[name]
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(whole)))
    read_or_refused(load, path)


@pytest.mark.parametrize("name", NAMES.split())
def test_undamaged_files_are_read(wholes, tmp_path, name):
    """Else the test above would hold for a loader that refuses everything."""
    whole, load = wholes[name]
    (tmp_path / name).write_bytes(whole)
    assert load(tmp_path / name) is not None


@quick
@given(record=st.dictionaries(fields, anything, max_size=5), whole=st.booleans())
def test_records_of_any_shape(tmp_path, record, whole):
    """Every field with a value of any type, on its own or in a record that is well-formed but for it."""
    path = tmp_path / "edits.json"
    path.write_text(json.dumps([{**(RECORDS[0] if whole else {}), **record}]))
    read_or_refused(kedit.load_edits, path)


@quick
@given(name=st.sampled_from(sorted(kedit.METHODS)), data=st.data())
def test_hyperparameters_of_any_type(name, data):
    method = kedit.METHODS[name]
    known = st.sampled_from(list(method.model_fields))
    values = data.draw(st.dictionaries(known, anything, max_size=3))
    try:
        made = method(**{"layers": [1], **values})
    except kedit.KeditError as error:
        assert "\n" not in str(error)
    else:
        assert all(type(x) is int for x in made.layers)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A run folder with two checkpoints."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "memit-0123")
    for done in (2, 4):
        rows = [{"edit": i, "p": 0.1 * i} for i in range(done)]
        folder.save_checkpoint(Checkpoint({"w": torch.full((3, 2), float(done))}, rows, rows, {"due": 6}))
    return folder


@quick
@given(data=st.data())
def test_damaged_checkpoints(checkpoints, data):
    """The newest is as it was written, or the one before it is taken."""
    newest = checkpoints.path / "at-000004"
    path = data.draw(st.sampled_from(sorted(newest.iterdir())))
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged(whole)))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = checkpoints.newest_checkpoint()
        assert found.done in (2, 4)
        assert found.weights["w"].tolist() == [[float(found.done)] * 2] * 3
        assert len(found.edits) == found.done
        assert len(said) == (found.done == 2)
    finally:
        path.write_bytes(whole)
