# SPDX-License-Identifier: Apache-2.0
"""Colours, grounds and surfaces of generated scenes: arrays in [0, 1], drawn with a given rng."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import Float, Size

Array = NDArray[np.float32]


def rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates of points along and aside of an axis at an angle."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def cover(
    canvas: Float[np.ndarray, "H W C"], alpha: Float[np.ndarray, "H W"], with_what: Array
) -> None:
    """Lay a colour or a surface over the canvas, in place, weighted by alpha."""
    canvas += alpha[..., None] * (with_what - canvas)


def contrasting_colour(
    rng: np.random.Generator, ground: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """Draw a colour that differs from the background: the first far enough, or the farthest."""
    colours = rng.random((8, 3), np.float32)
    weights = np.array((0.3, 0.59, 0.11), np.float32)  # of red, green and blue in brightness
    brightness = np.abs((colours - ground) @ weights)
    far = np.sqrt(((colours - ground) ** 2).mean(axis=1)) + brightness
    enough = np.flatnonzero(far > 0.55)
    return colours[enough[0] if len(enough) else int(far.argmax())]


def paint_ground(rng: np.random.Generator, size: Size) -> Float[np.ndarray, "H W 3"]:
    """Draw a ground of two or three colours, with things lying about on it."""
    colours = rng.random((3, 3), np.float32)
    colours = colours.mean() + (colours - colours.mean()) * np.float32(rng.uniform(0.4, 0.9))
    coarse = _noise(rng, size, cells=int(rng.integers(2, 6)))
    share = coarse if rng.random() < 0.5 else _pattern(rng, size)
    canvas = colours[0] + share[..., None] * (colours[1] - colours[0])
    fine = _noise(rng, size, cells=int(rng.integers(6, 16)))
    cover(canvas, np.float32(rng.uniform(0.1, 0.6)) * fine, colours[2])
    for _ in range(int(rng.integers(2, 8))):
        _drop_litter(rng, canvas)
    return np.clip(canvas, 0, 1)


def paint_surface(
    rng: np.random.Generator, size: Size, colour: Float[np.ndarray, " C"]
) -> Float[np.ndarray, "H W 3"]:
    """Draw a surface around a colour: plain, mottled or patterned."""
    kind = rng.random()
    if kind < 0.3:
        return np.broadcast_to(colour, (*size, 3)).copy()
    mottled = kind < 0.65
    share = _noise(rng, size, cells=int(rng.integers(3, 12))) if mottled else _pattern(rng, size)
    other = np.clip(colour + rng.uniform(-0.35, 0.35, 3).astype(np.float32), 0, 1)
    return colour + share[..., None] * (other - colour)


def _pattern(rng: np.random.Generator, size: Size) -> Float[np.ndarray, "H W"]:
    """A gradient, stripes or a chequered pattern, at any angle."""
    angle = rng.uniform(-np.pi, np.pi)
    across = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[None, :]
    ratio = np.float32(size[0] / size[1])
    down = np.linspace(-0.5, 0.5, size[0], dtype=np.float32)[:, None] * ratio
    along, aside = rotate(across, down, angle)
    kind = rng.integers(3)
    if kind == 0:
        return np.clip(along + np.float32(0.5), 0, 1)
    waves = np.float32(2 * np.pi * rng.uniform(3, 10))
    phase = np.float32(rng.uniform(0, 2 * np.pi))
    hard = np.float32(rng.uniform(0.6, 4))
    value = np.sin(along * waves + phase)
    if kind == 2:
        value = value * np.sin(aside * waves)
    return np.clip(value * hard * np.float32(0.5) + np.float32(0.5), 0, 1)


def _noise(rng: np.random.Generator, size: Size, *, cells: int) -> Float[np.ndarray, "H W"]:
    """Smooth noise: a small random grid, stretched."""
    grid = rng.random((cells + 1, cells + 1), np.float32)
    rows, columns = _stretch(size[0], cells), _stretch(size[1], cells)
    return rows @ grid @ columns.T


def _stretch(length: int, cells: int) -> Float[np.ndarray, "length cells"]:
    """Weights that read `length` values, smoothly, off `cells` + 1 grid values."""
    at = np.linspace(0, cells, length, dtype=np.float32)
    near = np.clip(1 - np.abs(at[:, None] - np.arange(cells + 1, dtype=np.float32)), 0, 1)
    return near * near * (3 - 2 * near)


def _drop_litter(rng: np.random.Generator, canvas: Float[np.ndarray, "H W 3"]) -> None:
    """Draw one line or lopsided blot, in place, nothing that has the outline of a class."""
    height, width = canvas.shape[:2]
    short = min(height, width)
    x = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5 - rng.uniform(0, width))
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - rng.uniform(0, height))
    along, aside = rotate(x, y, rng.uniform(-np.pi, np.pi))
    if rng.random() < 0.6:
        half, thick = short * rng.uniform(0.08, 0.35), short * rng.uniform(0.006, 0.025)
        beyond = np.maximum(np.abs(along) - np.float32(half), 0)
        bent = aside + along * along * np.float32(rng.uniform(-0.5, 0.5) / short)
        distance = np.hypot(beyond, bent) - np.float32(thick)
    else:
        turn = np.arctan2(aside, along)
        wobble = 1 + 0.35 * np.sin(turn * 2 + 1) + 0.2 * np.sin(turn * 3)
        radius = np.float32(short * rng.uniform(0.03, 0.09))
        distance = np.hypot(along * np.float32(0.6), aside) - radius * wobble.astype(np.float32)
    strength = np.float32(rng.uniform(0.4, 0.9))
    cover(canvas, strength * np.clip(0.5 - distance, 0, 1), rng.random(3, np.float32))
