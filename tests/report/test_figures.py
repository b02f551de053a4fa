"""Figures: every form with its numbers, and curves that everybody can tell apart."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from kedit_lib.report import figures

# Colours as people without one kind of cone see them, linear RGB (Machado, Oliveira & Fernandes 2009, severity 1).
SEEN = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
NOTICED = 2.3  # distance in CIELAB that is just noticed


def lab(colour: str, seen) -> np.ndarray:
    """CIELAB coordinates of a colour as seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = (TO_XYZ @ (np.array(seen) @ linear).clip(0, 1)) / (TO_XYZ @ np.ones(3))
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("who", SEEN)
def test_colours_stay_apart_for_everybody(who):
    points = [lab(colour, SEEN[who]) for colour in figures.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)) > 4 * NOTICED


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


def test_a_short_logarithmic_axis_has_plain_numbers(tmp_path, monkeypatch):
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


def test_the_name_of_a_floor_stands_beside_the_panel():
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0.1, 0.1])
    figures.floor(ax, 0.1, "guess")
    fig.draw_without_rendering()
    assert ax.texts[0].get_window_extent().x0 > ax.get_window_extent().x1
    plt.close(fig)


def test_ticks_stand_at_what_was_measured():
    fig, ax = plt.subplots()
    ax.plot([10, 100, 450], [1, 2, 3])
    ax.set_xscale("log")
    figures.tick_at(ax.xaxis, [450, 10, 100, 10])
    fig.draw_without_rendering()
    assert [t.get_text() for t in ax.get_xticklabels(which="both")] == ["10", "100", "450"]
    plt.close(fig)
