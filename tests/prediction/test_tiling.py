# SPDX-License-Identifier: Apache-2.0
"""Tiles cover an image, and what several views found is told once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from muntin.errors import ConfigError
from muntin.heads.detector import SelectConfig
from muntin.prediction.tiling import (
    Region,
    cut_tiles,
    merge_views,
    shift_detections,
    unflip_detections,
)
from muntin.results import Detections
from muntin.run_lengths import decode_mask, encode_mask

SELECT = SelectConfig()


def found(boxes, scores=None, class_ids=None, size=(200, 300), *, masks=False) -> Detections:
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else np.array(scores, np.float64)
    ids = np.zeros(len(boxes), np.int64) if class_ids is None else np.array(class_ids)
    return Detections(
        path="p", size=size, boxes=boxes, class_ids=ids, scores=scores,
        class_names=tuple(f"c{i}" for i in ids),
        masks=tuple(fill(box, size) for box in boxes) if masks else None,
    )  # fmt: skip


def fill(box, size):
    bitmap = np.zeros(size, bool)
    left, top, right, bottom = (round(edge) for edge in box)
    bitmap[top:bottom, left:right] = True
    return encode_mask(bitmap)


@pytest.mark.parametrize("size", [(100, 100), (101, 399), (64, 1000), (700, 33), (1500, 1501)])
@pytest.mark.parametrize("tile", [(64, 64), (100, 300), (512, 512)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_cover_the_image(size, tile, overlap):
    windows = cut_tiles(size, tile, overlap=overlap)
    seen = np.zeros(size, bool)
    for window in windows:
        assert window.top >= 0
        assert window.left >= 0
        assert window.top + window.height <= size[0]
        assert window.left + window.width <= size[1]
        assert (window.height, window.width) == (min(size[0], tile[0]), min(size[1], tile[1]))
        seen[window.top : window.top + window.height, window.left : window.left + window.width] = 1
    assert seen.all()
    assert len(set(windows)) == len(windows)
    lefts = sorted({window.left for window in windows})
    for one, other in itertools.pairwise(lefts):
        assert windows[0].width - (other - one) >= int(overlap * windows[0].width) - 1


def test_a_image_smaller_than_a_tile_is_one():
    assert cut_tiles((40, 50), (100, 100)) == [Region(0, 0, 40, 50)]
    assert cut_tiles((100, 100), (100, 100)) == [Region(0, 0, 100, 100)]
    with pytest.raises(ConfigError, match=r"tile.*32.*16"):
        cut_tiles((100, 100), (16, 16))
    with pytest.raises(ConfigError, match=r"overlap.*0\.95"):
        cut_tiles((100, 100), (64, 64), overlap=0.95)


def test_regions_crop_their_pixels():
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
    assert (Region(3, 5, 7, 9).cut(pixels) == pixels[3:10, 5:14]).all()


def test_placing():
    part = found([[1, 2, 11, 12]], size=(50, 60), masks=True)
    placed = shift_detections(part, Region(30, 40, 50, 60), (200, 300))
    assert placed.size == (200, 300)
    assert placed.boxes.tolist() == [[41, 32, 51, 42]]
    assert placed.masks == part.masks, "moved when it is known which are told"
    (merged,) = merge_views([placed], [Region(30, 40, 50, 60)], SELECT, 100).masks
    assert merged == fill([41, 32, 51, 42], (200, 300))


def test_mirroring_twice_is_the_same():
    one = found([[1, 2, 11, 12], [250.5, 0, 300, 7.25]], masks=True)
    other = unflip_detections(one)
    assert other.boxes.tolist() == [[289, 2, 299, 12], [0, 0, 49.5, 7.25]]
    assert decode_mask(other.masks[0])[2:12, 289:299].all()
    again = unflip_detections(other)
    np.testing.assert_allclose(again.boxes, one.boxes)
    assert again.masks == one.masks


WHOLE = Region(0, 0, 200, 300)
LEFT, RIGHT = Region(0, 0, 200, 160), Region(0, 140, 200, 160)


def test_duplicates_of_two_views_are_merged():
    views = [
        found([[10, 10, 50, 50]], [0.7], masks=True),
        found([[11, 10, 50, 51]], [0.9], masks=True),
    ]
    merged = merge_views(views, [WHOLE, LEFT], SELECT, 100)
    assert merged.boxes.tolist() == [[11, 10, 50, 51]]
    assert merged.scores.tolist() == pytest.approx([0.9])
    assert merged.masks == views[1].masks
    views = [found([[10, 10, 50, 50]], [0.7]), found([[11, 10, 50, 51]], [0.9], [1])]
    assert len(merge_views(views, [WHOLE, LEFT], SELECT, 100)) == 2, "of two classes"


def test_pieces_of_larger_things_are_dropped():
    whole = found([[120, 50, 200, 90]], [0.6])
    left, right = found([[120, 50, 160, 90]], [0.95]), found([[140, 50, 200, 90]], [0.9])
    merged = merge_views([whole, left, right], [WHOLE, LEFT, RIGHT], SELECT, 100)
    assert merged.boxes.tolist() == [[120, 50, 200, 90]]
    doubtful = found([[100, 40, 240, 120]], [0.06])
    merged = merge_views([doubtful, left], [WHOLE, LEFT], SELECT, 100)
    assert merged.scores.tolist() == pytest.approx([0.95, 0.06]), "what is unsure drops nothing"
    alone = merge_views([found([]), left], [WHOLE, LEFT], SELECT, 100)
    assert len(alone) == 1, "a piece that nothing covers is better than nothing"


def test_neighbours_stay():
    beside = [[20, 20, 40, 60], [41, 20, 61, 60], [62, 20, 82, 60]]
    merged = merge_views([found(beside), found(beside)], [WHOLE, LEFT], SELECT, 100)
    assert len(merged) == 3
    inside = found([[20, 20, 120, 120], [50, 50, 70, 70]])
    assert len(merge_views([inside, found([])], [WHOLE, LEFT], SELECT, 100)) == 2, (
        "not at a tile's edge"
    )
    # One at the edge of a tile, inside something of another class.
    edge = found([[130, 50, 160, 90]], [0.8], [1])
    big = found([[100, 30, 200, 120]], [0.9], [0])
    assert len(merge_views([big, edge], [WHOLE, LEFT], SELECT, 100)) == 2


def test_the_edge_of_the_image_makes_no_pieces():
    big, small = found([[0, 0, 100, 100]], [0.9]), found([[0, 0, 40, 40]], [0.8])
    merged = merge_views([big, small], [WHOLE, LEFT], SELECT, 100)
    assert len(merged) == 2


@pytest.mark.parametrize("suppression", ["hard", "soft"])
def test_order_and_number(suppression):
    boxes = [[i * 20, 5, i * 20 + 15, 30] for i in range(10)]
    views = [found(boxes[:5]), found(boxes[5:])]
    select = SelectConfig(max_detections=4, suppression=suppression)
    merged = merge_views(views, [WHOLE, WHOLE], select, select.max_detections)
    assert len(merged) == 4
    assert (np.diff(merged.scores) <= 0).all()
    nothing = merge_views([found([]), found([])], [WHOLE, LEFT], select, select.max_detections)
    assert len(nothing) == 0


def test_classes_that_suppress_each_other():
    views = [found([[10, 10, 50, 50]], [0.7], [0]), found([[10, 10, 50, 50]], [0.9], [1])]
    select = SelectConfig(class_agnostic=True)
    merged = merge_views(views, [WHOLE, LEFT], select, select.max_detections)
    assert merged.class_names == ("c1",)
