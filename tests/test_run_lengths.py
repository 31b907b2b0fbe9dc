# SPDX-License-Identifier: Apache-2.0
"""Run lengths are pycocotools', text for text, and lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from muntin.run_lengths import (
    box_of,
    decode_mask,
    encode_mask,
    mask_area,
    shift_mask,
    to_run_lengths,
)

SIZES = [(1, 1), (1, 9), (9, 1), (7, 5), (16, 33), (120, 64)]


def theirs(bitmap: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def random_bitmaps(size, seed=0):
    rng = np.random.default_rng(seed)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        yield rng.random(size) < density
    blocks = np.zeros(size, bool)
    blocks[size[0] // 3 :, : size[1] // 2 + 1] = True
    yield blocks
    yield ~blocks


@pytest.mark.parametrize("size", SIZES)
def test_run_lengths_are_pycocotools(size):
    for bitmap in random_bitmaps(size):
        mask = encode_mask(bitmap)
        assert mask == theirs(bitmap)
        np.testing.assert_array_equal(decode_mask(mask), bitmap)
        assert mask_area(mask) == bitmap.sum()


@pytest.mark.parametrize("size", SIZES)
def test_the_box_of_run_lengths_is_that_of_the_pixels(size):
    for bitmap in random_bitmaps(size):
        rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        tight = (0, 0, 0, 0)
        if len(rows):
            tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert box_of(encode_mask(bitmap), size) == tight


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (3, 0, 0, 4), (0, 2, 5, 0), (1, 1, 1, 1)])
def test_parts_of_a_larger_mask(size, margins):
    above, below, left, right = margins
    for bitmap in random_bitmaps(size, seed=1):
        whole = np.pad(bitmap, ((above, below), (left, right)))
        mask = encode_mask(bitmap, size=whole.shape, top=above, left=left)
        assert mask == theirs(whole)
        assert shift_mask(encode_mask(bitmap), size=whole.shape, top=above, left=left) == mask


@pytest.mark.parametrize("part", [(0, 0), (0, 5), (5, 0)])
def test_an_empty_part_is_an_empty_mask(part):
    mask = encode_mask(np.zeros(part, bool), size=(6, 8), top=2, left=3)
    assert mask == theirs(np.zeros((6, 8), bool))
    assert mask_area(mask) == 0


def test_a_bitmap_that_is_not_contiguous():
    bitmap = np.random.default_rng(2).random((20, 30)) < 0.5
    assert encode_mask(bitmap[::2, ::-3]) == theirs(bitmap[::2, ::-3].copy())
    assert encode_mask(bitmap.T) == theirs(bitmap.T.copy())


def test_every_form_of_a_segmentation():
    bitmap = np.zeros((6, 7), bool)
    bitmap[1:4, 2:5] = True
    mask = encode_mask(bitmap)
    runs, value, count = [], False, 0
    for pixel in bitmap.T.ravel():
        if pixel != value:
            runs, value, count = [*runs, count], pixel, 0
        count += 1
    plain = {"size": [6, 7], "counts": [*runs, count]}
    assert to_run_lengths(plain, (6, 7)) == mask
    assert to_run_lengths(mask, (6, 7)) == mask
    assert to_run_lengths({**mask, "counts": mask["counts"].encode()}, (6, 7)) == mask
    square = [2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]
    assert to_run_lengths([square], (6, 7)) == mask
    adjacent = [0.0, 5.0, 2.0, 5.0, 2.0, 6.0, 0.0, 6.0]
    two = to_run_lengths([square, adjacent], (6, 7))
    assert mask_area(two) == 9 + 2
    assert mask_area(to_run_lengths([square, square], (6, 7))) == 9, "joined, not added"
