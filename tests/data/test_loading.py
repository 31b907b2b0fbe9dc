# SPDX-License-Identifier: Apache-2.0
"""Batches: every image once, whoever reads it and from wherever it comes."""

from __future__ import annotations

import copy
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from muntin.data.cache import ImageCache
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.data_config import DataConfig
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader, Processes, TrainLoader
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError
from tests.small import image, write_images

PRE = Preprocessing(img_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
ONE_BY_ONE = AugmentConfig(auto="trivialaugment")
WHOLE = AugmentConfig()
UNCACHED = DataConfig(cache_mib=0)
# Forking with threads around: what PyTorch's own loader does on Linux.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees", each=7)


def store_of(data, config=None, pre=PRE):
    return ImageCache(list_classify(data).train, pre, config or DataConfig())


def loader_of(store, augment=WHOLE, batch_size=4, shares=None, **who):
    processes = Processes(**who)
    return TrainLoader(
        store, augment, batch_size=batch_size, seed=0, shares=shares, processes=processes
    )


def eval_loader_of(store, batch_size=4, **who):
    return EvalLoader(store, batch_size=batch_size, processes=Processes(**who))


def epoch_of(loader, epoch=0, first=0):
    return list(loader.batches(epoch, first, (16, 16)))


def same(left, right):
    return len(left) == len(right) and all(
        a.images.equal(b.images) and a.indices.equal(b.indices) and a.weights.equal(b.weights)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 21, 50])
def test_every_image_once_over_all_processes(data, world, batch_size):
    store = store_of(data)
    shares = [
        loader_of(store, batch_size=batch_size, rank=rank, world=world).steps(3, 0)
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {-(-21 // batch_size)}
    seen = [
        int(index)
        for share in shares
        for indices, weights, _ in share
        for index, weight in zip(indices, weights, strict=True)
        if weight
    ]
    assert sorted(seen) == list(range(21))
    for steps in zip(*shares, strict=True):
        assert len({len(indices) for indices, _, _ in steps}) == 1, "equally many in each process"
        assert sum(weights.sum() for _, weights, _ in steps) == steps[0][2]


@pytest.mark.parametrize("augment", [WHOLE, ONE_BY_ONE])
def test_starting_amid_an_epoch(data, augment):
    loader = loader_of(store_of(data), augment)
    assert same(epoch_of(loader, 2)[3:], epoch_of(loader, 2, 3))
    assert not same(epoch_of(loader, 2), epoch_of(loader, 1))
    assert epoch_of(loader, 0, len(loader)) == []


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("config", [DataConfig(), UNCACHED])
def test_who_reads_makes_no_difference(data, workers, config):
    expected = epoch_of(loader_of(store_of(data), ONE_BY_ONE))
    store = store_of(data, config)
    assert store.in_memory == (config is not UNCACHED)
    assert same(epoch_of(loader_of(store, ONE_BY_ONE, workers=workers)), expected)


def test_a_zip_that_several_read(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path in sorted(data.rglob("*.png")):
            file.write(path, path.relative_to(data))
    store = store_of(tmp_path / "set.zip", UNCACHED)
    expected = epoch_of(loader_of(store_of(data), ONE_BY_ONE))
    assert same(epoch_of(loader_of(store, ONE_BY_ONE, workers=2)), expected)


def test_evaluation_is_in_order(data):
    store = store_of(data)
    whole = torch.cat([batch.images for batch in eval_loader_of(store, 100)])
    for batch_size, config, workers in ((1, DataConfig(), 0), (4, UNCACHED, 1)):
        batches = list(eval_loader_of(store_of(data, config), batch_size, workers=workers))
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(21))
        assert torch.cat([batch.images for batch in batches]).equal(whole)
    parts = [
        torch.cat([b.indices for b in eval_loader_of(store, rank=rank, world=2)])
        for rank in range(2)
    ]
    assert sorted(torch.cat(parts).tolist()) == list(range(21))
    assert not list(eval_loader_of(store, 64, rank=1, world=2))


def test_images_of_several_sizes_go_one_by_one(data, tmp_path):
    mixed = write_images(tmp_path / "mixed", each=2)
    image(0, 9, 40).save(mixed / "ash" / "large.png")
    store = store_of(mixed)
    assert store.stacked is None
    assert not loader_of(store).whole_batches
    assert store.load(2).pixels.shape == (3, 24, 24), "no larger than anybody can use"
    assert all(batch.images.shape[1:] == (3, 16, 16) for batch in epoch_of(loader_of(store)))
    assert loader_of(store_of(data)).whole_batches


def test_balanced_classes(tmp_path):
    rare = write_images(tmp_path / "rare", each=2)
    for number in range(40):
        image(0, 100 + number).save(rare / "ash" / f"more{number}.png")
    store = store_of(rare)
    ids = np.array([entry.class_ids[0] for entry in store.listing.entries])
    shares = 1 / np.bincount(ids)[ids]
    counts = np.zeros(3)
    for epoch in range(20):
        for indices, _, _ in loader_of(store, shares=shares).steps(epoch, 0):
            counts += np.bincount(ids[indices], minlength=3)
    assert counts / counts.sum() == pytest.approx([1 / 3] * 3, abs=0.06)


@pytest.fixture
def faulty(tmp_path):
    folder = write_images(tmp_path / "faulty", each=20)
    (folder / "ash" / "3.png").write_bytes(b"")
    return folder


def test_unreadable_images_of_a_cached_set(faulty):
    with pytest.warns(UserWarning, match=r"1 of 60 images in .* are left out.*: ash/3.png"):
        store = store_of(faulty)
    index = next(iter(store.unreadable))
    seen = torch.cat([batch.indices for batch in epoch_of(loader_of(store))])
    assert sorted([*seen.tolist(), index]) == list(range(60))
    weights = torch.cat([batch.weights for batch in EvalLoader(store, batch_size=7)])
    assert weights.tolist() == [float(i != index) for i in range(60)]


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_of_a_large_set(faulty, workers):
    store = store_of(faulty, UNCACHED)
    assert not store.unreadable, "not among those that were looked at"
    with pytest.warns(UserWarning, match=r"1 of 60 images in .* are left out.*: ash/3.png"):
        batches = epoch_of(loader_of(store, workers=workers))
    assert sum(float(batch.weights.sum()) for batch in batches) == 59
    assert len(store.unreadable) == 1
    epoch_of(loader_of(store, workers=workers), 1)  # it was said once


@pytest.mark.parametrize("workers", [0, 1])
def test_strict(faulty, workers):
    with pytest.raises(DataError, match=r"3.png.* data.strict=true"):
        store_of(faulty, DataConfig(strict=True))
    store = store_of(faulty, DataConfig(strict=True, cache_mib=0))
    with pytest.raises(DataError, match=r"3.png.* data.strict=true makes") as caught:
        epoch_of(loader_of(store, workers=workers))
    assert "\n" not in str(caught.value)


def test_a_store_can_be_sent_to_a_process(data):
    store = copy.deepcopy(store_of(data))
    assert same(epoch_of(loader_of(store)), epoch_of(loader_of(store_of(data))))


def test_grey(data):
    grey = replace(PRE, in_chans=1, mean=(0.5,), std=(0.25,))
    store = store_of(data, pre=grey)
    assert epoch_of(loader_of(store))[0].images.shape == (4, 1, 16, 16)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"val_fraction": 0.0}, "data.val_fraction must be from 0.001 to 0.9, got 0.0"),
        ({"crop_fraction": 1.5}, "data.crop_fraction must be from 0.1 to 1, got 1.5"),
        ({"cache_mib": -1}, "data.cache_mib must be from 0"),
    ],
)
def test_wrong_values(changes, text):
    with pytest.raises(ConfigError, match=text):
        DataConfig(**changes)
