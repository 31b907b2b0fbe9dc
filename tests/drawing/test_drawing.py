# SPDX-License-Identifier: Apache-2.0
"""Images of results, sheets and plots: they come out, at awkward sizes too."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from muntin.drawing.fonts import load_font, warn_of_missing
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.plots import draw_bars, draw_confusion, draw_curves
from muntin.drawing.result_drawing import draw_result
from muntin.drawing.saving import save_figure, save_image
from muntin.drawing.style import clean_label
from muntin.errors import MuntinWarning, RunError, ShapeError
from muntin.results import Labels, SemanticMap


def pixels(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def labels(count):
    return Labels(
        path="a.png",
        size=(4, 6),
        class_ids=np.arange(count),
        scores=np.linspace(1, 0, count),
        class_names=tuple(f"class {i}" for i in range(count)),
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 20)])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_result(size, count):
    sheet = draw_result(pixels(*size), labels(count))
    assert sheet.width >= 260
    assert sheet.height >= size[0] + 22 * min(count, 5)


def test_no_result():
    with pytest.raises(TypeError, match=r"result .*muntin\.results.*int"):
        draw_result(pixels(2, 2), 3)
    with pytest.raises(TypeError, match=r"list.*results\[0\]"):
        draw_result(pixels(4, 6), [labels(2)])


def test_the_image_of_another_size_is_no_image_of_a_result():
    found = SemanticMap(
        path="m.png", size=(4, 6), labels=np.zeros((4, 6), np.int16), class_names=("a",)
    )
    assert min(draw_result(pixels(4, 6), found).size) > 0
    with pytest.raises(ShapeError, match=r"4 x 6, got 6 x 4.*m\.png"):
        draw_result(pixels(6, 4), found)


@pytest.mark.parametrize("count", [0, 1, 24])
def test_sheet(count):
    tiles = [
        Thumbnail(
            pixels=pixels(5 + i, 300),
            lines=("true: " + "long " * 20, "b"),
            good=[None, True][i % 2],
        )
        for i in range(count)
    ]
    assert min(draw_sheet(tiles, "title").size) > 0
    assert draw_sheet(tiles, columns=2, side=30).width == 90


@pytest.mark.parametrize("count", [2, 30, 70])
def test_confusion_and_bars(tmp_path, count):
    names = [f"a class with a rather long name {i}" for i in range(count)]
    figure = draw_confusion(np.eye(count, dtype=np.int64) * 3, names, "title")
    assert save_figure(figure, tmp_path / "in" / "confusion.png").is_file()
    values = {name: None if i == 1 else i / count for i, name in enumerate(names)}
    assert save_figure(draw_bars(values, "recall", "recall"), tmp_path / "bars.png").is_file()


def test_a_confusion_matrix_is_read_by_row():
    counts = np.array([[98, 2, 0], [5, 5, 0], [0, 0, 1_200_000]])
    axes = draw_confusion(counts, ["a", "b", "c"], "title").axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "98 %\n98", (1, 0): "2 %\n2", (0, 1): "50 %\n5", (1, 1): "50 %\n5",
        (2, 2): "100 %\n1.2M",
    }  # fmt: skip
    assert np.allclose(axes.images[0].get_array().sum(axis=1), 1)


def test_of_many_classes_the_worst_are_drawn():
    counts = np.diag(np.full(70, 8))
    counts[3, 60], counts[7, 8] = 5, 4
    axes = draw_confusion(counts, [f"name {number}" for number in range(70)], "title").axes[0]
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(rows) == 20
    assert {"name 3", "name 60", "name 7", "name 8"} <= {*rows}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*rows, "all others"]
    assert np.allclose(axes.images[0].get_array().sum(axis=1), 1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9_999, "9999"), (10_000, "10k"), (123_456, "123k"), (999_999, "999k"),
     (1_000_000, "1M"), (12_345_678, "12.3M"), (4_000_000_000, "4G")],
)  # fmt: skip
def test_counts_are_short(count, text):
    axes = draw_confusion(np.diag([count, 1]), ["a", "b"], "title").axes[0]
    assert (axes.texts[0].get_text().split("\n")[1] == text) or not count


def test_one_epoch_has_a_sensible_scale():
    line = {"epoch": 1, "train_loss": 2.4, "val_loss": 2.5, "val_top1": 0.97, "learning_rate": 1e-3}
    panels = draw_curves([line], "top1").axes
    assert [axes.get_xlim() for axes in panels] == [(0, 2)] * 3
    assert panels[0].get_ylim()[0] == 0 < 2.5 < panels[0].get_ylim()[1]
    assert panels[1].get_ylim() == (0, 1)


def test_many_epochs_are_smoothed():
    noise = np.random.default_rng(0).normal(size=200)
    lines = [
        {"epoch": number + 1, "train_loss": 5 - number / 50 + 0.3 * noise[number]}
        for number in range(200)
    ]
    raw, smooth = draw_curves(lines, "loss").axes[0].get_lines()
    assert raw.get_alpha() < 0.5
    truth = 5 - np.arange(200) / 50
    error = np.abs(smooth.get_ydata() - truth)[20:-20]
    assert error.mean() < 0.15, "neither noise nor a lag"
    assert len(draw_curves(lines[:20], "loss").axes[0].get_lines()) == 1


@pytest.mark.parametrize("count", [1, 60])
def test_curves(tmp_path, count):
    lines = [
        {"epoch": i + 1, "train_loss": 1 / (i + 1), "learning_rate": 0.1} for i in range(count)
    ]
    lines[-1] |= {"val_loss": 0.3, "val_top1": 0.5}
    figure = draw_curves(lines, "top1")
    assert save_figure(figure, tmp_path / "curves.png").is_file()
    low, high = figure.axes[1].get_ylim()
    assert 0 <= low < high <= 1


def test_a_class_without_images_is_labelled():
    figure = draw_confusion(np.diag([3, 0]), ["a", "b"], "title")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b (none)"]


def test_letters_beyond_ascii_are_drawn():
    # A letter that a font lacks is a box, and all boxes look alike.
    font = load_font(20)
    masks = [bytes(font.getmask(letter)) for letter in "\u017e\u017c\u0436\u0446\u03bb\u03c0"]
    assert len(set(masks)) == len(masks)


def test_a_disk_that_refuses(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RunError, match=r"a\.png"):
        save_image(Image.new("RGB", (2, 2)), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_names_without_glyphs_are_numbers_in_plots():
    """No font has a character that is none; others are drawn in any language, see test_fonts."""
    warn_of_missing.cache_clear()
    with pytest.warns(MuntinWarning, match="no font has"):
        figure = draw_bars({"cat": 0.5, "\ufdd0": 0.2}, "recall", "share")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["class 1", "cat"]
    assert clean_label("a" * 30, 3) == "a" * 21 + "..."
    assert clean_label("cat \ufdd0\ufdd1", 3) == "cat \ufffd"
