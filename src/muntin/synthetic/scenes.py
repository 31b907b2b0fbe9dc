# SPDX-License-Identifier: Apache-2.0
"""Generated images of shapes on textured ground, for the demo and the tests.

Only the outline determines the class: colour, texture, light, ground, size and rotation are drawn
from the same distribution for all classes, and other things lie about. Every object has a small
mark near its top, so that its rotation can be seen whatever its symmetry.

Coordinates are (x, y) in pixels, with (0, 0) the outer corner of the first pixel, whose middle is
(0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ConfigError, shorten
from muntin.shapes import Bool, Float, Size, UInt8
from muntin.synthetic.textures import (
    Array,
    contrasting_colour,
    cover,
    paint_ground,
    paint_surface,
    rotate,
)

CLASS_NAMES = ("cross", "disc", "ring", "square", "star", "triangle")
"""The kinds of objects, sorted, so that class folders get the same numbers."""

KEYPOINT_NAMES = ("centre", "top", "right", "bottom", "left")
"""The middle, then where the outline is above, right of, below and left of it when upright."""

_MIN_VISIBLE = 0.6  # of an object, after what covers it
_SHARE_COVERED = 0.35  # of the objects


class SceneObject(NamedTuple):
    """One object of a scene; its mask has no parts that something covers.

    `class_id` is a place in the `classes` of the scene; `keypoints` are x, y and visibility of each
    of `KEYPOINT_NAMES`: 2 seen, 1 covered, 0 outside the image.
    """

    class_id: int
    box_xyxy: tuple[float, float, float, float]
    mask: Bool[np.ndarray, "H W"]
    keypoints: Float[np.ndarray, "P 3"]


class Scene(NamedTuple):
    """An RGB image, and the objects in it from back to front."""

    image: UInt8[np.ndarray, "H W 3"]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pose:
    """Where an object is: centre and radius in pixels, angle in radians, clockwise."""

    x: float
    y: float
    radius: float
    angle: float

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring points of the upright unit object into the image."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = points @ np.array([[cos, sin], [-sin, cos]])
        return turned * self.radius + (self.x, self.y)

    def locate(self, size: Size) -> tuple[Array, Array]:
        """Coordinates of all pixel middles, seen from the upright unit object."""
        dx = (np.arange(size[1], dtype=np.float32) + 0.5 - self.x)[None, :] / self.radius
        dy = (np.arange(size[0], dtype=np.float32) + 0.5 - self.y)[:, None] / self.radius
        return rotate(dx, dy, self.angle)


def make_scene(
    seed: int,
    index: int,
    *,
    size: Size = (96, 96),
    max_objects: int = 1,
    classes: Sequence[str] = CLASS_NAMES,
    max_angle: float = np.pi,
    usual_colours: float = 0.0,
) -> Scene:
    """Make one image, from back to front; it depends on its arguments and nothing else.

    `seed` is the number of the set and `index` that of the image in it; sides have 16 pixels or
    more. There are one to `max_objects` objects, fewer where they do not fit, of any of `classes`,
    turned by at most `max_angle` radians either way. `usual_colours` is the share of objects that
    have a colour usual for their class; the others have any.
    """
    _require_drawable(size, max_objects, classes)
    rng = np.random.default_rng([seed, index])
    canvas = paint_ground(rng, size)
    drawn: list[tuple[int, _Pose, Array]] = []
    for pose in _choose_poses(rng, size, max_objects, max_angle):
        class_id = int(rng.integers(len(classes)))
        alpha = _paint_object(rng, canvas, pose, classes[class_id], usual_colours)
        drawn.append((class_id, pose, alpha))
    bars: Array = np.zeros(size, np.float32)
    for _, pose, _ in drawn:
        if rng.random() < _SHARE_COVERED:
            bar = _choose_bar(rng, pose, size)
            covered = np.maximum(bars, bar)
            if all((covered * a).sum() < (1 - _MIN_VISIBLE) * a.sum() for _, _, a in drawn):
                cover(canvas, bar, paint_surface(rng, size, rng.random(3, np.float32)))
                bars = covered
    objects = []
    hidden = bars
    for class_id, pose, alpha in reversed(drawn):
        mask = (alpha >= 0.5) & (hidden < 0.5)
        if mask.any():
            objects.append(_describe(class_id, pose, classes[class_id], mask, hidden))
        hidden = np.maximum(hidden, alpha)
    return Scene(image=_develop(rng, canvas), objects=tuple(reversed(objects)))


def _require_drawable(size: Size, max_objects: int, classes: Sequence[str]) -> None:
    unknown = [name for name in classes if name not in CLASS_NAMES]
    if unknown or not classes:
        message = (
            f"classes must be some of {', '.join(CLASS_NAMES)}, "
            f"got {shorten(unknown) or 'none'}. Correct the names."
        )
        raise ConfigError(message)
    if min(size) < 16 or max_objects < 1:
        message = (
            f"A scene must have sides of at least 16 pixels and max_objects of at least 1, "
            f"got size={size}, max_objects={max_objects}. Make them larger."
        )
        raise ConfigError(message)


def _choose_poses(
    rng: np.random.Generator, size: Size, max_objects: int, max_angle: float
) -> list[_Pose]:
    wanted = int(rng.integers(1, max_objects + 1))
    short = min(size)
    # With more objects each is smaller, so that they fit without hiding each other.
    largest = short * 0.4 / max(1.0, (0.6 * wanted) ** 0.5)
    poses: list[_Pose] = []
    for _ in range(wanted * 12):
        radius = max(largest * float(rng.uniform(0.5, 1)), 5.5)
        # Up to a tenth of the radius may be outside the image.
        margin = min(radius * 0.9, short / 2)
        pose = _Pose(
            x=float(rng.uniform(margin, size[1] - margin)),
            y=float(rng.uniform(margin, size[0] - margin)),
            radius=radius,
            angle=float(rng.uniform(-max_angle, max_angle)),
        )
        near = (np.hypot(pose.x - p.x, pose.y - p.y) / (radius + p.radius) for p in poses)
        if all(distance > 0.85 for distance in near):
            poses.append(pose)
        if len(poses) == wanted:
            break
    return poses


def _paint_object(
    rng: np.random.Generator, canvas: Array, pose: _Pose, name: str, usual_colours: float
) -> Float[np.ndarray, "H W"]:
    size: Size = (canvas.shape[0], canvas.shape[1])
    x, y = pose.locate(size)
    kind = _KINDS[name]
    distance = kind.outline(x, y)  # in radii, negative inside
    alpha = np.clip(0.5 - distance * pose.radius, 0, 1)
    inside = canvas[alpha > 0.5]
    ground = inside.mean(axis=0) if len(inside) else canvas.mean(axis=(0, 1))
    colour = contrasting_colour(rng, ground)
    if usual_colours and rng.random() < usual_colours:
        colour = np.clip(kind.colour + rng.uniform(-0.12, 0.12, 3), 0, 1).astype(np.float32)
    # A soft shadow, light from the upper left.
    drop = 0.12 * pose.radius
    dark = kind.outline(*replace(pose, x=pose.x + drop, y=pose.y + drop).locate(size))
    canvas *= (1 - 0.45 * np.clip(0.5 - dark * 4, 0, 1))[..., None]
    surface = paint_surface(rng, size, colour)
    rim = np.clip(1 + (distance + 0.1) * 8, 0, 1)[..., None]  # darker towards the outline
    surface = surface * (1 - 0.25 * rim)
    mark_x, mark_y = kind.mark
    mark = np.clip((0.11 - np.hypot(x - mark_x, y - mark_y)) * pose.radius + 0.5, 0, 1)
    bright = 1.0 if colour.mean() < 0.5 else 0.0
    cover(surface, mark, np.full(3, bright, np.float32))
    cover(canvas, alpha, surface)
    return alpha


def _choose_bar(rng: np.random.Generator, pose: _Pose, size: Size) -> Float[np.ndarray, "H W"]:
    """A straight strip across part of the object."""
    x, _ = replace(pose, angle=float(rng.uniform(-np.pi, np.pi))).locate(size)
    middle, half = rng.uniform(0.2, 0.8), rng.uniform(0.06, 0.14)
    return np.clip((half - np.abs(x - middle)) * pose.radius + 0.5, 0, 1)


def _develop(rng: np.random.Generator, canvas: Array) -> UInt8[np.ndarray, "H W 3"]:
    """Uneven light and the noise of a sensor."""
    height, width = canvas.shape[:2]
    angle = rng.uniform(-np.pi, np.pi)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(np.cos(angle))
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    light = np.float32(rng.uniform(0.8, 1.05)) + np.float32(rng.uniform(0, 0.25)) * (across + down)
    noise = rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1, 6))
    return np.clip(canvas * light[..., None] * 255 + noise, 0, 255).astype(np.uint8)


def _describe(
    class_id: int, pose: _Pose, name: str, mask: NDArray[np.bool_], hidden: Array
) -> SceneObject:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    points = pose.place(np.array(((0.0, 0.0), *_KINDS[name].tips), np.float64))
    height, width = mask.shape
    seen = [
        (1 if hidden[int(y), int(x)] >= 0.5 else 2) if 0 <= x < width and 0 <= y < height else 0
        for x, y in points
    ]
    keypoints = np.column_stack([points, seen]).astype(np.float32)
    return SceneObject(class_id=class_id, box_xyxy=box, mask=mask, keypoints=keypoints)


# Outlines: distance from the outline in radii, negative inside, for the upright object; y down.
# Exact at the edges, where it matters for smooth pixels; not everywhere.


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - np.float32(0.92)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - np.float32(0.74)) - np.float32(0.23)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.78)


def _triangle(x: Array, y: Array) -> Array:
    slant = np.abs(x) * np.float32(np.cos(np.pi / 6)) - y * np.float32(0.5)
    return np.maximum(slant, y) - np.float32(0.54)


def _star(x: Array, y: Array) -> Array:
    fifth = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)  # 0 at the upper tip
    angle = np.abs(angle - fifth * np.round(angle / fifth))  # 0 at a tip, fifth/2 in a notch
    radius = np.hypot(x, y)
    along, aside = radius * np.cos(angle), radius * np.sin(angle)
    tip, notch = 1.05, (0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5))
    edge = np.hypot(tip - notch[0], notch[1])
    normal = notch[1] / edge, (tip - notch[0]) / edge
    return ((along - tip) * normal[0] + aside * normal[1]).astype(np.float32)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    upright = np.maximum(x - np.float32(0.3), y - np.float32(0.95))
    return np.minimum(upright, np.maximum(x - np.float32(0.95), y - np.float32(0.3)))


_Point = tuple[float, float]


class _Kind(NamedTuple):
    """An outline, where its tips (top, right, bottom, left) and its mark are, a usual colour."""

    outline: Callable[[Array, Array], Array]
    tips: tuple[_Point, _Point, _Point, _Point]
    mark: _Point
    colour: tuple[float, float, float]


def _around(radius: float) -> tuple[_Point, _Point, _Point, _Point]:
    return ((0.0, -radius), (radius, 0.0), (0.0, radius), (-radius, 0.0))


_TIP_X, _TIP_Y = 1.05 * float(np.sin(0.4 * np.pi)), -1.05 * float(np.cos(0.4 * np.pi))
_STAR_TIPS = ((0.0, -1.05), (_TIP_X, _TIP_Y), (0.0, 0.45), (-_TIP_X, _TIP_Y))
_TRIANGLE_TIPS = ((0.0, -1.08), (0.935, 0.54), (0.0, 0.54), (-0.935, 0.54))
_KINDS = {
    "cross": _Kind(_cross, _around(0.95), (0.0, -0.7), (0.85, 0.2, 0.2)),
    "disc": _Kind(_disc, _around(0.92), (0.0, -0.66), (0.95, 0.85, 0.25)),
    "ring": _Kind(_ring, _around(0.97), (0.0, -0.74), (0.2, 0.45, 0.85)),
    "square": _Kind(_square, _around(0.78), (0.0, -0.54), (0.25, 0.65, 0.35)),
    "star": _Kind(_star, _STAR_TIPS, (0.0, -0.5), (0.9, 0.55, 0.15)),
    "triangle": _Kind(_triangle, _TRIANGLE_TIPS, (0.0, -0.55), (0.65, 0.35, 0.75)),
}
