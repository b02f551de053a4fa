"""The family of widths: what its members hold, and that they are measured."""

import pandas as pd
import pytest

import kedit_lib as kedit
from kedit_lib.analysis import width_family as scaling
from kedit_lib.lab import world_of
from kedit_lib.lab.train import RECIPES

MEMBERS = scaling.family()


def test_members_hold_what_the_text_says():
    lab, widths = RECIPES["lab"], [r for k, r in MEMBERS.items() if k.startswith("d_ff")]
    assert sorted(r.d_ff for r in widths) == sorted([*scaling.TRAINED, lab.d_ff])
    for r in widths:
        # a step of v_lr in every coordinate, against the states
        assert r.d_model**0.5 / r.stream_norm == pytest.approx(lab.d_model**0.5 / lab.stream_norm)
        assert r.d_model * lab.d_ff == r.d_ff * lab.d_model
        assert r.n_layers == lab.n_layers
        # facts for each parameter of the layers, which grow with the width squared
        assert r.n_people / r.d_ff**2 == pytest.approx(lab.n_people / lab.d_ff**2, rel=0.01)
    half = MEMBERS[scaling.HALVED]
    assert half.n_people == next(r for r in widths if r.d_ff == half.d_ff).n_people // 2
    assert len({r.name for r in MEMBERS.values()}) == len(MEMBERS)


@pytest.mark.slow
def test_a_member_is_measured(tmp_path, monkeypatch):
    """The small lab model as if it were one: a row a stream, its points and single edits; where these miss a bar, one
    row and no stream."""
    streams = {name: (layers, changed, 6 / 384) for name, (layers, changed, _) in scaling.STREAMS.items()}
    no_bar = dict.fromkeys(scaling.BARS, 0)
    for name, few in (("STREAMS", streams), ("SINGLES", 3), ("UNTOUCHED", 20), ("BARS", no_bar)):
        monkeypatch.setattr(scaling, name, few)
    model = kedit.load_model("lab-small")
    found = scaling.measure(model, "d_ff 384", tmp_path, orders=(0,))
    assert list(found.stream) == list(scaling.STREAMS)
    assert (found.people == len(world_of(model).people)).all()
    assert (found.edits == 6).all()
    assert found[[f"single {bar}" for bar in scaling.BARS]].notna().all(axis=None)
    assert len(list((tmp_path / "streams").iterdir())) == len(scaling.STREAMS)
    monkeypatch.setattr(scaling, "BARS", dict.fromkeys(scaling.BARS, 1.01))
    (row,) = scaling.measure(model, "d_ff 384", tmp_path / "elsewhere", orders=(0,)).to_dict("records")
    assert (row["stream"], row["edits"]) == ("", 0)
    assert pd.isna(row["N_model"])
    assert not (tmp_path / "elsewhere" / "streams").exists()
