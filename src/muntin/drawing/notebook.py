# SPDX-License-Identifier: Apache-2.0
"""HTML that notebooks show: tables, and images inside it, without files and addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.untrusted import read_regular

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
