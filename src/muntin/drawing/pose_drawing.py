# SPDX-License-Identifier: Apache-2.0
"""Keypoints drawn on their image, with edges between them, or annotated beside predicted ones.

Edges are coloured by side, where the data says which keypoints are left and right; keypoints by
instance, where there are several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.layout import (
    HALO,
    LARGEST,
    LegendRow,
    add_legend,
    fit_image,
    join_panels,
    panel_side,
)
from muntin.drawing.style import (
    BLUE,
    GREEN,
    VERMILION,
    Colour,
    clean_label,
    colour_of,
    parse_colour,
)
from muntin.drawing.tags import Tag, draw_tags
from muntin.results import DEFAULT_SCORE_THRESHOLD, Poses
from muntin.samples import Objects, Skeleton

_SMALLEST = 480  # pixels, of the longer side
_MOST_NAMED = 30  # keypoints in the legend
_LEFT, _RIGHT, _MIDDLE = map(parse_colour, (BLUE, VERMILION, GREEN))


def draw_poses(pixels: NDArray[np.uint8], found: Poses, *, largest: int = LARGEST) -> Image.Image:
    """Draw keypoints with enough score, edges between them, and a legend.

    The best instance is on top; `largest` is the maximum longer side in pixels.
    """
    image = fit_image(pixels, _SMALLEST, largest)
    scale = max(image.size) / max(pixels.shape[:2])
    pen = ImageDraw.Draw(image)
    points = (found.keypoints[:, :, :2] + 0.5) * scale
    sure = found.keypoints[:, :, 2] >= DEFAULT_SCORE_THRESHOLD
    shown = sure & np.isfinite(points).all(axis=2)
    dots, edges = _choose_colours(found)
    for row in range(len(found) - 1, -1, -1):
        if found.boxes is not None:
            box = (found.boxes[row] * scale).round()
            pen.rectangle(np.add(box, (-1, -1, 1, 1)).tolist(), outline=HALO, width=3)
            box = box.tolist()
            pen.rectangle(box, outline="white" if _is_single(found) else dots[row][0], width=1)
        own, visible = points[row], points[row][shown[row]]
        # Small instances are not covered by their keypoints.
        extent = float(np.ptp(visible, axis=0).max()) if len(visible) > 1 else np.inf
        radius = min(max(2.5, extent / 30), max(3.0, max(image.size) / 110))
        lines = [
            (own[list(edge)].ravel().tolist(), colour)
            for edge, colour in zip(found.edges, edges[row], strict=True)
            if shown[row][list(edge)].all()
        ]
        width = max(2, round(radius * 0.8))
        for line, _ in lines:
            pen.line(line, fill=HALO, width=width + 2)
        for line, colour in lines:
            pen.line(line, fill=colour, width=width)
        for k in np.flatnonzero(shown[row]).tolist():
            circle = np.r_[own[k] - radius, own[k] + radius].tolist()
            pen.ellipse(circle, fill=dots[row][k], outline=HALO)
    if found.track_ids is not None:
        draw_tags(image, _list_tags(found, points, dots), size=round(8 + max(image.size) / 128))
    rows = _legend(found)
    return add_legend(image, rows, what="keypoints", head="" if len(found) else "nothing labelled")


def draw_pose_pair(
    pixels: NDArray[np.uint8], truth: Poses, found: Poses, *, side: int = 1928
) -> Image.Image:
    """Draw annotated (from `annotated_poses`) beside predicted poses.

    At most `side` pixels wide or high.
    """
    largest = panel_side(pixels, side)
    return join_panels([draw_poses(pixels, poses, largest=largest) for poses in (truth, found)])


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
        flip_pairs=skeleton.flip_pairs,
    )


def _choose_colours(found: Poses) -> tuple[list[list[Colour]], list[list[Colour]]]:
    """Colours of the keypoints and of the edges of each instance."""
    count, single = len(found.keypoint_names), _is_single(found)
    numbers = range(len(found)) if found.track_ids is None else found.track_ids.tolist()
    own = [[colour_of(number)] * count for number in numbers]
    if found.flip_pairs:
        sides = [_MIDDLE] * count
        for left, right in found.flip_pairs:
            sides[left], sides[right] = _LEFT, _RIGHT
        edges = [_edge_colour(sides[first], sides[second]) for first, second in found.edges]
        return [sides] if single else own, [edges] * len(found)
    if single:  # by keypoint, as in the legend
        each = [colour_of(number) for number in range(count)]
        return [each], [[each[second] for _, second in found.edges]]
    return own, [[colours[0]] * len(found.edges) for colours in own]


def _list_tags(
    found: Poses, points: NDArray[np.float64], dots: Sequence[Sequence[Colour]]
) -> list[Tag]:
    """The id of each instance, at the box around its keypoints."""
    assert found.track_ids is not None, "instances are tracked"
    tags = []
    for row, number in enumerate(found.track_ids.tolist()):
        corners = np.nan_to_num([*points[row].min(axis=0), *points[row].max(axis=0)])
        left, top, right, bottom = corners.astype(int).tolist()
        tags.append(Tag((left, top, right, bottom), str(number), dots[row][0]))
    return tags


def _is_single(found: Poses) -> bool:
    """Whether colours tell keypoints apart: of a single instance that is not tracked."""
    return len(found) == 1 and found.track_ids is None


def _edge_colour(first: Colour, second: Colour) -> Colour:
    """Colour of the one side that an edge belongs to; between both, as at the hips, the middle."""
    sides = {first, second} - {_MIDDLE}
    return sides.pop() if len(sides) == 1 else _MIDDLE


def _legend(found: Poses) -> list[LegendRow]:
    """What colours mean: sides, or the keypoints of a single instance."""
    if not len(found):
        return []
    if found.flip_pairs:
        return [(_LEFT, "left", None), (_RIGHT, "right", None), (_MIDDLE, "middle", None)]
    names = found.keypoint_names[:_MOST_NAMED] if _is_single(found) else ()
    return [(colour_of(k), clean_label(name, k), None) for k, name in enumerate(names)]
