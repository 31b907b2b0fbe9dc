# SPDX-License-Identifier: Apache-2.0
"""Results drawn on their image: classes below it, semantic maps over it, keypoints with edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.detection_drawing import draw_detections
from muntin.drawing.fonts import write_text
from muntin.drawing.layout import HALO, LARGEST, LegendRow, add_legend, fit_image, join_panels
from muntin.drawing.style import Colour, clean_label, colour_of
from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Labels, Poses, SemanticMap
from muntin.samples import Objects, Skeleton
from muntin.shapes import Int, Size

_SMALLEST = 480  # pixels, of the longer side
_SHARE = 0.7  # of the colour in semantic maps
_MOST_NAMED = 30  # keypoints in the legend


def draw_result(pixels: NDArray[np.uint8], result: Any) -> Image.Image:  # noqa: ANN401
    """Draw one of `muntin.results` on its image.

    Small images are enlarged so that the text can be read, and large ones shrunk.
    """
    for kind, draw in _DRAWERS.items():
        if isinstance(result, kind):
            return draw(pixels, result)
    message = f"result must be one of muntin.results, got {type(result).__name__}."
    raise TypeError(message)


def draw_sure_result(pixels: NDArray[np.uint8], result: Any) -> Image.Image:  # noqa: ANN401
    """Draw a result as `draw_result`, without objects and instances of a low score."""
    if isinstance(result, Detections | Poses):
        result = result.above(DEFAULT_SCORE_THRESHOLD)
    return draw_result(pixels, result)


def _draw_classes(pixels: NDArray[np.uint8], result: Labels) -> Image.Image:
    """Draw the best classes, with bars, below the image."""
    image = fit_image(pixels, 320, LARGEST, tiny=320)
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
    palette = _palette(len(class_names), colors)
    pixels = np.array(fit_image(original, _SMALLEST, largest))
    shown = _resize_labels(labels, pixels.shape[:2])
    known = shown >= 0
    painted = pixels.astype(np.float32)
    painted[known] += (palette[shown[known]] - painted[known]) * _SHARE
    edges = np.zeros(shown.shape, bool)
    edges[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edges[1:] |= shown[1:] != shown[:-1]
    painted[edges] *= 0.6
    image = Image.fromarray(painted.round().astype(np.uint8))
    counts = np.bincount(labels[labels >= 0].ravel(), minlength=len(class_names))
    rows = _legend(counts, labels.size, class_names, palette)
    return add_legend(image, rows, head="" if rows else "nothing labelled")


def draw_semantic_pair(
    original: NDArray[np.uint8],
    truth: Int[np.ndarray, "H W"],
    found: SemanticMap,
) -> Image.Image:
    """Draw annotation beside prediction."""
    panels = [
        draw_labels(original, labels, found.class_names, found.colors, largest=960)
        for labels in (truth, found.labels)
    ]
    return join_panels(panels)


def _palette(count: int, colors: Sequence[Colour]) -> NDArray[np.float32]:
    if len(colors) == count:
        return np.array(colors, np.float32)
    return np.array([colour_of(number) for number in range(count)], np.float32)


def _resize_labels(labels: NDArray[np.integer], size: Size) -> NDArray[np.integer]:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


def _legend(
    counts: NDArray[np.int64],
    total: int,
    class_names: Sequence[str],
    palette: NDArray[np.float32],
) -> list[LegendRow]:
    """Colour, name and share of each class, the largest first."""
    rows: list[LegendRow] = []
    for number in np.argsort(-counts, kind="stable").tolist():
        if not counts[number]:
            continue
        share = counts[number] / total
        percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        red, green, blue = palette[number].astype(int).tolist()
        text = f"{clean_label(class_names[number], number)}  {percent}"
        rows.append(((red, green, blue), text, None))
    return rows


def draw_poses(
    pixels: NDArray[np.uint8],
    found: Poses,
    *,
    min_score: float = DEFAULT_SCORE_THRESHOLD,
    largest: int = LARGEST,
) -> Image.Image:
    """Draw keypoints with enough score, edges between them, and a strip that names them.

    The best instance is on top; `largest` is the maximum longer side in pixels.
    """
    image = fit_image(pixels, _SMALLEST, largest)
    scale = max(image.size) / max(pixels.shape[:2])
    pen = ImageDraw.Draw(image)
    radius = max(3.0, max(image.size) / 100)
    for row in range(len(found) - 1, -1, -1):
        _draw_instance(pen, found, row, scale, radius, min_score)
    names = found.keypoint_names[:_MOST_NAMED]
    rows = [(colour_of(k), clean_label(name, k), None) for k, name in enumerate(names)]
    return add_legend(image, rows, what="keypoints", head="" if rows else "nothing labelled")


def draw_pose_pair(pixels: NDArray[np.uint8], truth: Poses, found: Poses) -> Image.Image:
    """Draw annotated (from `annotated_poses`) beside predicted poses."""
    return join_panels([draw_poses(pixels, poses, largest=960) for poses in (truth, found)])


def annotated_poses(objects: Objects, rows: Sequence[int], skeleton: Skeleton) -> Poses:
    """Convert annotated instances to poses: visible keypoints score 1, others 0."""
    assert objects.keypoints is not None, "pose data has keypoints"
    chosen = list(rows)
    points = objects.keypoints[chosen].copy()
    points[:, :, 2] = points[:, :, 2] > 0
    return Poses(
        path="",
        size=(0, 0),
        keypoints=points,
        scores=np.ones(len(chosen)),
        keypoint_names=skeleton.names,
        edges=skeleton.edges,
    )


def _draw_instance(
    pen: ImageDraw.ImageDraw, found: Poses, row: int, scale: float, radius: float, min_score: float
) -> None:
    points = (found.keypoints[row, :, :2] + 0.5) * scale
    shown = (found.keypoints[row, :, 2] >= min_score) & np.isfinite(points).all(axis=1)
    if found.boxes is not None:
        left, top, right, bottom = (found.boxes[row] * scale).tolist()
        pen.rectangle((left, top, right, bottom), outline=(230, 230, 230), width=1)
    for first, second in found.edges:
        if shown[first] and shown[second]:
            line = [*points[first].tolist(), *points[second].tolist()]
            width = max(2, round(radius * 0.6))
            pen.line(line, fill=HALO, width=width + 2)
            pen.line(line, fill=colour_of(second), width=width)
    for k in np.flatnonzero(shown):
        x, y = points[k].tolist()
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=colour_of(int(k)), outline=HALO, width=1)


_DRAWERS: dict[type, Callable[[NDArray[np.uint8], Any], Image.Image]] = {
    Labels: _draw_classes,
    Detections: draw_detections,
    SemanticMap: lambda pixels, found: draw_labels(
        pixels, found.labels, found.class_names, found.colors
    ),
    Poses: draw_poses,
}
