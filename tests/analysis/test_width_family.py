"""The family of widths: what its members hold, what is fitted, what is said."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import kedit_lib as kedit
from kedit_lib.analysis import width_family as scaling
from kedit_lib.analysis import width_fit as extrapolation
from kedit_lib.lab import world_of
from kedit_lib.lab.train import RECIPES
from kedit_lib.lab.world import World
from kedit_lib.report import cause_figures, figures
from kedit_lib.streams.bench import data_folder

MEMBERS = scaling.family()


def table(b=1.0, noise=0.0, single=0.99, orders=3, seed=0):
    """Points on N = 0.1 · d_ff^b, each member off by a factor."""
    chance, rows = np.random.default_rng(seed), []
    for role, recipe in MEMBERS.items():
        d_ff = recipe.d_ff
        off = np.exp(noise * chance.normal())
        for stream in scaling.STREAMS:
            for order in range(orders):
                n = 0.1 * d_ff**b * off
                row = {"model": recipe.name, "role": role, "d_ff": d_ff, "stream": stream}
                row |= {"order": order, "edits": 450, "N_optimisation": n, "N_model": n / 2}
                rows.append(row | {f"single {bar}": single for bar in extrapolation.BARS})
    return pd.DataFrame(rows).astype(dict.fromkeys(extrapolation.POINTS, "Float64"))


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


@pytest.mark.parametrize("recipe", MEMBERS.values(), ids=list(MEMBERS))
def test_as_many_people_share_a_name_part_at_every_width(recipe):
    world = World.make(recipe.n_people, recipe.seed, recipe.sharing)
    for names in world.names:
        assert len(world.people) / len(names) == pytest.approx(scaling.LAB.sharing, rel=0.04)
    assert len(world.people) == len(set(world.people)) == recipe.n_people


def test_a_world_without_a_sharing_is_the_one_it_was():
    assert World.make(300, 1) == World.make(300, 1, sharing=10.0)  # √(300/3)
    assert World.make(300, 1).names != World.make(300, 1, sharing=5.0).names


def test_a_power_law_is_found_again():
    points = extrapolation.widths(table(b=1.3), "N_model")
    assert list(points.index) == sorted([*scaling.TRAINED, scaling.LAB.d_ff])
    found = extrapolation.fit(points)
    assert found["b"] == pytest.approx(1.3)
    assert found["median"] == pytest.approx(0.05 * extrapolation.SEED_WIDTH**1.3)
    assert found["low"] == pytest.approx(found["high"])


def test_the_interval_is_that_of_a_new_model():
    """Against the textbook form, worked out by hand: y = a + b·x with x = log d_ff."""
    points = extrapolation.widths(table(noise=0.2, seed=3), "N_model")
    x, y = np.log(points.index.to_numpy(float)), np.log(points.to_numpy())
    sxx = ((x - x.mean()) ** 2).sum()
    b = ((x - x.mean()) * (y - y.mean())).sum() / sxx
    s = np.sqrt(((y - y.mean() - b * (x - x.mean())) ** 2).sum() / (len(x) - 2))
    at = np.log(extrapolation.SEED_WIDTH)
    half = 2.353363 * s * np.sqrt(1 + 1 / len(x) + (at - x.mean()) ** 2 / sxx)  # t of 3 degrees of freedom, 95 %
    found = extrapolation.fit(points)
    assert found["b"] == pytest.approx(b)
    assert found["error"] == pytest.approx(s / np.sqrt(sxx))
    assert np.log(found["high"] / found["median"]) == pytest.approx(half, rel=1e-6)
    assert np.log(found["median"] / found["low"]) == pytest.approx(half, rel=1e-6)


def test_two_widths_say_nothing():
    assert np.isnan(extrapolation.fit(pd.Series({256: 10.0, 512: 20.0}))["b"])


def test_a_point_missed_in_one_order_counts_for_no_order():
    some = table()
    some.loc[(some.d_ff == 256) & (some.order == 1), "N_model"] = pd.NA
    assert 256 not in extrapolation.widths(some, "N_model").index
    assert 256 in extrapolation.widths(some, "N_optimisation").index


def left_out(some, role):
    """The table as `scaling.sweep` keeps it when single edits of one model miss a bar."""
    one = some[some.role == role].iloc[[0]].assign(stream="", edits=0, N_optimisation=pd.NA, N_model=pd.NA)
    one["single near"] = 0.97
    return pd.concat([some[some.role != role], one], ignore_index=True)


def test_members_below_a_bar_are_left_out():
    some = left_out(table(), "d_ff 256")
    fits = extrapolation.fit_table(some)
    assert list(fits.stream.unique()) == list(scaling.STREAMS)
    assert (fits.widths == len(scaling.TRAINED)).all()  # of one more, the lab's own
    said = extrapolation.sentence(some, fits)
    assert "Left out, for single edits miss a bar: d_ff 256 (edit 0.99, templates 0.99, near 0.97)." in said
    assert "No model was left out." in extrapolation.sentence(table(), fits)


def test_what_is_said_follows_the_fit():
    some = table(noise=0.3, seed=1)
    fits = extrapolation.fit_table(some)
    said = extrapolation.sentence(some, fits)
    row = fits[fits.point == "N_model"].iloc[0]
    assert f"{row.low:,.0f} to {row.high:,.0f}" in said
    inside = row.low <= extrapolation.SEED_EDITS <= row.high
    assert f"450 lies {'inside' if inside else 'outside'}" in said.split("N_model")[1].split("; N_")[0]
    answer = extrapolation.answer(fits)
    assert "of 4 of these prediction intervals" in answer
    assert f"{row.low:,.0f} to {row.high:,.0f} edits" in answer
    two = extrapolation.fit_table(some[some.d_ff.isin([512, 640])])
    assert np.isnan(two.b).all()
    seen = extrapolation.widths(some[some.stream == two.stream[1]], "N_model")
    assert f"N_model of {two.stream[1]} {seen[512]:.0f} at 512, {seen[640]:.0f} at 640" in extrapolation.answer(two)
    assert f"every order: {seen[512]:.0f} at 512, {seen[640]:.0f} at 640)" in extrapolation.sentence(some, two)
    assert "with half the facts" in extrapolation.control(some, scaling.HALVED)


def test_the_streams_own_single_edits_are_told():
    some = table().assign(**{f"own {bar}": 0.5 for bar in extrapolation.BARS})
    some.loc[some.d_ff == 512, "own near"] = 0.75
    said = extrapolation.sentence(some, extrapolation.fit_table(some))
    assert said.count("edit 0.50 to 0.50, templates 0.50 to 0.50, near 0.50 to 0.75") == len(scaling.STREAMS)


def test_no_healthy_model_is_said():
    some = table(single=0.5)
    said = extrapolation.sentence(some, extrapolation.fit_table(some))
    assert said.startswith("No model's single edits meet every bar, and nothing can be fitted. Left out")


def test_a_control_that_was_left_out_says_so():
    said = extrapolation.control(left_out(table(), scaling.HALVED), scaling.HALVED)
    assert said == f"The control, d_ff {scaling.CONTROL[0]}, was left out, for its single edits miss a bar."


def test_the_figure_draws_every_model():
    figures.style()
    fig = cause_figures.plot_scaling(table(noise=0.1))
    for ax in fig.axes:
        dots = [line for line in ax.get_lines() if line.get_marker() not in ("None", "")]
        drawn = {round(x) for line in dots for x in line.get_xdata()}
        assert {*scaling.TRAINED, scaling.LAB.d_ff} <= drawn


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
    assert found[[f"single {bar}" for bar in extrapolation.BARS]].notna().all(axis=None)
    assert len(list((tmp_path / "streams").iterdir())) == len(scaling.STREAMS)
    monkeypatch.setattr(scaling, "BARS", dict.fromkeys(scaling.BARS, 1.01))
    (row,) = scaling.measure(model, "d_ff 384", tmp_path / "elsewhere", orders=(0,)).to_dict("records")
    assert (row["stream"], row["edits"]) == ("", 0)
    assert pd.isna(row["N_model"])
    assert not (tmp_path / "elsewhere" / "streams").exists()


def test_the_committed_table_is_of_this_family():
    if (kept := scaling.committed(data_folder())) is None:
        pytest.skip("no table of the family is committed: make sweep STREAMS=scaling")
    manifest = json.loads((data_folder() / "scaling.manifest.json").read_text())
    assert set(kept.role) <= set(manifest["recipes"])
    for role, recipe in MEMBERS.items():
        assert manifest["recipes"][role] == dataclasses.asdict(recipe)


def test_a_control_that_outlasts_its_stream_is_not_called_nan():
    some = table()
    some.loc[some.role == scaling.HALVED, "N_model"] = pd.NA
    said = extrapolation.control(some, scaling.HALVED)
    assert "beyond" in said and "nan" not in said
