# SPDX-License-Identifier: Apache-2.0
"""Masks as polygons and packed runs, compared with what reads and fills them by other means."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from muntin.run_lengths import encode_mask
from muntin.serving.region_encoding import pack_mask, trace_mask


def unpack(data: list[int]) -> np.ndarray:
    """Read packed runs, by their published description, one bit after the other."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def read(width: int) -> int:
        nonlocal place
        place += width
        return int(bits[place - width : place], 2)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < total:
        is_run = read(1)
        count = read(widths[read(2)]) + 1
        words += [read(word)] * count if is_run else [read(word) for _ in range(count)]
    assert len(bits) - place < 8
    return np.array(words)


def shapes() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:61, :83]
    disc = np.hypot(y - 30, x - 40) < 22
    two = np.zeros((40, 50), bool)
    two[2:10, 3:20] = two[25:39, 30:50] = True
    corner = np.zeros((6, 6), bool)
    corner[1:3, 1:3] = corner[3:5, 3:5] = True
    line = np.zeros((9, 30), bool)
    line[4, 2:29] = True
    return {
        "disc": disc, "ring": disc & (np.hypot(y - 30, x - 40) > 9), "two": two, "line": line,
        "full": np.ones((7, 5), bool), "empty": np.zeros((7, 5), bool), "corner": corner,
        "one": np.eye(1, 40, 39, dtype=bool),
        "noise": np.random.default_rng(3).random((40, 33)) > 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("name", shapes())
def test_packed_masks_are_read_back(name: str) -> None:
    mask = shapes()[name]
    words = unpack(pack_mask(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(words, np.repeat(255 * mask[..., None], 4, 2))


def test_long_runs_are_cut() -> None:
    mask = np.zeros((300, 201), bool)
    mask[100:250] = True
    data = pack_mask(mask)
    assert len(data) < 40
    assert (unpack(data)[::4].reshape(mask.shape) == 255 * mask).all()


def fill(polygons: list[list[list[float]]], height: int, width: int) -> np.ndarray:
    """Pixels whose centres lie in polygons, of x and y in percent; drawn 8 times as large."""
    large = Image.new("1", (8 * width, 8 * height))
    for polygon in polygons:
        points = [(x / 100 * 8 * width, y / 100 * 8 * height) for x, y in polygon]
        ImageDraw.Draw(large).polygon(points, fill=1)
    return np.asarray(large)[4::8, 4::8]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize(("name", "parts"), [("disc", 1), ("two", 2), ("full", 1), ("corner", 2)])
def test_edges_follow_the_mask(name: str, parts: int) -> None:
    mask = shapes()[name]
    traced = trace_mask(encode_mask(mask))
    assert len(traced) == parts
    height, width = mask.shape
    percent = [(part * 100 / (width, height)).tolist() for part in traced]
    assert iou(fill(percent, height, width), mask) > 0.93
    # Far fewer corners than pixels along the edge.
    assert max(map(len, traced)) < 40


def test_edges_of_what_is_odd() -> None:
    assert trace_mask(encode_mask(shapes()["empty"])) == []
    (line,) = trace_mask(encode_mask(shapes()["line"]))
    assert line.min(0).tolist() == [2, 4]
    assert line.max(0).tolist() == [29, 5]
    (ring,) = trace_mask(encode_mask(shapes()["ring"]))  # the hole is filled
    (disc,) = trace_mask(encode_mask(shapes()["disc"]))
    np.testing.assert_array_equal(ring, disc)
    sizes = [len(part) for part in trace_mask(encode_mask(shapes()["noise"]))]
    assert 0 < len(sizes) <= 100


def test_the_edge_of_a_large_noisy_mask_takes_little() -> None:
    mask = np.random.default_rng(0).random((1500, 1500)) > 0.5
    mask[200:900, 300:1200] = True
    parts = trace_mask(encode_mask(mask))
    assert 0 < len(parts) <= 100
    assert parts[0].min() >= 0
    assert parts[0].max() <= 1500 + 8
