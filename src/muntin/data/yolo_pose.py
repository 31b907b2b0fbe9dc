# SPDX-License-Identifier: Apache-2.0
"""YOLO with keypoints: a row is the class number, the box, and then each keypoint.

`kpt_shape` in the `data.yaml` says how many keypoints there are and whether each is x, y or x, y
and visibility, in fractions of the image. Of two numbers, (0, 0) and what is negative is a point
that is not there. `flip_idx` gives the number of each keypoint in a mirrored image, `kpt_names`
their names.

Source:
    The reader of labels of Ultralytics (data/utils.py, verify_image_label).
    Differs: (0, 0) without visibility, which it takes for the corner of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source
from muntin.data.skeletons import COCO_PERSON
from muntin.data.yolo import RowKeypoints, read_yolo, recognise_yolo, tree_of
from muntin.data.yolo_layout import find_yolo, read_settings
from muntin.errors import DataError
from muntin.samples import Listing, Skeleton

_PERSON_FLIPS = tuple(COCO_PERSON.partners)


def _recognise(source: Source) -> str | None:
    named = recognise_yolo(source)
    return named if named and "kpt_shape" in read_settings(tree_of(source), named) else None


def _reject(source: Source) -> Sequence[str]:
    named = find_yolo(source.tree)
    return [f"{named!r} has no kpt_shape"] if named else []


def _read(source: Source, found: str, request: ObjectRequest) -> dict[str, Listing]:
    values = read_settings(tree_of(source), found)
    count, width = _shape_of(values, found)
    skeleton = _skeleton_of(values, count, request.findings.notes)
    return read_yolo(source, found, request, RowKeypoints(skeleton, width))


def _shape_of(values: Mapping[str, Any], settings: str) -> tuple[int, int]:
    """Keypoints and numbers of each."""
    shape = values["kpt_shape"]
    sides = [int(one) for one in shape if str(one).isdecimal()] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[0] < 1 or sides[1] not in (2, 3):
        message = (
            f"kpt_shape in {settings!r} must be a number of keypoints and 2 or 3 numbers of each, "
            f"such as [17, 3], got {shape!r}. Correct the file."
        )
        raise DataError(message)
    return sides[0], sides[1]


def _skeleton_of(values: Mapping[str, Any], count: int, notes: list[str]) -> Skeleton:
    named = values.get("kpt_names")
    if isinstance(named, dict):  # by class, which share them, or by number
        first = next(iter(named.values()), None)
        named = first if isinstance(first, list) else list(named.values())
    flips = values.get("flip_idx")
    flips = [int(one) for one in flips if str(one).isdecimal()] if isinstance(flips, list) else []
    names = tuple(map(str, named)) if isinstance(named, list) else ()
    if len(set(names)) != count:
        person = tuple(flips) == _PERSON_FLIPS and count == len(_PERSON_FLIPS)
        names = COCO_PERSON.names if person else tuple(f"point {n}" for n in range(count))
    valid = len(flips) == count and all(
        other < count and flips[other] == one for one, other in enumerate(flips)
    )
    if flips and not valid:
        notes.append(f"flip_idx left out: not {count} keypoints that are exchanged in pairs")
    pairs = tuple((one, other) for one, other in enumerate(flips) if one < other) if valid else ()
    return Skeleton(names=names, flip_pairs=pairs, mirrored=valid)


YOLO_POSE: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="YOLO pose",
    recognise=_recognise,
    read=_read,
    looks_for="YOLO (a data.yaml with kpt_shape, labels/*.txt)",
    file="a data.yaml",
    reject=_reject,
)
