# SPDX-License-Identifier: Apache-2.0
"""Tags of objects: beside what is small, with a thin line to it where they are further away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.fonts import measure_text
from muntin.drawing.layout import HALO, draw_tag
from muntin.drawing.style import Colour

Place = tuple[int, int, int, int]  # left, top, right, bottom, the last two included

_SMALL = 3  # heights of a tag: the shorter side of an object that no tag may cover
_STEPS = (1, 2, 4, 7)  # heights of a tag: distances of those with a line


@dataclass(frozen=True, slots=True)
class Tag:
    """The text of an object, and the place of the object in the drawing."""

    place: Place
    text: str
    colour: Colour


def draw_tags(image: Image.Image, tags: Sequence[Tag], *, size: int, lines: bool = True) -> int:
    """Draw tags into an image, the first ones with the first choice of places.

    A tag never covers another, nor an object of less than three times its height. Letters are
    `size` pixels high. Without `lines`, a tag must touch its object.

    Returns:
        How many tags were left out, because they had no room.
    """
    tags = [replace(tag, text=_fit_text(tag.text, size, image.width)) for tag in tags]
    spots = _arrange(tags, image.size, size, lines=lines)
    pen = ImageDraw.Draw(image)
    drawn = [(tag, spot) for tag, spot in zip(tags, spots, strict=True) if spot is not None]
    for tag, spot in drawn:
        _draw_line(pen, tag, spot)
    for tag, spot in drawn:
        draw_tag(pen, spot, tag.text, tag.colour, size=size)
    return len(tags) - len(drawn)


def _arrange(
    tags: Sequence[Tag], sides: tuple[int, int], size: int, *, lines: bool
) -> list[Place | None]:
    """Choose the place of each tag, None where there is no room."""
    high = round(size * 1.3)
    places = np.array([tag.place for tag in tags], np.int64).reshape(-1, 4)
    shorter = (places[:, 2:] - places[:, :2]).min(axis=1) + 1
    taken = places[shorter < _SMALL * high].tolist()
    spots: list[Place | None] = []
    for number, tag in enumerate(tags):
        wide = round(measure_text(tag.text, size)) + 6
        found = _candidates(tag.place, wide, high, sides, lines=lines)
        free = found[_covered(found, np.array(taken, np.int64).reshape(-1, 4)).sum(axis=1) == 0]
        if not len(free):
            spots.append(None)
            continue
        # The first unless it hides much of others: close to the object, and rather above it.
        hidden = _covered(free, np.delete(places, number, axis=0)).sum(axis=1) / (wide * high)
        cost = 0.2 * hidden + 0.05 * np.arange(len(free))
        left, top, right, bottom = free[int(cost.argmin())].tolist()
        spots.append((left, top, right, bottom))
        taken.append([left, top, right, bottom])
    return spots


def _candidates(
    place: Place, wide: int, high: int, sides: tuple[int, int], *, lines: bool
) -> NDArray[np.int64]:
    """Possible places, (N, 4), best first: at the object, inside a large one, further away."""
    left, top, right, bottom = place
    starts = [(left, top - high), (right + 1 - wide, top - high)]
    if right + 1 - left >= _SMALL * high and bottom + 1 - top >= _SMALL * high:
        starts += [(left, top), (right + 1 - wide, top)]
    starts += [(left, bottom + 1), (right + 1 - wide, bottom + 1), (right + 1, top)]
    starts += [(left - wide, top), (right + 1, bottom + 1 - high), (left - wide, bottom + 1 - high)]
    middle_x, middle_y = (left + right - wide) // 2, (top + bottom - high) // 2
    for step in _STEPS if lines else ():
        gap = step * high
        columns = (left - gap - wide, middle_x, right + gap)
        rows = (top - gap - high, middle_y, bottom + gap)
        starts += [(x, y) for y in rows for x in columns if (x, y) != (middle_x, middle_y)]
    corners = np.clip(np.array(starts), 0, np.maximum(np.array(sides) - (wide, high), 0))
    return np.concatenate([corners, np.add(corners, (wide - 1, high - 1))], axis=1)


def _covered(spots: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels that each of (N, 4) spots shares with each of (M, 4) places."""
    first = np.maximum(spots[:, None, :2], places[None, :, :2])
    last = np.minimum(spots[:, None, 2:], places[None, :, 2:])
    return np.clip(last - first + 1, 0, None).prod(axis=2)


def _draw_line(pen: ImageDraw.ImageDraw, tag: Tag, spot: Place) -> None:
    """Join a tag to its object, where they do not touch."""
    ends = []
    for axis in (0, 1):
        first, last = tag.place[axis], tag.place[axis + 2]
        middle = (max(first, spot[axis]) + min(last, spot[axis + 2])) // 2
        ends.append((min(max(middle, first), last), min(max(middle, spot[axis]), spot[axis + 2])))
    (from_x, to_x), (from_y, to_y) = ends
    if max(abs(from_x - to_x), abs(from_y - to_y)) > 1:
        line = (from_x, from_y, to_x, to_y)
        pen.line(line, fill=HALO, width=4)
        pen.line(line, fill=tag.colour, width=2)


def _fit_text(text: str, size: int, width: int) -> str:
    while len(text) > 1 and measure_text(text, size) + 6 > width:
        text = text[:-1]
    return text
