# SPDX-License-Identifier: Apache-2.0
"""Results in notebooks, as HTML."""

from __future__ import annotations

import contextlib
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from muntin.data.decoding import open_image
from muntin.drawing.notebook import SIDE, embed_image, show_table
from muntin.drawing.result_drawing import draw_result
from muntin.errors import DataError

_MAX_COLUMNS = 10


def show_result(result: Any) -> str:  # noqa: ANN401 (one of muntin.results)
    """Show a result: its drawing, and a table of what was found, from its threshold on.

    Of an image that was no file, or is gone, the drawing is on grey. Keypoints are not tabled.
    """
    pixels = np.full((*result.size, 3), 225, np.uint8)
    with contextlib.suppress(DataError):
        pixels = open_image(Path(result.path)) if result.path else pixels
    shown = result.above(result.threshold)
    columns = {name: values for name, values in shown.to_columns().items() if name != "path"}
    head = escape(f"{Path(result.path).name or 'image'}: {result.describe()}")
    drawn = draw_result(pixels, result, largest=SIDE)
    table = dict(list(columns.items())[:_MAX_COLUMNS])
    return f"<p>{head}</p>{embed_image(drawn)}{show_table(table)}"
