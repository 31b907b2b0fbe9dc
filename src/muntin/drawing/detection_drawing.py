# SPDX-License-Identifier: Apache-2.0
"""Detections and annotations drawn on their image, or both side by side.

Each object has a colour of its own. Few carry a tag each. Many would hide the image under their
tags, so tags shrink to initials, then go, and a legend below the image takes over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from muntin.drawing.layout import (
    HALO,
    LARGEST,
    LegendRow,
    add_legend,
    fit_image,
    join_panels,
    panel_side,
)
from muntin.drawing.style import Colour, clean_label, colour_of
from muntin.drawing.tags import Place, Tag, draw_tags
from muntin.errors import plural
from muntin.results import Detections
from muntin.run_lengths import Segmentation
from muntin.samples import Objects
from muntin.shapes import Size

Piece = tuple[NDArray[np.bool_], int, int]
"""The part of a mask that is set, its first row and its first column."""

_TINY = 64  # up to this size pixels are enlarged without smoothing
_FILL, _HATCH = 0.4, 0.6  # shares of the colour in masks
_FEW, _SOME = 25, 60  # objects: full tags, initials, none
_PLAIN: Colour = (90, 90, 90)  # of initials in a legend
_SAME = 0.5  # overlap (IoU) of boxes that are drawn in one colour in both panels of a pair


@dataclass(frozen=True, slots=True, eq=False)
class _Mark:
    """One object, in pixels of the original; `text` is its full tag, `number` sets its colour."""

    box: NDArray[np.float64]
    class_id: int
    name: str
    text: str
    mask: Segmentation | None
    number: int
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class _Style:
    """How objects are drawn, the same in all panels of a sheet.

    With `few`, each has a full tag; with `initials`, a short one. `by_class`: one colour a class,
    where there are too many objects for tags; else one colour an object.
    """

    few: bool
    initials: bool
    by_class: bool
    largest: int

    def colour(self, mark: _Mark) -> Colour:
        return colour_of(mark.class_id if self.by_class else mark.number)


def draw_detections(
    original: NDArray[np.uint8], found: Detections, *, largest: int = LARGEST
) -> Image.Image:
    """Draw detections, best on top: boxes and masks, each object in a colour of its own.

    The new image is at most `largest` pixels on the longer side; small ones are enlarged. Where
    tags have no room, a legend below it counts the objects of each class; with more than 60 objects
    of several classes, the colours are those of classes.
    """
    marks = _found_marks(found)
    return _draw_panel(original, marks, "detected", _choose_style([marks], largest))


def draw_objects(
    original: NDArray[np.uint8],
    objects: Objects,
    class_names: Sequence[str],
    *,
    largest: int = LARGEST,
) -> Image.Image:
    """Draw annotations, like `draw_detections`; crowds dashed and hatched."""
    marks = _truth_marks(objects, class_names)
    return _draw_panel(original, marks, "annotated", _choose_style([marks], largest))


def draw_detection_pair(
    original: NDArray[np.uint8],
    truth: Objects,
    found: Detections,
    class_names: Sequence[str],
    *,
    side: int = 1928,
) -> Image.Image:
    """Draw annotations beside detections, `side` pixels wide or high at most.

    An object and a detection with an overlap (IoU) of boxes from 0.5 have one colour. All
    detections are drawn, so apply a score threshold before.
    """
    marked = _truth_marks(truth, class_names)
    sides = (marked, _match_colours(_found_marks(found), marked))
    style = _choose_style(sides, panel_side(original, side))
    panels = [
        _draw_panel(original, marks, verb, style)
        for marks, verb in zip(sides, ("annotated", "detected"), strict=True)
    ]
    return join_panels(panels)


def _match_colours(found: Sequence[_Mark], truth: Sequence[_Mark]) -> list[_Mark]:
    """Give detections the numbers of the objects they match, best first; others have new ones."""
    boxes = [np.array([mark.box for mark in marks]).reshape(-1, 4) for marks in (found, truth)]
    sizes = [np.concatenate([each[:, :2], each[:, 2:] - each[:, :2]], axis=1) for each in boxes]
    free = np.ones(len(truth), bool)
    overlaps = np.zeros((len(found), len(truth)))
    if len(found) and len(truth):
        overlaps = np.array(coco_mask.iou(*sizes, [False] * len(truth)))
    matched = []
    for row, mark in enumerate(found):
        shares = overlaps[row] * free
        number = len(truth) + row
        if len(truth) and shares.max() >= _SAME:
            place = int(shares.argmax())
            free[place], number = False, truth[place].number
        matched.append(replace(mark, number=number))
    return matched


def _found_marks(found: Detections) -> list[_Mark]:
    marks = []
    for row in range(len(found)):
        class_id = int(found.class_ids[row])
        name = clean_label(found.class_names[row], class_id)
        text, number = f"{name} {float(found.scores[row]):.2f}", row
        if found.track_ids is not None:  # one colour in all frames
            number = int(found.track_ids[row])
            text = f"{number} {text}"
        mask = None if found.masks is None else found.masks[row]
        marks.append(_Mark(found.boxes[row], class_id, name, text, mask, number))
    return [mark for mark in marks if np.isfinite(mark.box).all()]


def _truth_marks(objects: Objects, class_names: Sequence[str]) -> list[_Mark]:
    marks = []
    # The smallest come first, that is on top.
    for row in np.argsort(objects.areas, kind="stable").tolist():
        class_id, crowd = int(objects.class_ids[row]), bool(objects.crowd[row])
        name = clean_label(class_names[class_id], class_id) if class_id >= 0 else "unknown"
        text = f"{name} (crowd)" if crowd and class_id >= 0 else name
        mask = objects.masks[row] if objects.masks else None
        box = np.asarray(objects.boxes[row], np.float64)
        marks.append(_Mark(box, class_id, name, text, mask, row, crowd))
    return [mark for mark in marks if np.isfinite(mark.box).all()]


def _choose_style(sides: Sequence[Sequence[_Mark]], largest: int) -> _Style:
    busiest = max(map(len, sides))
    several = len({mark.class_id for marks in sides for mark in marks}) > 1
    return _Style(
        few=busiest <= _FEW,
        initials=_FEW < busiest <= _SOME and several,  # redundant if all have one class
        by_class=busiest > _SOME and several,
        largest=largest,
    )


def _draw_panel(
    original: NDArray[np.uint8], marks: Sequence[_Mark], verb: str, style: _Style
) -> Image.Image:
    """Draw marks, small masks over large ones, else the first on top."""
    image = fit_image(original, 640 if style.few else 960, style.largest, tiny=_TINY)
    ratio = np.array([image.width / original.shape[1], image.height / original.shape[0]])
    line = max(1, round(max(image.size) / 420)) if style.few else 1 + (len(marks) <= _SOME)
    pieces = [
        cut_mask(mark.mask, original.shape[:2], image.size[::-1]) if mark.mask else None
        for mark in marks
    ]
    painted = [
        (piece, style.colour(mark), mark.crowd)
        for mark, piece in zip(marks, pieces, strict=True)
        if piece is not None
    ]
    painted.sort(key=lambda each: int(each[0][0].sum()))  # stable: of equal ones the first on top
    image = Image.fromarray(_paint_masks(np.array(image), painted[::-1], line=line))
    pen = ImageDraw.Draw(image)
    places = [_place(mark.box, ratio, image) for mark in marks]
    for mark, place in reversed(list(zip(marks, places, strict=True))):
        # With many objects, the contour of a mask is enough.
        if place and (mark.mask is None or mark.crowd or style.few):
            thin = max(1, line // 2) if mark.mask else line
            if mark.crowd:
                _dash_box(pen, place, style.colour(mark), line=thin)
                continue
            halo = style.few and not mark.mask
            _draw_box(pen, place, style.colour(mark), line=thin, halo=halo)
    tags = [
        Tag(place, _initials(mark.name) if style.initials else mark.text, style.colour(mark))
        for mark, place in zip(marks, places, strict=True)
        if place is not None and (style.few or style.initials)
    ]
    size = round(8 + max(image.size) / 128) - 2 * style.initials
    left_out = draw_tags(image, tags, size=size, lines=style.few)
    if marks and style.few and not left_out:
        return image
    return _add_legend(image, marks, verb, style)


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
    pen: ImageDraw.ImageDraw, place: Place, colour: Colour, *, line: int, halo: bool
) -> None:
    left, top, right, bottom = place
    if halo:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=HALO, width=line + 2)
    # A line wider than its box would invert the rectangle.
    inner = max(1, min(line, (right - left + 1) // 2, (bottom - top + 1) // 2))
    pen.rectangle(place, outline=colour, width=inner)


def _initials(name: str) -> str:
    words = name.split()
    return "".join(word[0] for word in words[:2]) if len(words) > 1 else name[:2]


def _add_legend(
    image: Image.Image, marks: Sequence[_Mark], verb: str, style: _Style
) -> Image.Image:
    """Add a legend below the image: number of objects; name and number of each class.

    With colours where these are of classes, and with initials where these are drawn.
    """
    counts = Counter((mark.class_id, mark.name) for mark in marks).most_common()
    rows: list[LegendRow] = []
    for (class_id, name), count in counts:
        colour = colour_of(class_id) if style.by_class else _PLAIN if style.initials else None
        rows.append((colour, f"{name}  {count}", _initials(name) if style.initials else ""))
    head = f"{plural(len(marks), 'object') if marks else 'nothing'} {verb}"
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


def _paint_masks(
    pixels: NDArray[np.uint8],
    masks: Sequence[tuple[Piece, Colour, bool]],
    *,
    line: int,
) -> NDArray[np.uint8]:
    """Paint masks over an image, the last on top: a translucent fill, or stripes, and a contour.

    Each has a piece from `cut_mask`, a colour, and whether it is striped. Where masks overlap, the
    fill is that of the uppermost alone, so nothing gets darker; contours, `line` pixels wide and
    inside of their mask, lie over all fills.
    """
    painted = pixels.copy()
    for (piece, top, left), colour, striped in masks:
        area = np.s_[top : top + piece.shape[0], left : left + piece.shape[1]]
        part, share = pixels[area], _HATCH if striped else _FILL
        piece = piece[: part.shape[0], : part.shape[1]]
        if striped:
            rows, columns = np.indices(piece.shape)
            piece = piece & ((rows + top + columns + left) % 12 < 3)
        mixed = part[piece] + (np.array(colour) - part[piece]) * share
        painted[area][piece] = mixed.round().astype(np.uint8)
    for (piece, top, left), colour, _ in masks:
        part = painted[top : top + piece.shape[0], left : left + piece.shape[1]]
        inner = Image.fromarray(np.pad(piece, 1).astype(np.uint8) * 255)
        for _ in range(line):
            inner = inner.filter(ImageFilter.MinFilter(3))
        contour = piece & (np.asarray(inner)[1:-1, 1:-1] == 0)
        part[contour[: part.shape[0], : part.shape[1]]] = colour
    return painted


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
