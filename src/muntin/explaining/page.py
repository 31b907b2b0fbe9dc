# SPDX-License-Identifier: Apache-2.0
"""A self-contained HTML page with light and dark themes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from muntin._version import __version__
from muntin.data.transforms import to_shown
from muntin.drawing.notebook import to_data_url
from muntin.explaining import SECTIONS, Section, figures
from muntin.explaining.figures import DPI, MissingFigure, PointLayer, Result, SavedFigure
from muntin.shapes import Real, Size

CSS_PIXELS = 96
"""CSS pixels per inch."""

MAX_CANVAS = 640
"""Longer side of a clickable image in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageEntry:
    """One image of the page: a name valid in URLs, a displayed one, and its size in pixels.

    `at` is (x, y) in these pixels of the initially selected token.
    """

    name: str
    title: str
    size: Size
    at: tuple[float, float]


@dataclass(kw_only=True, slots=True, eq=False)
class PageBuilder:
    """Builds a page image by image. Holds HTML only, no figures, to bound memory.

    Links are relative to `folder`; `notes` are warnings at the top of the page.
    """

    folder: Path
    name: str
    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()
    _parts: dict[Section, list[str]] = field(default_factory=lambda: defaultdict(list))
    _contents: dict[Section, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    _images: list[str] = field(default_factory=list)
    _buttons: list[str] = field(default_factory=list)
    _tables: dict[str, str] = field(default_factory=dict)

    def add_image(
        self, entry: ImageEntry, pixels: Real[Tensor, "C h w"], prediction: Image.Image | None
    ) -> None:
        """Add an image, as the network gets it, and its prediction."""
        image = Image.fromarray(to_shown(pixels))
        small = image.copy()
        small.thumbnail((160, 160))
        name = escape(entry.title)
        self._buttons.append(
            f'<button type="button" data-show="{entry.name}" aria-pressed="false">'
            f'<img src="{to_data_url(small, "jpeg")}" alt=""><span>{name}</span></button>'
        )
        shown = image if prediction is None else prediction.copy()
        shown.thumbnail((720, 720))
        alt = figures.find_text("page", "image" if prediction is None else "predicted", name=name)
        self._images.append(
            f'<div class="prediction" data-image="{entry.name}"><h3>{name}</h3>'
            f'<div class="card"><img src="{to_data_url(shown, "jpeg")}" width="{shown.width}" '
            f'height="{shown.height}" alt="{alt}"></div>'
            f'<img id="seen-{entry.name}" src="{to_data_url(image, "png")}" alt="" hidden></div>'
        )

    def add(
        self,
        shown: Result,
        saved: SavedFigure | None,
        entry: ImageEntry,
        *,
        always: bool,
    ) -> None:
        """Add a result to its section; `always` visible, or only if the image is selected."""
        visibility = "" if always else f' data-image="{entry.name}"'
        if isinstance(shown, MissingFigure):
            reason_html = f"<p><strong>{escape(shown.title)}:</strong> {escape(shown.reason)}</p>"
            self._parts[shown.section].append(
                f'<div class="missing"{visibility}>{reason_html}</div>'
            )
            return
        assert saved is not None, "a figure is saved before it is shown"
        place = f"{entry.name}-{shown.name}"
        self._contents[shown.section][place] = (
            f'<li{visibility}><a href="#{place}">{escape(shown.title)}</a></li>'
        )
        links = " ".join(
            f'<a href="{quote(path.relative_to(self.folder).as_posix())}">'
            f"{path.suffix[1:].upper().replace('NPZ', 'npz')}</a>"
            for path in saved.files
        )
        wide, high = (round(side * CSS_PIXELS / DPI) for side in saved.size)
        alt = f"{shown.title}. {shown.text}"
        source = figures.find_text("page", "source", source=shown.source)
        parts = [
            f'<article id="{place}"{visibility}><h3>{escape(shown.title)}</h3>',
            *(f"<p>{escape(text)}</p>" for text in shown.text.split("\n") if text.strip()),
            f'<div class="formula">{shown.formula}</div>' if shown.formula else "",
            f'<div class="card"><img src="data:image/png;base64,{_to_text(saved.png)}" '
            f'width="{wide}" height="{high}" alt="{escape(alt)}"></div>',
            self._explorer(shown.layers, entry) if shown.layers else "",
            f'<p class="source">{escape(source)}</p>' if shown.source else "",
            f'<p class="files">{figures.find_text("page", "files")} {links}</p></article>',
        ]
        self._parts[shown.section].append("\n".join(part for part in parts if part))

    def _explorer(self, layers: Sequence[PointLayer], entry: ImageEntry) -> str:
        """HTML of the clickable attention map, which `page.js` draws."""
        rows = [
            {
                "grid": layer.grid,
                "covered": layer.covered,
                "count": layer.keys.shape[1],
                "keys": self._table(layer.keys.astype("<i4")),
                "weights": self._table(layer.weights),
                "largest": self._table(layer.largest.astype("<f4")),
                "elsewhere": figures.translate(layer.elsewhere or "tokens outside the image"),
            }
            for layer in layers
        ]
        titles = (escape(figures.translate(layer.title)) for layer in layers)
        options = "".join(f"<option>{title}</option>" for title in titles)
        zoom = MAX_CANVAS / max(entry.size)
        return _load_template("explorer.html").substitute(
            figures.load_texts()["page"],
            name=entry.name,
            options=options,
            rows=json.dumps(rows),
            canvas_width=round(entry.size[1] * zoom),
            canvas_height=round(entry.size[0] * zoom),
            width=entry.size[1],
            height=entry.size[0],
            x=f"{entry.at[0]:.2f}",
            y=f"{entry.at[1]:.2f}",
        )

    def _table(self, values: NDArray[Any]) -> str:
        """Embed an array, compressed; equal arrays are embedded once. Returns its name."""
        data = np.ascontiguousarray(values).tobytes()
        name = hashlib.sha256(data).hexdigest()[:16]
        if name not in self._tables:
            self._tables[name] = _to_text(zlib.compress(data, 9))
        return name

    def render(self) -> str:
        """Render as HTML."""
        headings = figures.load_texts()["sections"]
        used = [section for section in SECTIONS if self._parts[section]]
        sections = [
            f'<section id="{section}"><h2>{escape(headings[section])}</h2>\n'
            + "\n".join(self._parts[section])
            + "</section>"
            for section in used
        ]
        contents = "".join(
            f'<li><a href="#{section}">{escape(headings[section])}</a>'
            f"<ol>{''.join(self._contents[section].values())}</ol></li>"
            for section in used
        )
        facts = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.facts.items()
        )
        several = len(self._buttons) > 1
        label = figures.load_texts()["page"]["images"]
        group = f'<div class="picker" role="group" aria-label="{label}">'
        picker = f"{group}{''.join(self._buttons)}</div>" if several else ""
        tables = "".join(
            f'<script type="text/plain" id="table-{name}">{text}</script>\n'
            for name, text in self._tables.items()
        )
        return _load_template("page.html").substitute(
            figures.load_texts()["page"],
            title=escape(figures.find_text("page", "title", name=self.name)),
            contents_label=figures.find_text("page", "contents"),
            made=figures.find_text("page", "made", version=__version__),
            texts=json.dumps(figures.load_texts()["page"]),
            version=__version__,
            style=_load_template("page.css").template,
            script=_load_template("page.js").template,
            notes="".join(f'<p class="note">{escape(note)}</p>' for note in self.notes),
            facts=f'<dl class="facts">{facts}</dl>',
            contents=f"<ol>{contents}</ol>",
            images=picker + "\n".join(self._images),
            sections="\n".join(sections) + tables,
        )


def _load_template(name: str) -> Template:
    return Template(files("muntin.explaining").joinpath(name).read_text("utf-8"))


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def clean_stem(name: str, taken: frozenset[str] | set[str] = frozenset()) -> str:
    """Turn a name into a folder name that is valid on every file system and in URLs.

    Examples:
        >>> clean_stem("a photo #1"), clean_stem("cat", {"cat"}), clean_stem("..")
        ('a_photo_1', 'cat-2', 'image')
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or "image"
    names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    return next(one for one in names if one.lower() not in {other.lower() for other in taken})
