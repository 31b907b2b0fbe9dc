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

# Of no use beside the drawing; those of keypoints are many.
_HIDDEN = {"path", "image_height", "image_width", "mask"}
_KEYPOINTS = {"keypoint", "x", "y", "score"}


def show_result(result: Any) -> str:  # noqa: ANN401 (one of muntin.results)
    """Show a result: its drawing, and a table of what was found, from its threshold on.

    Of an image that was no file, is gone or has another size now, the drawing is on grey.
    Keypoints are not tabled.
    """
    pixels = np.full((*result.size, 3), 225, np.uint8)
    with contextlib.suppress(DataError):
        opened = open_image(Path(result.path)) if result.path else pixels
        pixels = opened if opened.shape == pixels.shape else pixels
    shown = result.above(result.threshold)
    columns = shown.to_columns()
    hidden = _HIDDEN | (_KEYPOINTS if "keypoint" in columns else set())
    step = max(len(columns["path"]) // max(len(shown), 1), 1)  # of an instance one row
    table = {name: values[::step] for name, values in columns.items() if name not in hidden}
    head = escape(f"{Path(result.path).name or 'image'}: {result.describe()}")
    drawn = draw_result(pixels, result, largest=SIDE)
    return f"<p>{head}</p>{embed_image(drawn)}{show_table(table)}"
