"""Live cells: what they compute, and that the knobs show it."""

import pytest
import torch

import kedit_lib as kedit
from kedit_lib.editing.second_moments import SecondMoments
from kedit_lib.report import live, widgets

pytestmark = pytest.mark.slow


def bench_of(profile, results, **overrides):
    """A bench with the moments of a few texts, which is enough for edits to take."""
    bench = kedit.Bench(profile, results=results, progress=False, **overrides)
    layers = sorted({layer for name in bench.streams for layer in bench.method(name).layers})
    bench.moments = SecondMoments.estimate(bench.model, bench.facts.texts()[:100], layers)
    return bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    sizes = {"n_edits": 6, "batch_sizes": [1, 2], "mass_sizes": [1], "checkpoint_every": 2, "dense_every": 2}
    return bench_of("smoke", tmp_path_factory.mktemp("results"), **sizes)


@pytest.fixture(scope="module")
def run(bench):
    return bench.run("memit")


def test_a_typed_edit_has_the_worlds_paraphrases_and_neighbors(bench):
    known = bench.edits(0)[0]
    for prompt in (known.prompt, known.text):  # with a place for the subject, or with the subject
        edit = live.Desk(bench).edit(prompt, known.subject, known.target_new)
        assert edit.target_true == known.target_true
        assert sorted(edit.paraphrases) == sorted(known.paraphrases)
        assert len(edit.neighborhood) == len(known.neighborhood)
    world = bench.facts.world
    asked = {known.prompt.format(p) for p in world.people if world.objects_of[p, known.relation] == known.target_true}
    assert set(edit.neighborhood) <= asked - {known.text}
    stranger = live.Desk(bench).edit("The neighbour of {} is", "Nobody Inhere", "tall")  # asked about others
    assert stranger.target_true is None and stranger.paraphrases == ()
    assert len(stranger.neighborhood) == live.OTHERS
    assert all(text.startswith("The neighbour of ") for text in stranger.neighborhood)


def test_trying_an_edit_shows_it_and_takes_it_back(bench):
    desk, known, weights = live.Desk(bench), bench.edits(0)[0], bench.model.hf.state_dict()
    before = {name: w.clone() for name, w in weights.items()}
    table, said = desk.try_edit(known, "memit")
    assert table["p(new) after"].iloc[0] > 0.3 > table["p(new) before"].iloc[0]
    assert list(table.index) == ["edit"] + ["paraphrase"] * 3 + ["neighbor"] * len(known.neighborhood)
    assert "optimised probability" in said
    assert all(torch.equal(w, before[name]) for name, w in bench.model.hf.state_dict().items())


def test_stops_sentence_and_picture_follow_the_stream(run):
    """The picture at a stop holds nothing of later."""
    assert live.stops_of(run) == [2, 4, 6]
    said = live.stop_sentence(run, 4)
    assert said.startswith("After 4 of 6 edits")
    grown = run.edits.W_1.iloc[3] / run.edits.W_1.iloc[0]
    assert f"‖W‖ of layer 1 × {grown:.2f}" in said
    fig, data = live.plot_along(run, 4)
    assert data.edits_done.max() == 4
    assert set(data.what) == {"edits still right", "norm", "step"}
    norms = data[data.what == "norm"]
    assert norms.value.tolist() == (run.edits.W_1 / run.edits.W_1.iloc[0])[:4].tolist()


def test_pressing_the_button_shows_the_table_and_errors_are_one_line(bench):
    """The method is switched by buttons: letters typed in a drop-down are shortcuts to JupyterLab. Markup in a prompt
    is shown as text."""
    knobs = widgets.EditKnobs(bench, bench.edits(0)[0])
    assert type(knobs.method).__name__ == "ToggleButtons" and knobs.method.options == tuple(knobs.desk.methods)
    for name, said in (("ft-m", "<p>FT: "), ("memit", "<p>MEMIT: ")):
        knobs.method.value = name
        knobs.button.click()
        assert knobs.result.value.startswith(said)
    assert "<table" in knobs.result.value and "said before" in knobs.result.value
    knobs.prompt.value, knobs.subject.value = "<b onclick=x> of {} is", "<i>Ana</i>"
    knobs.button.click()
    assert "<i>" not in knobs.result.value and "<b " not in knobs.result.value
    knobs.target.value = ""
    knobs.button.click()
    assert "target_new is empty" in knobs.result.value and "<table" not in knobs.result.value
    assert not knobs.button.disabled


def test_dragging_changes_picture_and_sentence(bench, run):
    knobs = widgets.StreamKnobs(bench, "memit", 0)
    parts = knobs.picture, knobs.said
    seen = [part.value for part in parts]
    knobs.slider.value = 2
    assert all(part.value != then for part, then in zip(parts, seen, strict=True))
    assert "After 2 of 6 edits" in knobs.said.value and 'alt="Age by checkpoint' in knobs.picture.value


def test_in_a_run_that_nobody_watches_a_live_cell_is_one_sentence(bench, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    monkeypatch.setenv("KEDIT_STATIC", "1")
    widgets.try_edits(bench, bench.edits(0)[0])
    assert [s.data.startswith("*Live in JupyterLab") for s in shown] == [True]
    monkeypatch.delenv("KEDIT_STATIC")
    widgets.try_edits(bench, bench.edits(0)[0])
    assert type(shown[1]).__name__ == "VBox"
