# SPDX-License-Identifier: Apache-2.0
"""Detections and annotations drawn on their image, or both side by side.

Few objects carry a tag each. Many would hide the image under their tags, so tags shrink to
initials, then go, and a legend below the image takes over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from muntin.drawing.fonts import measure_text
from muntin.drawing.layout import HALO, LARGEST, add_legend, draw_tag, fit_image, join_panels
from muntin.drawing.style import Colour, clean_label, colour_of
from muntin.results import Detections
from muntin.run_lengths import Segmentation
from muntin.samples import Objects
from muntin.shapes import Size

Place = tuple[int, int, int, int]  # left, top, right, bottom, the last two included
Piece = tuple[NDArray[np.bool_], int, int]
"""The part of a mask that is set, its first row and its first column."""

_TINY = 64  # up to this size pixels are enlarged without smoothing
_FILL, _HATCH = 0.35, 0.6  # shares of the colour in masks
_FEW, _SOME = 25, 60  # objects: full tags, initials, none


@dataclass(frozen=True, slots=True, eq=False)
class _Mark:
    """One object, in pixels of the original; `text` is its full tag."""

    box: NDArray[np.float64]
    class_id: int
    name: str
    text: str
    mask: Segmentation | None
    crowd: bool = False


def draw_detections(original: NDArray[np.uint8], found: Detections) -> Image.Image:
    """Draw detections, best on top: boxes in the colour of their class, and masks.

    The new image is at most 1280 pixels on the longer side; small ones are enlarged. With more
    than 25 objects, a legend below it shows colour, name and number of each class.
    """
    return _draw_panel(original, _found_marks(found), "detected")


def draw_objects(
    original: NDArray[np.uint8], objects: Objects, class_names: Sequence[str]
) -> Image.Image:
    """Draw annotations, like `draw_detections`; crowds dashed and hatched."""
    return _draw_panel(original, _truth_marks(objects, class_names), "annotated")


def draw_detection_pair(
    original: NDArray[np.uint8], truth: Objects, found: Detections, class_names: Sequence[str]
) -> Image.Image:
    """Draw annotations beside detections, at most 960 pixels on the longer side of each.

    All detections are drawn, so apply a score threshold before.
    """
    sides = (_truth_marks(truth, class_names), _found_marks(found))
    busiest = max(len(marks) for marks in sides)
    panels = [
        _draw_panel(original, marks, verb, largest=960, busiest=busiest)
        for marks, verb in zip(sides, ("annotated", "detected"), strict=True)
    ]
    return join_panels(panels)


def _found_marks(found: Detections) -> list[_Mark]:
    marks = []
    for row in range(len(found)):
        class_id = int(found.class_ids[row])
        name = clean_label(found.class_names[row], class_id)
        text = f"{name} {float(found.scores[row]):.2f}"
        mask = None if found.masks is None else found.masks[row]
        marks.append(_Mark(found.boxes[row], class_id, name, text, mask))
    return [mark for mark in marks if np.isfinite(mark.box).all()]


def _truth_marks(objects: Objects, class_names: Sequence[str]) -> list[_Mark]:
    marks = []
    # The smallest come first, that is on top.
    for row in np.argsort(objects.areas, kind="stable"):
        class_id, crowd = int(objects.class_ids[row]), bool(objects.crowd[row])
        name = clean_label(class_names[class_id], class_id) if class_id >= 0 else "unknown"
        text = f"{name} (crowd)" if crowd and class_id >= 0 else name
        mask = objects.masks[row] if objects.masks else None
        box = np.asarray(objects.boxes[row], np.float64)
        marks.append(_Mark(box, class_id, name, text, mask, crowd))
    return [mark for mark in marks if np.isfinite(mark.box).all()]


def _draw_panel(
    original: NDArray[np.uint8],
    marks: Sequence[_Mark],
    verb: str,
    *,
    largest: int = LARGEST,
    busiest: int = 0,
) -> Image.Image:
    """Draw marks, the first on top; `busiest` sets the style of all panels of a sheet."""
    busiest = max(busiest, len(marks))
    image = fit_image(original, 640 if busiest <= _FEW else 960, largest, tiny=_TINY)
    ratio = np.array([image.width / original.shape[1], image.height / original.shape[0]])
    line = max(1, round(max(image.size) / 420)) if busiest <= _FEW else 1 + (busiest <= _SOME)
    pixels = np.array(image)
    for mark in reversed(marks):
        piece = cut_mask(mark.mask, original.shape[:2], image.size[::-1]) if mark.mask else None
        if piece is not None:
            _paint_mask(pixels, *piece, colour_of(mark.class_id), line=line, hatched=mark.crowd)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    places = [_place(mark.box, ratio, image) for mark in marks]
    for mark, place in reversed(list(zip(marks, places, strict=True))):
        # With many objects, the contour of a mask is enough.
        if place and (mark.mask is None or mark.crowd or busiest <= _FEW):
            thin = max(1, line // 2) if mark.mask else line
            _draw_box(pen, place, mark, thin, halo=busiest <= _FEW and not mark.mask)
    # Initials are redundant if all objects have one class.
    initials = _FEW < busiest <= _SOME and len({mark.class_id for mark in marks}) > 1
    if busiest <= _FEW or initials:
        _draw_tags(pen, image, marks, places, initials=initials)
    if marks and busiest <= _FEW:
        return image
    return _add_legend(image, marks, verb, initials=initials)


def _place(
    box: NDArray[np.float64], ratio: NDArray[np.float64], image: Image.Image
) -> Place | None:
    """Pixels of a box, at least one; None when it is outside of the image."""
    # Far outside the image nothing is drawn anyway.
    scaled = np.clip(box * np.tile(ratio, 2), -20, np.tile(image.size, 2) + 20)
    left, top = (int(edge) for edge in np.floor(scaled[:2]))
    right, bottom = (int(edge) - 1 for edge in np.ceil(scaled[2:]))
    if right < 0 or bottom < 0 or left >= image.width or top >= image.height:
        return None
    return left, top, max(left, right), max(top, bottom)


def _draw_box(
    pen: ImageDraw.ImageDraw, place: Place, mark: _Mark, line: int, *, halo: bool
) -> None:
    colour = colour_of(mark.class_id)
    left, top, right, bottom = place
    if mark.crowd:
        _dash_box(pen, place, colour, line=line)
        return
    if halo:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=HALO, width=line + 2)
    # A line wider than its box would invert the rectangle.
    inner = max(1, min(line, (right - left + 1) // 2, (bottom - top + 1) // 2))
    pen.rectangle(place, outline=colour, width=inner)


def _draw_tags(
    pen: ImageDraw.ImageDraw,
    image: Image.Image,
    marks: Sequence[_Mark],
    places: Sequence[Place | None],
    *,
    initials: bool,
) -> None:
    """Draw tags where they overlap least; initials are dropped rather than overlap.

    Initials of a mask are centred in it, because its box is not drawn.
    """
    size = round(8 + max(image.size) / 128) - 2 * initials
    taken: list[Place] = []
    for mark, place in zip(marks, places, strict=True):
        if place is None:
            continue
        text = _initials(mark.name) if initials else mark.text
        while len(text) > 1 and measure_text(text, size) + 6 > image.width:
            text = text[:-1]
        width, height = round(measure_text(text, size)) + 6, round(size * 1.3)
        left, top, right, bottom = place
        corners = [(left, top - height), (left, top), (right - width, top - height), (left, bottom)]
        if initials and mark.mask:
            corners = [((left + right - width) // 2, (top + bottom - height) // 2)]
        spots = []
        for x, y in corners:
            x = min(max(x, 0), max(0, image.width - width))
            y = min(max(y, 0), max(0, image.height - height))
            spots.append((x, y, x + width - 1, y + height - 1))
        hidden = [sum(_shared(spot, other) for other in taken) for spot in spots]
        best = hidden.index(min(hidden))
        if initials and (hidden[best] or right - left < width or bottom - top < height):
            continue
        taken.append(spots[best])
        draw_tag(pen, spots[best], text, colour_of(mark.class_id), size=size)


def _shared(one: Place, other: Place) -> int:
    wide = min(one[2], other[2]) - max(one[0], other[0]) + 1
    high = min(one[3], other[3]) - max(one[1], other[1]) + 1
    return max(wide, 0) * max(high, 0)


def _initials(name: str) -> str:
    words = name.split()
    return "".join(word[0] for word in words[:2]) if len(words) > 1 else name[:2]


def _add_legend(
    image: Image.Image, marks: Sequence[_Mark], verb: str, *, initials: bool
) -> Image.Image:
    """Add a legend below the image: number of objects; colour, name and number of each class."""
    counts = Counter((mark.class_id, mark.name) for mark in marks).most_common()
    rows = [
        (colour_of(class_id), f"{name}  {count}", _initials(name) if initials else "")
        for (class_id, name), count in counts
    ]
    total = len(marks)
    head = f"{total} object{'s' * (total != 1)} {verb}" if marks else f"nothing {verb}"
    return add_legend(image, rows, head=head, max_lines=5)


def cut_mask(mask: Segmentation, size: Size, drawn: Size) -> Piece | None:
    """Cut out the part of a mask that is set, scaled from `size` to the size it is drawn in.

    None when nothing is set; at least one pixel otherwise.
    """
    down, right = drawn[0] / size[0], drawn[1] / size[1]
    if isinstance(mask, list):
        # Corners are scaled, not pixels, so that outlines stay smooth.
        scaled = [
            [edge * (down if place % 2 else right) for place, edge in enumerate(polygon)]
            for polygon in mask
            if len(polygon) >= 6
        ]
        return _crop(coco_mask.frPyObjects(scaled, *drawn), 1.0, 1.0) if scaled else None
    if isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, *size)
    return _crop([mask], down, right)


def _crop(masks: list[Any], down: float, right: float) -> Piece | None:
    whole = coco_mask.merge(masks)
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(whole))
    if not width or not height:
        return None
    bitmap = coco_mask.decode(whole)[top : top + height, left : left + width]
    rows = round(top * down), round((top + height) * down)
    columns = round(left * right), round((left + width) * right)
    sides = (max(1, columns[1] - columns[0]), max(1, rows[1] - rows[0]))
    piece = Image.fromarray(bitmap * np.uint8(255)).resize(sides, Image.Resampling.BILINEAR)
    shrunk = np.asarray(piece) >= 128
    # A mask too thin for the drawn size is seen as what it covers.
    return shrunk if shrunk.any() else ~shrunk, rows[0], columns[0]


def _paint_mask(
    pixels: NDArray[np.uint8],
    piece: NDArray[np.bool_],
    top: int,
    left: int,
    colour: Colour,
    *,
    line: int,
    hatched: bool = False,
) -> None:
    """Paint a mask into an image, in place: a translucent fill, or stripes, and a contour.

    `piece`, `top` and `left` come from `cut_mask`. The contour, `line` pixels wide, lies inside.
    """
    part = pixels[top : top + piece.shape[0], left : left + piece.shape[1]]
    piece = piece[: part.shape[0], : part.shape[1]]
    inner = Image.fromarray(np.pad(piece, 1).astype(np.uint8) * 255)
    for _ in range(line):
        inner = inner.filter(ImageFilter.MinFilter(3))
    contour = piece & (np.asarray(inner)[1:-1, 1:-1] == 0)
    share = np.where(piece, _FILL, 0.0)
    if hatched:
        rows, columns = np.indices(piece.shape)
        stripes = (rows + top + columns + left) % 12 < 3
        share = np.where(piece & stripes, _HATCH, 0.0)
    share[contour] = 1.0
    mixed = part + (np.array(colour) - part) * share[..., None]
    part[...] = mixed.round().astype(np.uint8)


def _dash_box(pen: ImageDraw.ImageDraw, place: Place, colour: Colour, *, line: int) -> None:
    """Draw a box with dashes, `line` pixels wide."""
    left, top, right, bottom = place
    dash = 5 + 2 * line
    for x in range(left, right + 1, 2 * dash):
        end = min(x + dash, right)
        pen.line((x, top, end, top), fill=colour, width=line)
        pen.line((x, bottom, end, bottom), fill=colour, width=line)
    for y in range(top, bottom + 1, 2 * dash):
        end = min(y + dash, bottom)
        pen.line((left, y, left, end), fill=colour, width=line)
        pen.line((right, y, right, end), fill=colour, width=line)
