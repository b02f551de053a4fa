"""Figures: every form with its numbers, and curves that everybody can tell apart."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from PIL import Image

from kedit_lib.report import figures


def test_no_two_curves_differ_by_colour_alone():
    looks = list(zip(figures.DASHES, figures.MARKERS, strict=True))
    assert len(set(looks)) == len(figures.PALETTE) == len(set(figures.MARKERS))


def test_show_writes_each_form_with_its_numbers(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setenv("KEDIT_FIGURES", str(tmp_path))
    monkeypatch.setattr(figures, "display", shown.append)
    figures.style()
    others = plt.get_fignums()
    fig, axes = figures.panels_of(4, columns=2)
    for ax in axes:
        ax.plot([0, 1], [1, 3], label="a")
    figures.legend_below(fig, axes[0])
    data = pd.DataFrame({"x": [0, 1], "y": [1, 3]})
    figures.show(fig, "name", "What is drawn.", "Four panels.", data)
    assert {p.name for p in tmp_path.iterdir()} == {f"name{form}" for form in (".png", ".svg", ".pdf", ".csv")}
    assert pd.read_csv(tmp_path / "name.csv").equals(data)
    picture = Image.open(tmp_path / "name.png")
    assert picture.width == figures.WIDTH * 110 and picture.mode == "P"  # few colours, few bytes
    image, caption = shown
    assert image.data == (tmp_path / "name.png").read_bytes()
    assert image.alt == "Four panels." and caption.data == "**Figure.** What is drawn."
    assert plt.get_fignums() == others


def test_short_logarithmic_axes_have_plain_numbers_and_ticks_stand_at_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_FIGURES", str(tmp_path))
    monkeypatch.setattr(figures, "display", lambda _: None)
    fig, (short, long) = plt.subplots(1, 2)
    short.plot([1, 2], [3.5, 3.9])
    long.plot([1, 2], [1, 5000])
    for ax in (short, long):
        ax.set_yscale("log")
    figures.show(fig, "name", "", "", pd.DataFrame({"x": [1]}))
    texts = [[t.get_text() for t in ax.get_yticklabels(which="both") if t.get_text()] for ax in (short, long)]
    assert any("3." in t for t in texts[0]) and not any("10^" in t for t in texts[0])
    assert any("10^" in t for t in texts[1])
    fig, ax = plt.subplots()
    ax.plot([10, 100, 450], [0.1, 0.2, 0.3])
    ax.set_xscale("log")
    figures.tick_at(ax.xaxis, [450, 10, 100, 10])
    fig.draw_without_rendering()
    assert [t.get_text() for t in ax.get_xticklabels(which="both")] == ["10", "100", "450"]
    plt.close(fig)


def test_a_grid_names_the_panels_without_data_and_has_bands_in_the_others():
    lab = pd.DataFrame({"model": "lab", "edits": [0, 50, 100], "value": [1, 0.75, 0.5]})
    before = pd.DataFrame({"model": "smollm2", "edits": [0], "value": [1]})  # asked before the first edit alone
    data = pd.concat([lab, before], ignore_index=True).assign(row="a", method="MEMIT")
    data = data.assign(low=data.value - 0.25, high=data.value)
    grid = sns.relplot(data, x="edits", y="value", hue="method", row="row", col="model", kind="line", errorbar=None)
    figures.bands(grid, ["MEMIT"], "method")
    for ax in grid.axes.flat:
        ax.axhline(0.5)
    figures.facets(grid)
    texts = {model: [text.get_text() for text in ax.texts] for (_, model), ax in grid.axes_dict.items()}
    assert "not measured" in texts["smollm2"] and "not measured" not in texts["lab"]
    (band,) = grid.axes_dict["a", "lab"].collections
    assert band.get_datalim(grid.axes_dict["a", "lab"].transData).intervaly.tolist() == [0.25, 1]
    assert grid.figure.get_figwidth() == figures.WIDTH
    plt.close(grid.figure)


def test_a_table_for_readers_has_the_reports_words_and_names_its_gaps():
    table = pd.DataFrame({"N_model": [20.0, None], "untouched": [0.5233333, None], "perplexity": [7.5e6, 1234.5]})
    shown = figures.for_readers(table)
    assert shown.to_dict("list") == {
        "N_model": ["20", "not reached"],
        "unrelated facts": ["0.523", "not measured"],
        "perplexity": ["7.5e+06", "1,234"],
    }
