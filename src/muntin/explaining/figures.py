# SPDX-License-Identifier: Apache-2.0
"""Figures with text, data and files, or why one is missing."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter
from numpy.typing import NDArray
from PIL import Image

from muntin.drawing.fonts import find_font, use_fonts
from muntin.drawing.saving import ignore_missing_characters
from muntin.errors import ConfigError, unknown_name
from muntin.explaining import LANGUAGES, Section
from muntin.shapes import Float, Int, Size, UInt8
from muntin.staging import format_json, write_file

DPI = 120
"""Pixels per inch of a figure."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointLayer:
    """Attention of one layer from every token, for the clickable image of the page.

    The grid covers `covered` pixels (height, width) of the displayed image: more than it has where
    tokens were padded. Keys are row-major indices, or -1 for what `elsewhere` names, such as "the
    class token" or "padding". A weight of 255 is the maximum of its row, `largest`.
    """

    title: str
    grid: Size
    covered: tuple[float, float]
    keys: Int[np.ndarray, "T N"]
    weights: UInt8[np.ndarray, "T N"]
    largest: Float[np.ndarray, " T"]
    elsewhere: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExplanationFigure:
    """One figure of the page with its caption and data.

    The name is the stem of its file names, lower case with hyphens and unique on a page; its first
    word is the section. The text is the caption, the formula is MathML, the source names paper and
    equation. Arrays are written as .npz, facts as .json; layers are those of the clickable image.
    """

    name: str
    title: str
    text: str
    figure: Figure
    formula: str = ""
    source: str = ""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[PointLayer, ...] = ()

    @property
    def section(self) -> Section:
        """The first word of the name."""
        return cast(Section, self.name.partition("-")[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingFigure:
    """A figure that is not available for this model, why, and which one to use instead."""

    section: Section
    title: str
    reason: str


Result = ExplanationFigure | MissingFigure
Results = Sequence[Result]

_language = ContextVar("language", default="en")

_WORDS = {"begin", "elsewhere", "fresh", "images", "layer", "layers", "origin", "others", "score"}
"""Fields of texts that hold words, not names; figures show some of them."""


@contextlib.contextmanager
def use_language(language: str) -> Iterator[None]:
    """Make texts in a language of `LANGUAGES` while the context is active."""
    if language not in LANGUAGES:
        raise ConfigError(unknown_name("language", str(language), LANGUAGES))
    before = _language.set(language)
    try:
        yield
    finally:
        _language.reset(before)


def load_texts(language: str | None = None) -> Mapping[str, Any]:
    """Texts of a language, by default that of `use_language`, or else English."""
    return _load_texts(language or _language.get())


@functools.cache
def _load_texts(language: str) -> Mapping[str, Any]:
    """Load the file of a language in ``texts``; line breaks inside texts become spaces."""

    def join_lines(value: Any) -> Any:  # noqa: ANN401 (a table or a text)
        if isinstance(value, dict):
            return {key: join_lines(one) for key, one in value.items()}
        return " ".join(value.split())

    text = files("muntin.explaining").joinpath(f"texts/{language}.toml").read_text("utf-8")
    return join_lines(tomllib.loads(text))


@functools.cache
def _load_mathml() -> Mapping[str, str]:
    """MathML by LaTeX, converted in advance; see tests/explaining/convert_formulas.py."""
    text = files("muntin.explaining").joinpath("texts/mathml.json").read_text("utf-8")
    return json.loads(text)


def find_text(entry: str, key: str, /, **fields: object) -> str:
    """Look up a text by table (dots lead to tables in tables) and key, and fill in its fields."""
    table = functools.reduce(lambda rows, name: rows[name], entry.split("."), load_texts())
    template: str = table[key] if key in table else load_texts()["notes"][key]
    words = {name: translate(str(fields[name])) for name in _WORDS & fields.keys()}
    return template.format_map({**fields, **words})


def translate(words: str) -> str:
    """Translate words that the code gives in English, such as the title of a layer."""
    for key, pattern in load_texts("en")["words"].items() if _language.get() != "en" else ():
        words = re.sub(pattern, load_texts()["words"][key], words, flags=re.MULTILINE)
    return words


def can_draw() -> bool:
    """Whether a font has the characters of the language; figures stay English otherwise."""
    return find_font(find_text("page", "contents")[0]) is not None


def _translate_figure(figure: Figure) -> None:
    if not can_draw():
        return
    for artist in figure.findobj(Text):
        assert isinstance(artist, Text), "only texts are searched for"
        artist.set_text(translate(artist.get_text()))
    # Texts of ticks are written again when the figure is drawn.
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        each = axis.get_major_formatter()
        if isinstance(each, FixedFormatter):
            each.seq = [*map(translate, each.seq)]


def make_figure(
    entry: str,
    figure: Figure,
    parts: Sequence[str | bool] = ("text",),
    /,
    *,
    formula: str | None = None,
    arrays: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    layers: tuple[PointLayer, ...] = (),
    **fields: object,
) -> ExplanationFigure:
    """Make a figure whose title, caption, formula and source are in the texts.

    `entry` is the table of its texts, and its name unless the table has one. `parts` are the keys
    of the sentences of the caption; False leaves one out. `formula` replaces that of the table; ""
    shows none. `fields` are filled in for the braces of the texts.
    """
    table = load_texts()[entry]
    formula = table.get("formula", "") if formula is None else formula
    row: Mapping[str, str] = load_texts()["formulas"][formula] if formula else {}
    latex = row.get("latex", "")
    sentences = (find_text(entry, part, **fields) for part in parts if isinstance(part, str))
    return ExplanationFigure(
        name=table.get("name", entry),
        title=find_text(entry, "title", **fields),
        text=" ".join(sentence for sentence in sentences if sentence).replace("\u3002 ", "\u3002"),
        figure=figure,
        formula=_load_mathml().get(latex, f"<code>{escape(latex)}</code>") if latex else "",
        source=table.get("source", row.get("source", "")),
        arrays={name: np.asarray(values) for name, values in (arrays or {}).items()},
        facts=facts or {},
        layers=layers,
    )


def make_missing(entry: str, /, **fields: object) -> MissingFigure:
    """Say why a figure is missing, by a table of `missing`; its first word is the section."""
    title, reason = (find_text(f"missing.{entry}", key, **fields) for key in ("title", "reason"))
    section = cast(Section, entry.partition("-")[0])
    return MissingFigure(section=section, title=title, reason=reason)


class SavedFigure(NamedTuple):
    """Files of a figure, and its PNG, (width, height) in pixels, to embed in the page."""

    files: tuple[Path, ...]
    png: bytes
    size: tuple[int, int]


def save_figure(result: ExplanationFigure, folder: Path) -> SavedFigure:
    """Write the files of a figure to a folder, each atomically."""
    stem = folder / result.name
    png, size = _draw_png(result.figure)
    saved = [write_file(png, stem.with_suffix(".png"))]
    saved.append(write_file(_draw_svg(result.figure), stem.with_suffix(".svg")))
    if result.arrays:
        packed = io.BytesIO()
        arrays: dict[str, Any] = dict(result.arrays)
        np.savez_compressed(packed, **arrays)
        saved.append(write_file(packed.getvalue(), stem.with_suffix(".npz")))
    names = ("name", "section", "title", "text", "formula", "source")
    record = {name: getattr(result, name) for name in names}
    text = format_json({**record, "facts": to_plain(result.facts)})
    saved.append(write_file(f"{text}\n".encode(), stem.with_suffix(".json")))
    return SavedFigure(tuple(saved), png, size)


def _draw_png(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    canvas = FigureCanvasAgg(figure)
    _translate_figure(figure)
    use_fonts(figure)
    figure.set_dpi(DPI)
    figure.patch.set_facecolor("white")
    with ignore_missing_characters():
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue(), image.size


def _draw_svg(figure: Figure) -> bytes:
    """Render as SVG without a date, so that equal figures give equal files."""
    figure.set_layout_engine("none")  # the layout of the PNG is kept
    data = io.BytesIO()
    with ignore_missing_characters(), mpl.rc_context({"svg.hashsalt": "muntin"}):
        figure.savefig(data, format="svg", facecolor="white", metadata={"Date": None})
    return data.getvalue()


def to_plain(value: Any) -> Any:  # noqa: ANN401 (whatever facts hold)
    """Convert facts to JSON types: numpy to numbers and lists, NaN and infinity to null.

    Examples:
        >>> to_plain({"a": np.float32(0.5), "b": (1, math.nan)})
        {'a': 0.5, 'b': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
