# SPDX-License-Identifier: Apache-2.0
"""Batches of images of several sizes, and what must not depend on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from muntin.data.batches import (
    Batch,
    evaluation_batch,
    pad_images,
    padded_size,
    split_by_size,
)
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.data.detection import list_detect
from muntin.data.loading import EvalLoader, Processes, TrainLoader, gather_shapes
from muntin.data.transforms import Preprocessing, normalise
from muntin.prediction.predictor import Predictor
from muntin.samples import Entry, Listing
from muntin.scoring.evaluator import run_network
from muntin.synthetic.datasets import write_coco
from muntin.tasks.task_table import find_task
from tests.data.scenes import targets_of
from tests.detectors import mixed_sizes, tiny_detector

PRE = Preprocessing(
    img_size=(64, 96), mean=(0.5,) * 3, std=(0.25,) * 3, fit="letterbox", interpolation="bilinear"
)


def batch_of(sizes) -> Batch:
    images = [
        torch.full((3, *size), number + 1, dtype=torch.uint8) for number, size in enumerate(sizes)
    ]
    return Batch(
        images=pad_images(images),
        sizes=torch.tensor(sizes),
        originals=torch.tensor(sizes) * 2,
        indices=torch.arange(len(sizes)),
        weights=torch.ones(len(sizes)),
        num_real=len(sizes),
        targets=tuple(targets_of([np.ones(size, bool)]) for size in sizes),
    )


def test_padding():
    images = pad_images([torch.ones(3, 20, 70).byte(), torch.ones(3, 64, 33).byte()])
    assert images.shape == (2, 3, 64, 96)
    assert images[0].sum() == 3 * 20 * 70
    assert images[0, :, :20, :70].eq(1).all()
    assert images[1, :, :64, :33].eq(1).all()
    assert padded_size(torch.zeros(3, 33, 64).byte()) == (64, 64)
    assert padded_size(torch.zeros(3, 1, 1).byte()) == (32, 32)


def test_padding_is_0_after_normalising():
    images = torch.randint(1, 255, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[20, 70], [64, 96]])
    values = normalise(images, PRE, sizes)
    assert values[0, :, 20:].eq(0).all()
    assert values[0, :, :, 70:].eq(0).all()
    whole = normalise(images, PRE)
    assert values[0, :, :20, :70].equal(whole[0, :, :20, :70])
    assert values[1].equal(whole[1])


def test_parts_of_one_size():
    batch = batch_of([(40, 60), (90, 40), (33, 64), (64, 96), (96, 33)])
    parts = list(split_by_size(batch))
    assert [part.indices.tolist() for part in parts] == [[0, 2], [1, 4], [3]]
    assert [tuple(part.images.shape[2:]) for part in parts] == [(64, 64), (96, 64), (64, 96)]


def test_selecting_keeps_what_belongs_together():
    batch = batch_of([(40, 60), (90, 40), (33, 64)])
    part = batch.select(torch.tensor([2, 0]))
    assert part.images.shape == (2, 3, 64, 64)
    assert part.sizes.tolist() == [[33, 64], [40, 60]]
    assert part.originals.tolist() == [[66, 128], [80, 120]]
    assert [one.layers.shape[1:] for one in part.targets] == [(33, 64), (40, 60)]
    assert part.images[0].unique().tolist() == [0, 3]
    nothing = batch.select(torch.zeros(0).long())
    assert len(nothing.images) == 0
    assert nothing.targets == ()
    single = replace(batch, targets=None)
    assert [part.indices.tolist() for part in split_by_size(single)] == [[0, 1, 2]]


def test_large_images_are_few_at_a_time():
    large = replace(PRE, img_size=(800, 1333))
    assert evaluation_batch(large, 64) == 1
    assert evaluation_batch(PRE, 64) == 16
    assert evaluation_batch(replace(PRE, fit="center_crop", img_size=(64, 64)), 64) == 64
    assert evaluation_batch(replace(PRE, fit="center_crop", img_size=(448, 448)), 64) == 20


def listing_of(sizes) -> Listing:
    entries = tuple(Entry(path=str(i), size=size) for i, size in enumerate(sizes))
    return Listing(source="s", entries=entries, class_names=("a",))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [1, 9, 150])
def test_gathering_shapes_keeps_every_image_once(batch_size, count):
    rng = np.random.default_rng(0)
    listing = listing_of([(100, int(rng.choice([60, 100, 150]))) for _ in range(count)])
    order = rng.permutation(count)
    gathered = gather_shapes(order, listing, batch_size)
    assert sorted(gathered.tolist()) == list(range(count))
    assert gather_shapes(order, listing, batch_size).tolist() == gathered.tolist()
    starts = range(0, count, batch_size)
    mixed = [
        len({listing.entries[i].size for i in places[s : s + batch_size]})
        for places in (order, gathered)
        for s in starts
    ]
    before, after = sum(mixed[: len(starts)]), sum(mixed[len(starts) :])
    assert after <= before
    if count == 150 and batch_size == 4:
        assert after < 0.65 * before
        other = gather_shapes(rng.permutation(count), listing, batch_size)
        assert other.tolist() != gathered.tolist()


def test_gathering_leaves_sets_of_one_or_of_unknown_shape_alone():
    order = np.random.default_rng(0).permutation(20)
    assert gather_shapes(order, listing_of([(50, 70)] * 20), 4) is order
    assert gather_shapes(order, listing_of([None] * 20), 4) is order


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mixed_sizes(tmp_path_factory.mktemp("data") / "mixed", count=9)


@pytest.fixture(scope="module")
def listing(data):
    return list_detect(data, masks=True).train


def test_every_epoch_shows_every_image_once_in_another_way(listing):
    store = ImageCache(listing, PRE, DataConfig())
    config = DetectionAugmentConfig(scale=(0.6, 1.6), jitter=0.3)
    loader = TrainLoader(store, config, batch_size=4, seed=3)
    assert not loader.whole_batches
    epochs = [list(loader.batches(epoch, 0, PRE.img_size)) for epoch in (0, 0, 1)]
    for batches in epochs:
        seen = torch.cat([batch.indices for batch in batches])
        assert sorted(seen.tolist()) == list(range(len(listing)))
        for batch in batches:
            assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
            for size, target in zip(batch.sizes.tolist(), batch.targets, strict=True):
                assert list(target.layers.shape[1:]) == size
    for one, other in zip(epochs[0], epochs[1], strict=True):
        assert one.images.equal(other.images)
        for left, right in zip(one.targets, other.targets, strict=True):
            assert all(a.equal(b) for a, b in zip(left[:5], right[:5], strict=True))
    assert any(
        one.images.shape != other.images.shape or not one.images.equal(other.images)
        for one, other in zip(epochs[0], epochs[2], strict=True)
    )
    later = list(loader.batches(0, 1, PRE.img_size))
    assert later[0].images.equal(epochs[0][1].images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_give_the_same(listing):
    store = ImageCache(listing, PRE, DataConfig(cache_mib=0))
    kept = ImageCache(listing, PRE, DataConfig())
    config = DetectionAugmentConfig(scale=(0.6, 1.6))
    runs = [
        list(
            TrainLoader(
                one, config, batch_size=4, seed=3, processes=Processes(workers=workers)
            ).batches(0, 0, PRE.img_size)
        )
        for one, workers in ((store, 2), (store, 0), (kept, 0))
    ]
    for batches in runs[1:]:
        for one, other in zip(runs[0], batches, strict=True):
            assert one.images.equal(other.images)
            for left, right in zip(one.targets, other.targets, strict=True):
                assert all(a.equal(b) for a, b in zip(left[:5], right[:5], strict=True))


def found_in(network, store, batch_size, order=None, task="instance"):
    listing = store.listing
    if order is not None:
        listing = listing.select(order)
        store = ImageCache(listing, store.pre, DataConfig())
    row = find_task(task)
    predictor = Predictor(network, row, row.classes(listing), store.pre, device="cpu")
    outputs = run_network(predictor, EvalLoader(store, batch_size=batch_size), listing)
    return {
        listing.entries[int(place)].path: answer
        for place, answer in zip(outputs.indices, outputs.answers, strict=True)
    }


@pytest.mark.parametrize(
    "head",
    [
        "mask_rcnn_small",
        # Its stages are those of the first, one after the other.
        pytest.param("cascade_mask_rcnn_small", marks=pytest.mark.slow),
        "fcos_small",
    ],
)
def test_what_is_found_does_not_depend_on_the_rest_of_the_batch(listing, head):
    task = "detect" if head.startswith("fcos") else "instance"
    network = tiny_detector(head, len(listing.class_names), task=task)
    store = ImageCache(listing, PRE, DataConfig())
    alone = found_in(network, store, 1, task=task)
    assert sum(len(one) for one in alone.values()) > 20
    order = np.random.default_rng(0).permutation(len(listing)).tolist()
    for answers in (
        found_in(network, store, 4, task=task),
        found_in(network, store, 64, task=task),
        found_in(network, store, 3, order, task=task),
    ):
        assert answers.keys() == alone.keys()
        for path, expected in alone.items():
            got = answers[path]
            assert len(got) == len(expected)
            np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)
            # Boxes of equal score may change places.
            np.testing.assert_allclose(np.sort(got.boxes, 0), np.sort(expected.boxes, 0), atol=2e-2)


@pytest.mark.filterwarnings("ignore:.*cannot be read:UserWarning")
def test_images_that_cannot_be_read(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=6, num_val=1, size=(48, 64))
    (data / "train" / "00002.jpg").write_bytes(b"no image")
    listing = list_detect(data, masks=True).train
    for cache in (0, 2048):
        store = ImageCache(listing, PRE, DataConfig(cache_mib=cache))
        network = tiny_detector("mask_rcnn_small", len(listing.class_names))
        found = found_in(network, store, 4)
        assert len(found) == 5
        loader = TrainLoader(store, DetectionAugmentConfig(), batch_size=3, seed=0)
        batches = list(loader.batches(0, 0, PRE.img_size))
        assert sum(float(batch.weights.sum()) for batch in batches) == 5
        for batch in batches:
            for weight, target in zip(batch.weights.tolist(), batch.targets, strict=True):
                assert len(target.boxes) > 0 or weight == 0
