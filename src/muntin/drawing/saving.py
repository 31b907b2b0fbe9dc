# SPDX-License-Identifier: Apache-2.0
"""Drawings as PNG files, written atomically, and as HTML that notebooks show.

The HTML has tables, and images inside it, without files and addresses.
"""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.drawing.fonts import use_fonts
from muntin.staging import write_file
from muntin.untrusted import read_regular

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return the path; errors as of `write_file`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    use_fonts(figure)
    data = io.BytesIO()
    with ignore_missing_characters():
        figure.savefig(data, format="png", dpi=120, facecolor="white", bbox_inches="tight")
    return write_file(data.getvalue(), path)


@contextlib.contextmanager
def ignore_missing_characters() -> Iterator[None]:
    """Ignore warnings about letters that the font lacks: the image shows a box for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save_image(image: Image.Image, path: Path) -> Path:
    """Write an image as PNG and return the path; errors as of `write_file`."""
    data = io.BytesIO()
    image.save(data, format="png")
    return write_file(data.getvalue(), path)


def save_labels(labels: NDArray[np.int16], path: Path) -> Path:
    """Write the class number of each pixel as a grey PNG, of 16 bits where 8 are too few."""
    kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    return save_image(Image.fromarray(labels.astype(kind)), path)


SIDE = 640
"""Longer side of images, in pixels."""
_MAX_ROWS = 50


def to_data_url(image: Image.Image, kind: str) -> str:
    """Encode an image as an address that holds it; `kind` is "jpeg" or "png"."""
    data = io.BytesIO()
    image.convert("RGB").save(data, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def embed_image(image: Image.Image | Path) -> str:
    """Show an image, or a file of ours, at most `SIDE` pixels large; nothing of a missing file."""
    if isinstance(image, Path):
        if not image.is_file():
            return ""
        image = Image.open(io.BytesIO(read_regular(image)))
    shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE))
    return f'<p><img src="{to_data_url(shown, "jpeg")}" alt=""/></p>'


def show_table(columns: Mapping[str, Iterable[Any]]) -> str:
    """Show columns of equal length as a table of at most 50 rows; nothing without rows."""
    values = list(zip(*columns.values(), strict=True))
    if not values:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(_format(cell))}</td>' for cell in row)}</tr>"
        for row in islice(values, _MAX_ROWS)
    )
    more = len(values) - _MAX_ROWS
    note = f"<p>and {more} more</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def show_facts(title: str, facts: Mapping[str, Any], pictures: Sequence[Path] = ()) -> str:
    """Show a title, a table of names and values, and image files; lists and tables are left out."""
    plain = {
        name: value
        for name, value in facts.items()
        if value is None or isinstance(value, str | bool | int | float | Path | np.number)
    }
    table = show_table({"": [*plain], title: [*plain.values()]}) if plain else escape(title)
    return table + "".join(map(embed_image, pictures))


def _format(value: Any) -> str:  # noqa: ANN401 (a cell)
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return "n/a" if value is None else str(value)
