"""Live cells: what they compute, and that the knobs show it."""

from dataclasses import replace

import pytest
import torch

import kedit_lib as kedit
from kedit_lib.editing.second_moments import SecondMoments
from kedit_lib.report import widgets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """With the moments of a few texts, which is enough for edits to take."""
    sizes = {"n_edits": 6, "batch_sizes": [1, 2], "mass_sizes": [1], "checkpoint_every": 2, "dense_every": 2}
    bench = kedit.Bench("smoke", results=tmp_path_factory.mktemp("results"), progress=False, **sizes)
    layers = sorted({layer for name in bench.streams for layer in bench.method(name).layers})
    bench.moments = SecondMoments.estimate(bench.model, bench.facts.texts()[:100], layers)
    return bench


def test_a_typed_edit_of_the_known_fact_has_its_paraphrases_and_neighbors(bench):
    known = bench.edits(0)[0]
    for prompt in (known.prompt, known.text):  # with a place for the subject, or with the subject
        edit = widgets.typed_edit(bench, known, prompt, known.subject, "tall")
        assert edit == replace(known, target_new="tall")
    stranger = widgets.typed_edit(bench, known, "The neighbour of {} is", "Nobody Inhere", "tall")  # asked about others
    assert stranger.target_true is None and stranger.paraphrases == ()
    assert len(stranger.neighborhood) == widgets.OTHERS
    assert all(text.startswith("The neighbour of ") for text in stranger.neighborhood)


def test_pressing_the_button_tries_an_edit_and_takes_it_back_and_errors_are_one_line(bench, monkeypatch, capsys):
    """The method is switched by buttons: letters typed in a drop-down are shortcuts to JupyterLab. Markup in a prompt
    is shown as text."""
    shown, tables, known = [], [], bench.edits(0)[0]
    weights = {name: w.clone() for name, w in bench.model.hf.state_dict().items()}
    monkeypatch.delenv("KEDIT_STATIC", raising=False)
    monkeypatch.setattr(widgets, "display", shown.append)
    widgets.try_edits(bench, known)
    monkeypatch.setattr(widgets, "display", tables.append)
    prompt, subject, target, method, button, _ = shown[0].children
    assert type(method).__name__ == "ToggleButtons" and "memit" in method.options

    def pressed() -> str:
        button.click()
        assert not button.disabled
        return capsys.readouterr().out

    for name, said in (("ft-m", "FT: "), ("memit", "MEMIT: optimised probability ")):
        method.value = name
        assert said in pressed()
    edited = tables[-1]
    assert edited["p(new) after"].iloc[0] > 0.3 > edited["p(new) before"].iloc[0] and "said before" in edited
    assert list(edited.index) == ["edit"] + ["paraphrase"] * 3 + ["neighbor"] * len(known.neighborhood)
    assert all(torch.equal(w, weights[name]) for name, w in bench.model.hf.state_dict().items())
    prompt.value, subject.value = "<b onclick=x> of {} is", "<i>Ana</i>"
    pressed()
    drawn = tables[-1]._repr_html_()
    assert "&lt;i&gt;" in drawn and "<i>" not in drawn and "<b " not in drawn
    target.value = ""
    assert "⚠" in (said := pressed()) and "target_new is empty" in said and len(tables) == 3


def test_in_a_run_that_nobody_watches_a_live_cell_is_one_sentence(bench, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    monkeypatch.setenv("KEDIT_STATIC", "1")
    widgets.try_edits(bench, bench.edits(0)[0])
    assert [s.data.startswith("*Live in JupyterLab") for s in shown] == [True]
    monkeypatch.delenv("KEDIT_STATIC")
    widgets.try_edits(bench, bench.edits(0)[0])
    assert type(shown[1]).__name__ == "interactive"
