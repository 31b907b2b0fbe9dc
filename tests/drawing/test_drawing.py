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
from muntin.errors import MuntinWarning, RunError
from muntin.results import Labels


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
