# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From annotations as a file holds them to the objects of an image.

Readers of all formats bring an annotation to the same form; here it is looked at, once, and is
kept, cut at the edge of the image, or left out with a line that names it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from muntin.data.annotation import Annotation, AnnotationReport, ObjectRequest
from muntin.data.keypoint_cleaning import clean_keypoints, hide_outside
from muntin.data.segmentations import clean_segmentation
from muntin.errors import DataError, shorten
from muntin.run_lengths import mask_area, to_run_lengths
from muntin.samples import Entry, Objects, Segmentation
from muntin.shapes import Size

__all__ = [
    "NO_BOX",
    "NO_MASK",
    "NO_POINTS",
    "UNKNOWN_CLASS",
    "Annotation",
    "AnnotationReport",
    "ObjectRequest",
    "clean_class_name",
    "describe_box",
    "gather_objects",
    "make_entry",
    "number_classes",
]

Edges = tuple[float, float, float, float]

BROKEN_MASK = "with a broken mask"
NO_BOX = "without a box of four numbers"
NO_MASK = "without a mask"
NO_POINTS = "without a visible keypoint"
UNKNOWN_CLASS = "of an unknown class"
_TOLERANCE = 1.0  # pixels that a box may reach over the edge before it is reported


def gather_objects(
    annotations: Sequence[Annotation],
    *,
    size: Size,
    file: str,
    findings: AnnotationReport,
    masks: bool = False,
    keypoint_names: Sequence[str] = (),
) -> Objects:
    """Look at the annotations of an image and keep what can be learnt from.

    Args:
        annotations: Of one image, in the order of the file.
        size: (height, width) of the image in pixels.
        file: The file that problems are reported for.
        findings: Where they are noted.
        masks: Whether every object must have a mask. Without, masks are forgotten.
        keypoint_names: Keypoints of each object; none where they are not wanted.

    Returns:
        The objects, in the same order. Boxes end at the edge of the image. An area that the file
        does not say is that of the mask, or of the box where masks are not wanted.
    """
    kept: list[Annotation] = []
    seen: dict[tuple[int, bool, Edges], Annotation] = {}
    beyond: list[tuple[str, float]] = []
    points: list[NDArray[np.float64]] = []
    for one in annotations:
        known, wrong = None, None
        if keypoint_names:
            known, wrong = clean_keypoints(one.keypoints, len(keypoint_names))
        if fault := _fault_of(one, size, masks) or wrong:
            findings.leave_out(file, one.where, *fault)
            continue
        key = one.class_id, one.crowd, one.box
        twin = seen.setdefault(key, one)
        if twin is not one and (not masks or twin.segmentation == one.segmentation):
            findings.leave_out(file, one.where, "duplicate", f"the same as {twin.where}")
            continue
        excess = _cut(one, size)
        if excess > _TOLERANCE:
            beyond.append((one.where, excess))
        kept.append(one)
        if known is not None:
            _look_at_points(known, one, size, file, findings, keypoint_names)
            points.append(known)
    if beyond:
        most = max(excess for _, excess in beyond)
        names = shorten((where for where, _ in beyond), limit=3)
        what = f"boxes reach up to {most:.4g} pixels over the edge of the image, cut ({names})"
        findings.warn(file, what)
    findings.num_masks += len(kept) if masks else 0
    return Objects(
        boxes=np.array([one.box for one in kept], np.float64).reshape(-1, 4),
        class_ids=np.array([one.class_id for one in kept], np.int64),
        crowd=np.array([one.crowd for one in kept], np.bool_),
        areas=np.array(
            [
                0.0 if keypoint_names and not one.area else _area_of(one, size, masks)
                for one in kept
            ],
            np.float64,
        ),
        masks=tuple(one.segmentation for one in kept) if masks else (),
        keypoints=_stack(points, len(keypoint_names)),
    )


def _stack(points: list[NDArray[np.float64]], count: int) -> NDArray[np.float64] | None:
    if not count:
        return None
    return np.stack(points) if points else np.zeros((0, count, 3))


def _look_at_points(
    points: NDArray[np.float64],
    one: Annotation,
    size: Size,
    file: str,
    findings: AnnotationReport,
    names: Sequence[str],
) -> None:
    """Forget points outside the image; name those, and an instance that has none in its box."""
    outside = hide_outside(points, size)
    if len(outside):
        there = shorten((names[number] for number in outside), limit=5)
        what = (
            f"{one.where}: {there} outside the image of {size[0]} x {size[1]} pixels (height x "
            f"width), not used"
        )
        findings.warn(file, what)
    if not one.crowd and not (points[:, 2] > 0).any():
        findings.leave_out(file, one.where, NO_POINTS)
        return
    left, top, right, bottom = one.box
    x, y = points[points[:, 2] > 0, :2].T + 0.5  # boxes are made of edges
    near = (x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)
    if not one.crowd and not near.any():
        what = f"{one.where}: none of its keypoints lies in its box, {describe_box(one.box)}"
        findings.warn(file, what)
        findings.num_apart += 1


def make_entry(path: str, size: Size, objects: Objects) -> Entry:
    """Describe an image by its objects; groups of objects do not give it a class."""
    class_ids = sorted(set(objects.class_ids[~objects.crowd].tolist()))
    return Entry(path=path, class_ids=tuple(class_ids), size=size, objects=objects)


def clean_class_name(name: object) -> str:
    """One spelling of a class name: no space around it, one way to write an accent."""
    return unicodedata.normalize("NFC", str(name)).strip()


def number_classes(
    found: Iterable[str], used: Collection[str], wanted: Sequence[str] | None, source: str
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Give each class its number.

    Args:
        found: Classes that the data set lists, in order.
        used: Those of them that objects have.
        wanted: Classes of a trained run, which the numbers follow.
        source: Where the data set is, for messages.

    Returns:
        The names in the order of the numbers, and the number of each name. With `wanted`, a class
        that is listed only has none.

    Raises:
        DataError: There is no class, or the run does not know one.
    """
    names = tuple(dict.fromkeys(found))
    if wanted is None:
        if not names:
            message = (
                f"A data set of objects needs at least one class, got none in {source!r}. "
                f"Annotate objects first."
            )
            raise DataError(message)
        return names, {name: class_id for class_id, name in enumerate(names)}
    spelled = {clean_class_name(name): class_id for class_id, name in enumerate(wanted)}
    unknown = [name for name in names if name in used and name not in spelled]
    if unknown:
        message = (
            f"Classes must be among the {len(wanted)} that the run was trained on "
            f"({shorten(wanted)}), got also {shorten(unknown)} in {source!r}. "
            f"Rename or remove them."
        )
        raise DataError(message)
    return tuple(wanted), spelled


def describe_box(box: Edges) -> str:
    """Write the edges of a box.

    Example:
        >>> describe_box((1.0, 2.5, 1.0, 7.0))
        'x from 1 to 1, y from 2.5 to 7'
    """
    left, top, right, bottom = (f"{edge:.6g}" for edge in box)
    return f"x from {left} to {right}, y from {top} to {bottom}"


def _fault_of(one: Annotation, size: Size, masks: bool) -> tuple[str, str] | None:
    """What is wrong with an annotation, if anything: the kind and what came."""
    left, top, right, bottom = one.box
    height, width = size
    kind = ""
    if not all(map(math.isfinite, one.box)):
        kind = "not finite"
    elif right < left or bottom < top:
        kind = "of negative size"
    elif right == left or bottom == top:
        kind = "of zero area"
    elif right <= 0 or bottom <= 0 or left >= width or top >= height:
        kind = "outside the image"
        return kind, f"{describe_box(one.box)}; the image is {height} x {width} (height x width)"
    if kind:
        return kind, describe_box(one.box)
    if not masks:
        return None
    one.segmentation, fault = clean_segmentation(one.segmentation, size)
    if fault:
        return BROKEN_MASK, fault
    return None if one.segmentation else (NO_MASK, "")


def _cut(one: Annotation, size: Size) -> float:
    """End the box at the edge of the image; by how many pixels it reached over it."""
    left, top, right, bottom = one.box
    height, width = size
    excess = max(-left, -top, right - width, bottom - height)
    if excess > 0:
        one.box = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    return excess


def _area_of(one: Annotation, size: Size, masks: bool) -> float:
    if one.area is not None and math.isfinite(one.area) and one.area > 0:
        return one.area
    segmentation: Segmentation | None = one.segmentation
    if masks and segmentation is not None:
        return mask_area(to_run_lengths(segmentation, size))
    left, top, right, bottom = one.box
    return (right - left) * (bottom - top)
