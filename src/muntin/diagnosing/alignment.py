# SPDX-License-Identifier: Apache-2.0
"""Whether annotations fit their images better than if they were mirrored, turned, moved or scaled.

Inside a box colours differ from those around it, and inside a mask from those of other classes.
Where both do so more after a change than as annotated, in nearly all images, that change was made
by whoever wrote the annotations. No change did so on clean public sets (cells, nuclei, COCO,
aerial, mouse poses) when this was written; by how much was not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import Float, Int

MIN_IMAGES = 8
"""Fewer images are no evidence."""

_SURE = 4.0  # standard errors
_BETTER = 1.3  # times the measure as annotated
_FOREIGN_FROM = 24  # images
_SIDE = 64  # rows and columns of label maps that are compared
_FULL = 0.75  # of a side: boxes of many images that reach no further may be those of smaller copies

_ANGLES = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_RING = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_GRID = np.stack(np.meshgrid(*[(np.arange(_SIDE) + 0.5) / _SIDE] * 2), axis=2)

Array = NDArray[np.floating]


class AnnotatedImage(NamedTuple):
    """An image, small and in [0, 1], with its boxes as parts of its sides, or its label map."""

    pixels: Float[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "N 4"] | None = None
    labels: Int[np.ndarray, "h w"] | None = None


class _Change(NamedTuple):
    """Where points (..., 2), as parts of the sides, come to lie; `shift` in halves of a box.

    `move` also gets the height of the image as a part of its width.
    """

    code: str
    move: Callable[[Array, float], Array] = lambda p, ratio: p
    shift: int = 0


_CHANGES: Mapping[str, _Change] = {
    "left and right": _Change("mirrored", lambda p, ratio: p * (-1, 1) + (1, 0)),
    "top and bottom": _Change("mirrored", lambda p, ratio: p * (1, -1) + (0, 1)),
    "half a turn": _Change("turned", lambda p, ratio: 1 - p),
    "a quarter turn clockwise": _Change("turned", lambda p, ratio: p[..., ::-1] * (-1, 1) + (1, 0)),
    "a quarter turn anticlockwise": _Change(
        "turned", lambda p, ratio: p[..., ::-1] * (1, -1) + (0, 1)
    ),
    # Pixels were exchanged, not parts of the sides.
    "x and y": _Change("axes", lambda p, ratio: p[..., ::-1] * (ratio, 1 / ratio)),
}
_SHIFTS: Mapping[str, _Change] = {
    "half a box right and down": _Change("corner-as-centre", shift=1),
    "half a box left and up": _Change("centre-as-corner", shift=-1),
}
_NONE = _Change("")


def find_misalignment(
    looked: Sequence[AnnotatedImage], *, outlined: bool
) -> tuple[str, str] | None:
    """Give the code of the fault of annotations that fit their images after a change; None if none.

    With a text that names the change and the evidence for it. Boxes that are not `outlined`, as
    those around keypoints, say nothing about whose image it is.
    """
    boxed = [one for one in looked if one.boxes is not None and len(one.boxes)]
    used = boxed or [one for one in looked if one.labels is not None and _is_mixed(one.labels)]
    if len(used) < MIN_IMAGES:
        return None
    changes, measure = dict(_CHANGES), _measure_labels
    if boxed:
        changes, measure = {**changes, **_SHIFTS, **_find_scale(boxed)}, _measure_boxes
    plain = np.array([measure(one, one.pixels, _NONE) for one in used])
    best, gain = "", _SURE
    for name, change in changes.items():
        found = np.array([measure(one, one.pixels, change) for one in used])
        sure = _standard_errors(found - plain)
        if sure > gain and found.mean() > _BETTER * plain.mean():
            best, gain = name, sure
    if best:
        text = f"{best}, by {gain:.0f} standard errors over {len(used)} images"
        return changes[best].code, text
    if not outlined or len(used) < _FOREIGN_FROM:
        return None
    # Half the list further, as neighbours are often frames of one video.
    far = [*used[len(used) // 2 :], *used[: len(used) // 2]]
    foreign = [measure(one, other.pixels, _NONE) for one, other in zip(used, far, strict=True)]
    if _standard_errors(plain - np.array(foreign)) < 1:
        return "other-images", f"{len(used)} images compared with others"
    return None


def _standard_errors(differences: Array) -> float:
    """The mean in standard errors."""
    spread = differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean() / max(spread, 1e-9))


def _find_scale(looked: Sequence[AnnotatedImage]) -> dict[str, _Change]:
    """The factor that makes boxes reach as far as their images, if they stop far before."""
    every = np.concatenate([one.boxes for one in looked if one.boxes is not None])
    reach = float(every[:, 2:].max())
    if reach > _FULL or len(every) < 2 * MIN_IMAGES:
        return {}
    return {f"times {1 / reach:.2g}": _Change("scaled", lambda p, ratio: p / reach)}


def _measure_boxes(one: AnnotatedImage, pixels: NDArray[np.float32], change: _Change) -> float:
    """How colours inside boxes differ from those around them."""
    assert one.boxes is not None, "asked before"
    boxes, ratio = one.boxes, pixels.shape[0] / pixels.shape[1]
    half = (boxes[:, None, 2:] - boxes[:, None, :2]) / 2
    middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + change.shift * half
    inner, outer = (
        np.concatenate([middle + half * _RING * radius for radius in radii], axis=1)
        for radii in ((0.3, 0.6), (1.3, 1.5))
    )
    colors = [_read(pixels, change.move(places, ratio)).mean(axis=1) for places in (inner, outer)]
    return float(np.abs(colors[0] - colors[1]).sum(axis=1).mean())


def _measure_labels(one: AnnotatedImage, pixels: NDArray[np.float32], change: _Change) -> float:
    """Share of the variance of colours that classes explain."""
    assert one.labels is not None, "asked before"
    labels = _read(one.labels, _GRID)
    colors = _read(pixels, change.move(_GRID, pixels.shape[0] / pixels.shape[1]))
    known = labels >= 0
    classes, colors = labels[known], colors[known].astype(float)
    if not len(classes):
        return 0.0
    colors -= colors.mean(axis=0)
    between = sum(
        (classes == number).sum() * (colors[classes == number].mean(axis=0) ** 2).sum()
        for number in np.unique(classes)
    )
    return float(between / max((colors**2).sum(), 1e-9))


def _read(values: NDArray[Any], places: Array) -> NDArray[Any]:
    """The values at places (..., 2): x and y as parts of the sides, the nearest one if outside."""
    high, wide = values.shape[:2]
    columns, rows = (places[..., axis] * side for axis, side in enumerate((wide, high)))
    rows = np.clip(rows.astype(int), 0, high - 1)
    return np.asarray(values[rows, np.clip(columns.astype(int), 0, wide - 1)])


def _is_mixed(labels: NDArray[np.int16]) -> bool:
    known = labels[labels >= 0]
    return len(known) > 0 and bool((known != known[0]).any())
