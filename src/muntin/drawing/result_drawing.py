# SPDX-License-Identifier: Apache-2.0
"""Draw a result on its image, by the kind of result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.detection_drawing import draw_detections
from muntin.drawing.fonts import load_font
from muntin.drawing.layout import HALO, LARGEST, fit_image
from muntin.drawing.pose_drawing import draw_poses
from muntin.drawing.semantic_drawing import draw_semantic_map
from muntin.results import Detections, Labels, Poses, SemanticMap


def draw_result(pixels: NDArray[np.uint8], result: Any) -> Image.Image:  # noqa: ANN401
    """Draw one of `muntin.results` on its image.

    Small images are enlarged so that the text can be read, and large ones shrunk.
    """
    for kind, draw in _DRAWERS.items():
        if isinstance(result, kind):
            return draw(pixels, result)
    message = f"result must be one of muntin.results, got {type(result).__name__}."
    raise TypeError(message)


def _draw_classes(pixels: NDArray[np.uint8], result: Labels) -> Image.Image:
    """Draw the best classes, with bars, below the image."""
    image = fit_image(pixels, 320, LARGEST, tiny=320)
    width = max(image.width, 260)
    rows = list(zip(result.class_names, result.scores, strict=True))[:5]
    line = 22
    sheet = Image.new("RGB", (width, image.height + line * len(rows) + 12), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    font = load_font(13)
    for number, (name, score) in enumerate(rows):
        top = image.height + 8 + number * line
        length = round((width - 16) * float(score))
        fill = (140, 190, 225) if number == 0 else (215, 228, 238)
        pen.rectangle((8, top, 8 + max(length, 1), top + line - 5), fill=fill)
        pen.text((12, top), f"{name}  {float(score):.2f}", fill=HALO, font=font)
    return sheet


_DRAWERS: dict[type, Callable[[NDArray[np.uint8], Any], Image.Image]] = {
    Labels: _draw_classes,
    Detections: draw_detections,
    SemanticMap: draw_semantic_map,
    Poses: draw_poses,
}
