# SPDX-License-Identifier: Apache-2.0
"""CVAT for images: one XML of all images, with boxes, polygons, ellipses and masks in pixels.

CVAT for video has tracks instead: a shape for each frame in which an object is in view. Its images
are frame_000000.png and so on; those between key frames that a track leaves out are not read.

A box or an ellipse may be turned about its centre, clockwise. A mask is run lengths row by row
inside its bounding box, the first of them empty. Tags of whole images are not looked at.

Source:
    https://docs.cvat.ai/docs/dataset_management/formats/xml_format/
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from xml.etree import ElementTree

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, clean_class_name
from muntin.data.shape_records import (
    ImageShapes,
    Point,
    Shape,
    ellipse,
    polygon,
    read_number,
    read_points,
    read_shapes,
    rotated_box,
)
from muntin.data.trees import Tree, part_in
from muntin.errors import DataError, plural
from muntin.run_lengths import Segmentation, encode_mask
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.untrusted import parse_xml

_ROOT = re.compile(rb"<annotations[\s>]")
_FRAME = re.compile(r"(?:^|/)frame_(\d{6,})\.[^./]+$", re.IGNORECASE)
_SHAPES = ("box", "polygon", "ellipse", "mask", "cuboid", "points", "polyline", "skeleton")


def _recognise(source: Source) -> list[str] | None:
    names = source.with_suffix(".xml")
    # One XML an image, as VOC has it, is not CVAT's.
    if not names or not _ROOT.search(read_bytes(source.tree.source, names[0])[:2000]):
        return None
    return names


def read_records(source: Source, xmls: Sequence[str], request: ObjectRequest) -> list[ImageShapes]:
    """Read the shapes of each image, or of each frame of a video."""
    return [one for path in xmls for one in _read_file(source.tree, path, request)]


def _read_file(tree: Tree, path: str, request: ObjectRequest) -> list[ImageShapes]:
    try:
        root = parse_xml(read_bytes(tree.source, path))
    except ValueError as error:
        message = f"{path!r} in {tree.source!r} must be XML that is whole, got: {error}."
        raise DataError(message) from error
    records = [_read_image(node, path) for node in root.findall("image")]
    if not records and root.find("track") is not None:
        records = _read_frames(root, tree, path, request)
    if not records:
        message = (
            f"An XML of CVAT must have images, or tracks of a video with frames, got none in "
            f'{path!r} of {tree.source!r}. Export the task as "CVAT for images", with its images.'
        )
        raise DataError(message)
    return records


def _read_image(node: ElementTree.Element, path: str) -> ImageShapes:
    size = _size_of(node)
    shapes = [
        _read_shape(child, f"{child.tag} {number} of image {node.get('id')}", size)
        for number, child in enumerate(node, 1)
        if child.tag in _SHAPES
    ]
    part = part_in(node.get("subset") or "")
    return ImageShapes(
        file=path, names=[node.get("name") or ""], size=size, part=part, shapes=shapes
    )


def _size_of(node: ElementTree.Element) -> Size | None:
    height, width = read_number(node.attrib, "height"), read_number(node.attrib, "width")
    return (int(height), int(width)) if height >= 1 and width >= 1 else None


def _read_frames(
    root: ElementTree.Element, tree: Tree, path: str, request: ObjectRequest
) -> list[ImageShapes]:
    """Read the tracks of a video; frames in which no object is in view are images without any."""
    images = {int(one[1]): name for name in tree.images if (one := _FRAME.search(name))}
    sides = root.find(".//original_size")
    size = None
    if sides is not None:
        size = _size_of(ElementTree.Element("size", {one.tag: one.text or "" for one in sides}))
    shapes: dict[int, list[Shape]] = defaultdict(list)
    unknown: set[int] = set()
    for track in root.findall("track"):
        last = None
        frames = [(node.get("frame", ""), node) for node in track if node.tag in _SHAPES]
        nodes = [(int(frame), node) for frame, node in frames if frame.isdecimal()]
        for frame, node in sorted(nodes, key=itemgetter(0)):
            if last is not None:
                unknown |= set(range(last + 1, frame))  # between key frames
            last = None if node.get("outside") == "1" else frame
            seen = shapes[frame]
            if last is not None:
                where = f"{node.tag} of track {track.get('id')} in frame {frame}"
                seen.append(_read_shape(node, where, size, track))
    first, end = (root.findtext(f".//{name}_frame") or "" for name in ("start", "stop"))
    if first.isdecimal() and end.isdecimal():
        shapes |= {n: shapes[n] for n in images if int(first) <= n <= int(end)}
        if int(end) + 1 in images and int(first) not in images:
            message = (
                f"Frames must count from {int(first)} to {int(end)}, as CVAT names them "
                f"(frame_{int(first):06d}), got {images[int(end) + 1]!r} for {path!r} of "
                f"{tree.source!r}. Rename the images."
            )
            raise DataError(message)
    if left_out := len(unknown & images.keys()):
        what = "between key frames left out: export the tracks with all their frames"
        request.findings.notes.append(f"{plural(left_out, 'frame')} {what}")
    return [
        ImageShapes(file=path, names=[images.get(n, f"frame_{n:06d}")], size=size, shapes=shapes[n])
        for n in sorted(shapes.keys() - unknown)
    ]


def _read_shape(
    node: ElementTree.Element,
    where: str,
    size: Size | None,
    track: ElementTree.Element | None = None,
) -> Shape:
    named = node if track is None else track
    group = named.get("group_id") or ""
    shape = Shape(where=where, label=clean_class_name(named.get("label") or ""))
    shape.group = "" if group == "0" else group
    shape.occluded = node.get("occluded") == "1"
    if node.tag in ("points", "polyline"):
        shape.kind = "points" if node.tag == "points" else "line"
        shape.corners = _points_of(node)
    elif node.tag == "skeleton":
        shape.kind = "points"
        for part in node.findall("points"):
            at = _points_of(part) if part.get("outside") != "1" else []
            point = (*at[0], 1 if part.get("occluded") == "1" else 2) if len(at) == 1 else (0, 0, 0)
            shape.keypoints[clean_class_name(part.get("label") or "")] = point
    elif node.tag == "cuboid":
        sides = [(x, y, n) for n in "12" for x in "lr" for y in "tb"]
        shape.corners = [
            (read_number(node.attrib, f"x{y}{x}{n}"), read_number(node.attrib, f"y{y}{x}{n}"))
            for x, y, n in sides
        ]
    elif node.tag == "box" and not read_number(node.attrib, "rotation", 0):
        corners = (("xtl", "ytl"), ("xbr", "ybr"))
        shape.corners = [
            (read_number(node.attrib, x), read_number(node.attrib, y)) for x, y in corners
        ]
    else:
        shape.kind, shape.outline = "area", _outline_of(node, size)
    return shape


def _outline_of(node: ElementTree.Element, size: Size | None) -> Segmentation | None:
    turn = read_number(node.attrib, "rotation", 0)
    if node.tag == "box":
        x0, y0, x1, y1 = (read_number(node.attrib, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        return rotated_box(x0, y0, (x1 - x0, y1 - y0), turn, ((x0 + x1) / 2, (y0 + y1) / 2))
    if node.tag == "ellipse":
        cx, cy, rx, ry = (read_number(node.attrib, name) for name in ("cx", "cy", "rx", "ry"))
        return ellipse((cx, cy), (rx, ry), turn)
    if node.tag == "mask":
        return _read_mask(node, size)
    return polygon(_points_of(node))


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
    return read_points(pair.split(",") for pair in (node.get("points") or "").split(";"))


CVAT: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="CVAT for images",
    recognise=_recognise,
    read=partial(read_shapes, read_records),
    looks_for="CVAT for images (an XML of annotations)",
    file="an annotations.xml of CVAT",
)
