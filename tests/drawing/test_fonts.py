# SPDX-License-Identifier: Apache-2.0
"""Names in any language in drawings and figures: which glyphs are drawn, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from muntin.drawing.fonts import find_font, load_font, measure_text, use_fonts, write_text
from muntin.drawing.plots import draw_bars
from muntin.drawing.saving import save_figure
from muntin.drawing.style import clean_label
from muntin.run_files import read_json, write_json
from muntin.staging import format_json

CAT, WORDS = (
    "\u732b",
    {"zh": "\u7ea2\u7ec6\u80de", "ja": "\u30cd\u30b3", "ko": "\uace0\uc591\uc774"},
)

needs_font = pytest.mark.skipif(find_font(CAT) is None, reason="pip install 'muntin[fonts]'")


def drawn(text: str, anchor: Literal["la", "lm"] = "la") -> np.ndarray:
    image = Image.new("L", (240, 48))
    place = (4, 24 if anchor == "lm" else 4)
    write_text(ImageDraw.Draw(image), place, text, size=24, fill="white", anchor=anchor)
    return np.asarray(image)


def crop(ink: np.ndarray) -> np.ndarray:
    """The smallest part that holds all ink."""
    rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@needs_font
@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_each_character_is_drawn_as_its_own_glyph(word: str) -> None:
    """The pixels of the font that has it, and not the box of a missing one."""
    for sign in word:
        place = find_font(sign)
        assert place is not None
        font = load_font(24, place)
        mask = np.asarray(font.getmask(sign)).reshape(font.getmask(sign).size[::-1])
        assert np.array_equal(crop(drawn(sign)), crop(mask))


@needs_font
@pytest.mark.parametrize("anchor", ["la", "lm"])
def test_languages_share_a_line(anchor: str) -> None:
    """Latin letters keep their place and pixels where others follow, and none overlap."""
    alone, mixed = drawn("cat", anchor=anchor), drawn(f"cat{CAT}", anchor=anchor)
    end = 4 + round(measure_text("cat", 24))
    assert np.array_equal(alone[:, :end], mixed[:, :end])
    assert mixed[:, end:].any()
    assert measure_text(f"cat{CAT}", 24) == pytest.approx(
        measure_text("cat", 24) + measure_text(CAT, 24)
    )


@needs_font
def test_figures_show_the_glyphs(tmp_path: Path) -> None:
    """Names that differ in one character only give other pixels, which boxes would not."""
    pictures = []
    for name in (CAT, "\u72d7", "\u732a"):
        figure = draw_bars({name: 0.5}, "recall", "share")
        assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [name]
        pictures.append(Image.open(save_figure(figure, tmp_path / "a.png")).tobytes())
    assert len(set(pictures)) == 3


def test_figures_of_latin_letters_keep_their_font() -> None:
    figure = Figure()
    text = figure.text(0, 0, "caf\u00e9")
    before = text.get_fontfamily()
    use_fonts(figure)
    assert text.get_fontfamily() == before


@needs_font
def test_names_are_shortened_by_their_width() -> None:
    assert clean_label(CAT * 12, 0) == CAT * 12
    assert clean_label(CAT * 13, 0) == CAT * 10 + "..."
    assert clean_label("a" + CAT * 12, 0) == "a" + CAT * 10 + "..."


def test_json_keeps_characters_and_survives_halves_of_pairs(tmp_path: Path) -> None:
    write_json(tmp_path / "classes.json", {"names": [CAT, "a\ud800"]})
    assert read_json(tmp_path / "classes.json") == {"names": [CAT, "a\ufffd"]}
    assert CAT in format_json([CAT])
    assert json.loads(format_json(["\ud800", CAT])) == ["\ud800", CAT]
    assert format_json(["\U0001f600"]) == '[\n  "\U0001f600"\n]'
