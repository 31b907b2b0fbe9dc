# SPDX-License-Identifier: Apache-2.0
"""Mosaics and pasted objects: pixels, boxes and masks move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.data.detection import list_detect
from muntin.data.loading import TrainLoader
from muntin.data.mixing import join_mosaic, paste_objects, split_canvas
from muntin.data.transforms import Preprocessing, Sample
from muntin.synthetic.datasets import write_coco
from muntin.targets import BoxTargets


def image(size, boxes, *, value, masks=True, ignored=()):
    """A sample whose objects are rectangles of the colour `value` + number, with their masks."""
    pixels = torch.full((3, *size), value, dtype=torch.uint8)
    layers = torch.zeros(1 if masks else 0, *size, dtype=torch.int32)
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[:, top:bottom, left:right] = value + 1 + number
        layers[:1, top:bottom, left:right] = number + 1
    target = BoxTargets(
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        class_ids=torch.arange(len(boxes)),
        ignored=torch.tensor(ignored, dtype=torch.float32).view(-1, 4),
        layers=layers,
        layer_of=torch.full((len(boxes),), 0 if masks else -1),
    )
    return Sample(pixels, size, target)


def seen_box(mask):
    rows, columns = torch.where(mask)
    return [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


class Always(np.random.Generator):
    """Draws that choose every object."""

    def random(self, size=None):
        return np.zeros(size)


ALWAYS = Always(np.random.PCG64(0))


@pytest.mark.parametrize("size", [(40, 64), (64, 64), (2, 3), (33, 7)])
def test_parts_cover_the_canvas_once(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        seen = np.zeros(size, int)
        for top, left, high, wide in split_canvas(size, rng):
            assert high > 0
            assert wide > 0
            seen[top : top + high, left : left + wide] += 1
        assert (seen == 1).all()


def test_a_mosaic_keeps_values_between_the_256_levels():
    parts = [(0, 0, 2, 2), (0, 2, 2, 2), (2, 0, 2, 2), (2, 2, 2, 2)]
    samples = [image((2, 2), [], value=0) for _ in parts]
    samples = [
        each._replace(pixels=torch.full((3, 2, 2), n + 0.25)) for n, each in enumerate(samples)
    ]
    joined = join_mosaic(samples, parts, (4, 4), (7, 7, 7))
    assert joined.pixels.dtype == torch.float32
    assert joined.pixels[0, ::2, ::2].tolist() == [[0.25, 1.25], [2.25, 3.25]]


def test_a_mosaic_meets_at_the_common_corner():
    parts = [(0, 0, 20, 24), (0, 24, 20, 40), (20, 0, 20, 24), (20, 24, 20, 40)]
    sizes = [(20, 24), (10, 40), (20, 12), (5, 6)]  # some smaller than their part
    samples = [
        image(size, [(1, 2, 5, 5)], value=10 * (n + 1), ignored=[(0, 0, 2, 2)] * (n == 3))
        for n, size in enumerate(sizes)
    ]
    joined = join_mosaic(samples, parts, (40, 64), (7, 7, 7))
    assert joined.pixels.shape == (3, 40, 64)
    target = joined.target
    # By hand: corners at (0, 0), (24, 10), (12, 20) and (24, 20).
    assert target.boxes.tolist() == [
        [1, 2, 5, 5], [25, 12, 29, 15], [13, 22, 17, 25], [25, 22, 29, 25]
    ]  # fmt: skip
    assert target.ignored.tolist() == [[24, 20, 26, 22]]
    assert target.class_ids.tolist() == [0, 0, 0, 0]
    assert target.layers.shape == (1, 40, 64)  # masks of parts share layers
    for number in range(4):
        mask = target.layers[target.layer_of[number]] == number + 1
        assert seen_box(mask) == target.boxes[number].tolist()
        assert (joined.pixels[0][mask] == 10 * (number + 1) + 1).all()
    assert int(joined.pixels[0, 39, 63]) == 7


def test_a_mosaic_keeps_values_of_deep_images():
    parts = [(0, 0, 4, 4), (0, 4, 4, 4), (4, 0, 4, 4), (4, 4, 4, 4)]
    deep = [
        sample._replace(pixels=sample.pixels + 0.125)
        for sample in (image((4, 4), [], value=100 + n) for n in range(4))
    ]
    joined = join_mosaic(deep, parts, (8, 8), (0, 0, 0))
    assert joined.pixels[0, ::4, ::4].tolist() == [[100.125, 101.125], [102.125, 103.125]]


def test_pasting_hides_what_lies_below():
    below = image((30, 40), [(0, 0, 10, 10), (20, 20, 30, 30), (31, 0, 33, 2)], value=10)
    above = image((20, 35), [(5, 0, 15, 10), (30, 0, 35, 3)], value=100)
    found = paste_objects(below, above, ALWAYS)
    target = found.target
    # The first object keeps its left half; the third one is covered as a whole.
    assert target.boxes.tolist() == [
        [0, 0, 5, 10],
        [20, 20, 30, 30],
        [5, 0, 15, 10],
        [30, 0, 35, 3],
    ]
    assert target.class_ids.tolist() == [0, 1, 0, 1]
    for number, color in enumerate((11, 12, 101, 102)):
        mask = target.layers[target.layer_of[number]] == number + 1
        assert seen_box(mask) == target.boxes[number].tolist()
        assert (found.pixels[0][mask] == color).all()
    assert int(below.pixels[0, 0, 5]) == 11  # the cached image is as before


def test_what_lies_beyond_the_base_is_not_pasted():
    below = image((20, 20), [], value=10)
    above = image((20, 60), [(10, 0, 30, 10), (17, 0, 57, 4), (40, 0, 50, 5)], value=100)
    target = paste_objects(below, above, ALWAYS).target
    # Half of the first is inside; of the second less than a quarter, of the third nothing.
    assert target.boxes.tolist() == [[10, 0, 20, 10]]
    assert target.class_ids.tolist() == [0]


def test_objects_without_masks_are_never_pasted_and_never_hidden():
    below = image((20, 20), [(0, 0, 8, 8)], value=10, masks=False)
    above = image((20, 20), [(0, 0, 10, 10)], value=100)
    assert paste_objects(below, above, ALWAYS).target.boxes.tolist() == [
        [0, 0, 8, 8], [0, 0, 10, 10]
    ]  # fmt: skip
    found = paste_objects(above, below, ALWAYS)
    assert found.pixels.equal(above.pixels)
    assert found.target.boxes.tolist() == [[0, 0, 10, 10]]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data = write_coco(tmp_path_factory.mktemp("mixing"), num_train=6, num_val=0, size=(48, 64))
    pre = Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, fit="letterbox")
    listing = list_detect(data, masks=True).train
    return ImageCache(listing, pre, DataConfig(), training=True)


@pytest.mark.parametrize("chances", [{"mosaic": 1.0}, {"paste": 1.0}, {"mosaic": 0.5, "paste": 1}])
def test_mixing_depends_on_the_place_of_an_image_alone(store, chances):
    augment = DetectionAugmentConfig(scale=(0.5, 2.0), **chances)

    def epoch(mixed, size=(64, 64), batch=2):
        loader = TrainLoader(store, augment, batch_size=batch, seed=3)
        return {
            int(index): (pixels[:, : sides[0], : sides[1]], target)
            for rows in loader.batches(1, 0, size, mixed=mixed)
            for index, pixels, sides, target in zip(
                rows.indices, rows.images, rows.sizes, rows.targets, strict=True
            )
        }

    once, again, plain = epoch(True), epoch(True, batch=3), epoch(False)
    assert any(
        once[i][0].shape != plain[i][0].shape or once[i][0].ne(plain[i][0]).any() for i in once
    )
    for index, (pixels, target) in once.items():
        assert pixels.equal(again[index][0])
        assert target.boxes.equal(again[index][1].boxes)
        assert len(target.boxes) == len(target.class_ids) == len(target.layer_of)
        numbers = target.layers.unique()
        assert int(numbers.max()) <= len(target.boxes)
        for number, box in enumerate(target.boxes):
            mask = target.layers[target.layer_of[number]] == number + 1
            assert (torch.tensor(seen_box(mask)) - box).abs().max() <= 2.5
        limits = torch.tensor([pixels.shape[2], pixels.shape[1]] * 2)
        assert (target.boxes >= 0).all()
        assert (target.boxes <= limits).all()


def test_the_last_part_of_a_training_is_not_mixed():
    assert DetectionAugmentConfig(mosaic=0.5, mixes_until=0.7).mixed_part == 0.7
    assert DetectionAugmentConfig(mixes_until=0.7).mixed_part == 0.0
