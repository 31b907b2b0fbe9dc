# SPDX-License-Identifier: Apache-2.0
"""Results drawn on their image: classes below it, semantic maps over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.detection_drawing import draw_detections
from muntin.drawing.fonts import write_text
from muntin.drawing.layout import (
    HALO,
    LARGEST,
    LegendRow,
    add_legend,
    fit_image,
    join_panels,
    panel_side,
)
from muntin.drawing.pose_drawing import draw_poses
from muntin.drawing.style import Colour, clean_label, colours_of
from muntin.errors import ShapeError
from muntin.results import Detections, Labels, Poses, SemanticMap
from muntin.shapes import Int, Size

_SMALLEST = 480  # pixels, of the longer side
_SHARE = 0.5  # of the colour in semantic maps


def draw_result(
    pixels: NDArray[np.uint8],
    result: Any,  # noqa: ANN401 (one of muntin.results)
    *,
    threshold: float | None = None,
    largest: int = LARGEST,
) -> Image.Image:
    """Draw one of `muntin.results` on its image, from its threshold on, or another one.

    Small images are enlarged so that the text can be read, and large ones shrunk to `largest`
    pixels on the longer side.

    Raises:
        ShapeError: The size of the image is not that of the result; of `Labels` any will do.
    """
    draw = _DRAWERS.get(type(result))
    if draw is None:
        several = isinstance(result, list | tuple)
        advice = (
            "Give one of them, such as results[0]." if several else "Give what load() predicts."
        )
        message = f"result must be one of muntin.results, got {type(result).__name__}. {advice}"
        raise TypeError(message)
    if pixels.shape[:2] != tuple(result.size) and not isinstance(result, Labels):
        (height, width), (needed_height, needed_width) = pixels.shape[:2], result.size
        message = (
            f"image must be the one of the result, {needed_height} x {needed_width}, got "
            f"{height} x {width}: what was found would lie elsewhere. Give the image that was "
            f"predicted{f', {result.path}' if result.path else ''}."
        )
        raise ShapeError(message)
    shown = result.above(result.threshold if threshold is None else threshold)
    return draw(pixels, shown, largest=largest)


def _draw_classes(pixels: NDArray[np.uint8], result: Labels, *, largest: int) -> Image.Image:
    """Draw the best classes, with bars, below the image."""
    image = fit_image(pixels, 320, largest, tiny=320)
    width = max(image.width, 260)
    rows = list(zip(result.class_names, result.class_ids, result.scores, strict=True))[:5]
    line = 22
    sheet = Image.new("RGB", (width, image.height + line * len(rows) + 12), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for number, (name, class_id, score) in enumerate(rows):
        top = image.height + 8 + number * line
        length = round((width - 16) * float(score))
        fill = (140, 190, 225) if number == 0 else (215, 228, 238)
        pen.rectangle((8, top, 8 + max(length, 1), top + line - 5), fill=fill)
        text = f"{clean_label(name, int(class_id), 40)}  {float(score):.2f}"
        write_text(pen, (12, top), text, size=13, fill=HALO)
    return sheet


def draw_labels(
    original: NDArray[np.uint8],
    labels: Int[np.ndarray, "H W"],
    class_names: Sequence[str],
    colors: Sequence[Colour] = (),
    *,
    largest: int = LARGEST,
) -> Image.Image:
    """Draw labels over their image; pixels with a label below 0 are left as they are.

    `colors` are those of the data set, or none; `largest` is the maximum longer side in pixels.
    The legend shows colour, name and share of the image of each class.
    """
    palette = np.array(colours_of(len(class_names), colors), np.float32)
    pixels = np.array(fit_image(original, _SMALLEST, largest))
    shown = _resize_labels(labels, pixels.shape[:2])
    known = shown >= 0
    painted = pixels.astype(np.float32)
    painted[known] += (palette[shown[known]] - painted[known]) * _SHARE
    # Outlines on both sides of a border, each in the full colour of its class.
    edges = np.zeros(shown.shape, bool)
    for inner, outer in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differs = shown[inner] != shown[outer]
        edges[inner] |= differs
        edges[outer] |= differs
    edges &= known
    painted[edges] = palette[shown[edges]]
    image = Image.fromarray(painted.round().astype(np.uint8))
    counts = np.bincount(labels[labels >= 0].ravel(), minlength=len(class_names))
    rows: list[LegendRow] = []
    ranked = [n for n in np.argsort(-counts, kind="stable").tolist() if counts[n]]
    for number in ranked:
        share = counts[number] / labels.size
        percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        red, green, blue = palette[number].astype(int).tolist()
        text = f"{clean_label(class_names[number], number)}  {percent}"
        rows.append(((red, green, blue), text, None))
    return add_legend(image, rows, head="" if rows else "nothing labelled")


def draw_semantic_pair(
    original: NDArray[np.uint8],
    truth: Int[np.ndarray, "H W"],
    found: SemanticMap,
    *,
    side: int = 1928,
) -> Image.Image:
    """Draw annotation beside prediction, `side` pixels wide or high at most, each with a legend."""
    largest = panel_side(original, side)
    panels = [
        draw_labels(original, labels, found.class_names, found.colors, largest=largest)
        for labels in (truth, found.labels)
    ]
    return join_panels(panels)


def _resize_labels(labels: NDArray[np.integer], size: Size) -> NDArray[np.integer]:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


def _draw_map(pixels: NDArray[np.uint8], found: SemanticMap, *, largest: int) -> Image.Image:
    return draw_labels(pixels, found.labels, found.class_names, found.colors, largest=largest)


_DRAWERS: dict[type, Callable[..., Image.Image]] = {
    Labels: _draw_classes,
    Detections: draw_detections,
    SemanticMap: _draw_map,
    Poses: draw_poses,
}
