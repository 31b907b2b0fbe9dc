# SPDX-License-Identifier: Apache-2.0
"""Text in drawings, in any language: DejaVu Sans, and fonts of the system for what it lacks."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import ImageDraw, ImageFont

from muntin.errors import MuntinWarning

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _find_dejavu() -> Path:
    """The font of matplotlib, found without importing that, which is slow."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None, "a dependency"
    assert spec.origin is not None, "a package of files"
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


_PLACE = _find_dejavu()

_PACKAGE = "noto_cjk_sans_otc"
"""What the extra "fonts" installs."""

_PREFERRED = re.compile(
    r"notosans(mono)?cjk-?regular|notosans(sc|cn|tc|hk|jp|kr)|sourcehansans|wqy|pingfang|msyh(?!bd)|"
    r"simhei|hiragino|\u30d2\u30e9\u30ae\u30ce|yugoth|meiryo|applesdgothic|malgun|nanumgothic|arialunicode|"
    r"droidsansfallback"
)
"""File names, without separators, of fonts that have Chinese, Japanese or Korean characters."""

_CHINESE_FACE = re.compile(r"notosans(mono)?cjk|sourcehansans")
"""Collections whose third face has the Chinese forms of characters; the first has the Japanese."""


@cache
def load_font(size: int, place: Path = _PLACE) -> ImageFont.FreeTypeFont:
    """Give a font, `size` pixels high; DejaVu Sans by default."""
    chinese = place.suffix == ".ttc" and _CHINESE_FACE.match(_plain_name(place))
    return ImageFont.truetype(str(place), size, index=2 if chinese else 0)


def replace_missing(text: str) -> str:
    """Write U+FFFD for characters that no font has; "" where these are half of the text or more."""
    missing = sum(find_font(sign) is None for sign in text)
    if 2 * missing >= len("".join(text.split())):
        return ""
    parts = groupby(text, lambda sign: find_font(sign) is not None)
    return "".join("".join(signs) if has else "\ufffd" for has, signs in parts)


def measure_text(text: str, size: int) -> float:
    """Width of a text in pixels."""
    return sum(load_font(size, place).getlength(part) for place, part in _split(text))


def write_text(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    size: int,
    fill: tuple[int, int, int] | str,
    anchor: Literal["la", "lm"] = "la",
) -> None:
    """Write a text from `place` to the right, in one line.

    `place` is the left end of the upper edge of the line ("la") or of its middle ("lm").
    """
    parts = [*_split(text)]
    if all(font == _PLACE for font, _ in parts):
        pen.text(place, text, fill=fill, font=load_font(size), anchor=anchor)
        return
    tops = [load_font(size).getbbox("A", anchor=each)[1] for each in (anchor, "ls")]
    baseline, left = place[1] + tops[0] - tops[1], place[0]
    for path, part in parts:
        font = load_font(size, path)
        pen.text((left, baseline), part, fill=fill, font=font, anchor="ls")
        left += font.getlength(part)


def use_fonts(figure: Figure) -> None:
    """Let the texts of a figure fall back to fonts that have their characters."""
    from matplotlib.text import Text

    for artist in figure.findobj(Text):
        assert isinstance(artist, Text), "only texts are searched for"
        others = {path for path, _ in _split(artist.get_text())} - {_PLACE}
        if others:
            artist.set_fontfamily(["DejaVu Sans", *map(_register, sorted(others))])


@cache
def find_font(sign: str) -> Path | None:
    """Find a font that has a character: DejaVu Sans, else one of the package or the system."""
    if sign.isspace() or ord(sign) in _signs(_PLACE):
        return _PLACE
    return next((path for path in _others() if ord(sign) in _signs(path)), None)


@cache
def warn_of_missing() -> None:
    """Say, once, that no font can write some names, and how to get one that has more characters."""
    text = "no font has all characters of some class names, which drawings replace"
    if importlib.util.find_spec(_PACKAGE) is None:
        text += ". For Chinese, Japanese and Korean ones: pip install 'muntin[fonts]'"
    warnings.warn(text, MuntinWarning, stacklevel=3)


def _split(text: str) -> Iterator[tuple[Path, str]]:
    """Parts of a text and their fonts; characters without one stay with DejaVu Sans."""
    for path, signs in groupby(text, key=lambda sign: find_font(sign) or _PLACE):
        yield path, "".join(signs)


@cache
def _others() -> tuple[Path, ...]:
    """Other fonts, preferred ones first; searched for when a character is missing."""
    from matplotlib import font_manager

    spec = importlib.util.find_spec(_PACKAGE)
    bundled = [*Path(spec.origin).parent.glob("*.ttc")] if spec and spec.origin else []
    found = sorted(map(Path, font_manager.findSystemFonts()), key=lambda path: path.name)
    preferred = [path for path in found if _PREFERRED.search(_plain_name(path))]
    return tuple(dict.fromkeys([*bundled, *preferred, *found]))


def _plain_name(path: Path) -> str:
    return re.sub(r"[^\w]|_", "", path.stem.lower())


@cache
def _signs(path: Path) -> frozenset[int]:
    """Characters that a font has; none where it cannot be drawn, as coloured bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        signs = frozenset(FT2Font(str(path)).get_charmap())
        load_font(16, path)
    except (RuntimeError, OSError):
        return frozenset()
    return signs


@cache
def _register(path: Path) -> str:
    """Make a font known to matplotlib, and give its name there."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    font_manager.fontManager.addfont(str(path))
    return FT2Font(str(path)).family_name
