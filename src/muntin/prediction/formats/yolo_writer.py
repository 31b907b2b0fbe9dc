# SPDX-License-Identifier: Apache-2.0
"""YOLO: images and texts in two folders, a row an object, and a data.yaml.

Rows are boxes, polygons of objects with masks, or boxes with keypoints (x, y and 2; zeros for those
that are not sure). All parts and holes of a mask are one polygon.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from muntin.prediction.formats.contours import find_rings, join_rings
from muntin.prediction.formats.items import Answer, FormatContext, Item, size_of, sure_items
from muntin.samples import skeleton_of
from muntin.shapes import Size
from muntin.staging import write_file


def format_settings(context: FormatContext) -> dict[str, str]:
    """Give ``data.yaml``, and the names of classes for tools that want a ``classes.txt``."""
    names = [" ".join(name.split()) for name in context.classes.names]
    # Predictions have no sets, and readers want both.
    values = {"train": "images", "val": "images", "names": dict(enumerate(names))}
    if context.kind == "keypoints":
        skeleton = skeleton_of(context.classes)
        values["kpt_shape"] = [len(skeleton.names), 3]
        values["kpt_names"] = {0: [*skeleton.names]}
        if skeleton.mirrored or skeleton.flip_pairs:
            values["flip_idx"] = [*skeleton.partners]
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    return {"data.yaml": text, "classes.txt": "\n".join(names) + "\n"}


def write_rows(answer: Answer, place: Path, context: FormatContext) -> None:
    """Write the rows of an image to `place`."""
    rows = (_format(item, size_of(answer)) for item in sure_items(answer, context))
    write_file("".join(row for row in rows if row).encode(), place)


def _format(item: Item, size: Size) -> str:
    """One row; "" for an empty mask."""
    height, width = size
    left, top, right, bottom = item.box
    box = [(left + right) / 2 / width, (top + bottom) / 2 / height]
    numbers = [*box, (right - left) / width, (bottom - top) / height]
    if item.mask is not None:
        rings = [ring for area in find_rings(item.mask) for ring in area]
        numbers = (join_rings(rings) / (width, height)).ravel().tolist() if rings else []
    for point in item.sure_points:
        numbers += [0, 0, 0] if point is None else [point[0] / width, point[1] / height, 2]
    return f"{item.class_id} {_join(numbers)}\n" if numbers else ""


def _join(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.7g}" for number in numbers)
