# SPDX-License-Identifier: Apache-2.0
"""CVAT for images: one XML of all images, with boxes, polygons, ellipses and masks in pixels.

A box or an ellipse may be turned about its centre, clockwise. A mask is run lengths row by row
inside its bounding box, the first of them empty. Tags of whole images are not looked at.

Source:
    https://docs.cvat.ai/docs/dataset_management/formats/xml_format/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, clean_class_name
from muntin.data.shape_records import ImageShapes, Point, Shape, ellipse, list_shapes, rotated_box
from muntin.data.trees import Tree, part_in
from muntin.errors import DataError
from muntin.run_lengths import Segmentation, encode_mask
from muntin.samples import Listing
from muntin.shapes import Size

_ROOT = re.compile(rb"<annotations[\s>]")
_WITHOUT_AREA = ("points", "polyline", "skeleton")
_WITH_AREA = ("box", "polygon", "ellipse", "mask", "cuboid")


def _recognise(source: Source) -> list[str] | None:
    if source.is_file:
        names = [source.name] if source.suffix == ".xml" else []
    else:
        names = source.tree.with_suffix(".xml")
    # One XML an image, as VOC has it, is not CVAT's.
    if not names or not _ROOT.search(read_bytes(source.tree.source, names[0])[:2000]):
        return None
    return names


def _read(source: Source, xmls: Sequence[str], request: ObjectRequest) -> dict[str, Listing]:
    records = [record for path in xmls for record in _read_file(source.tree, path)]
    return list_shapes(source.tree, records, request)


def _read_file(tree: Tree, path: str) -> list[ImageShapes]:
    try:
        root = ElementTree.fromstring(read_bytes(tree.source, path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        message = f"{path!r} in {tree.source!r} must be XML that is whole, got: {error}."
        raise DataError(message) from error
    images = root.findall("image")
    if not images:
        got = "tracks of a video" if root.find("track") is not None else "none"
        message = (
            f"An XML of CVAT must have images, got {got} in {path!r} of {tree.source!r}. Export "
            f'the task as "CVAT for images", with its images.'
        )
        raise DataError(message)
    return [_read_image(node, path) for node in images]


def _read_image(node: ElementTree.Element, path: str) -> ImageShapes:
    height, width = _number(node, "height"), _number(node, "width")
    size = (int(height), int(width)) if height >= 1 and width >= 1 else None
    shapes = [
        _read_shape(child, f"{child.tag} {number} of image {node.get('id')}", size)
        for number, child in enumerate(node, 1)
        if child.tag in _WITH_AREA or child.tag in _WITHOUT_AREA
    ]
    part = part_in(node.get("subset") or "")
    return ImageShapes(
        file=path, names=[node.get("name") or ""], size=size, part=part, shapes=shapes
    )


def _read_shape(node: ElementTree.Element, where: str, size: Size | None) -> Shape:
    group = node.get("group_id") or ""
    shape = Shape(where=where, label=clean_class_name(node.get("label") or ""))
    shape.group = "" if group == "0" else group
    if node.tag in _WITHOUT_AREA:
        shape.kind, shape.corners = "points", _points_of(node)
    elif node.tag == "cuboid":
        sides = [(x, y, n) for n in "12" for x in "lr" for y in "tb"]
        shape.corners = [
            (_number(node, f"x{y}{x}{n}"), _number(node, f"y{y}{x}{n}")) for x, y, n in sides
        ]
    elif node.tag == "box" and not _number(node, "rotation", 0):
        corners = (("xtl", "ytl"), ("xbr", "ybr"))
        shape.corners = [(_number(node, x), _number(node, y)) for x, y in corners]
    else:
        shape.kind, shape.outline = "area", _outline_of(node, size)
    return shape


def _outline_of(node: ElementTree.Element, size: Size | None) -> Segmentation | None:
    turn = _number(node, "rotation", 0)
    if node.tag == "box":
        x0, y0, x1, y1 = (_number(node, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        return rotated_box(x0, y0, (x1 - x0, y1 - y0), turn, ((x0 + x1) / 2, (y0 + y1) / 2))
    if node.tag == "ellipse":
        cx, cy, rx, ry = (_number(node, name) for name in ("cx", "cy", "rx", "ry"))
        return ellipse((cx, cy), (rx, ry), turn)
    if node.tag == "mask":
        return _read_mask(node, size)
    points = _points_of(node)
    return [[number for point in points for number in point]] if len(points) > 2 else None


def _read_mask(node: ElementTree.Element, size: Size | None) -> Segmentation | None:
    """The mask of an image; None if its run lengths do not fill the bounding box."""
    try:
        left, top, width, height = (
            int(float(node.get(name) or "")) for name in ("left", "top", "width", "height")
        )
        counts = [int(count) for count in (node.get("rle") or "").split(",")]
    except ValueError:
        return None
    fits = min(left, top, width, height, *counts) >= 0 and sum(counts) == width * height
    if size is None or not fits or left + width > size[1] or top + height > size[0]:
        return None
    bits = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return encode_mask(bits, size=size, top=top, left=left)


def _points_of(node: ElementTree.Element) -> list[Point]:
    try:
        pairs = [pair.split(",") for pair in (node.get("points") or "").split(";")]
        return [(float(x), float(y)) for x, y in pairs]
    except ValueError:
        return []


def _number(node: ElementTree.Element, name: str, default: float = float("nan")) -> float:
    try:
        return float(node.get(name, default))
    except ValueError:
        return float("nan")


CVAT: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="CVAT for images",
    recognise=_recognise,
    read=_read,
    looks_for="CVAT for images (an XML of annotations)",
    file="an annotations.xml of CVAT",
    example="""
        annotations.xml  <annotations>
          | <image id="0" name="1.jpg" width="32" height="24">
          |   <polygon label="cat" points="4,5;14,5;14,13;4,13"/>
          |   <box label="dog" xtl="20" ytl="2" xbr="30" ybr="12"/></image>
          | </annotations>
        images/1.jpg
    """,
)
