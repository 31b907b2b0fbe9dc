# SPDX-License-Identifier: Apache-2.0
"""Processes of a machine keep decoded images once, and see what one alone would see."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from muntin.collectives import gather_objects
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.detection import list_detect
from muntin.data.transforms import Preprocessing
from muntin.devices import release_memory
from muntin.samples import Entry, Listing
from muntin.train_config import MachineConfig
from muntin.training.processes import find_place, joined
from tests.detectors import mixed_sizes
from tests.forked import Forked, train_forked
from tests.small import image

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd is of Linux")
HALVES = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}


def write_listing(folder: Path, count: int, side: int) -> Listing:
    folder.mkdir()
    for number in range(count):
        image(number % 3, number, side).save(folder / f"{number}.png")
    entries = tuple(
        Entry(path=f"{number}.png", class_ids=(number % 3,), size=None) for number in range(count)
    )
    return Listing(source=str(folder), entries=entries, class_names=("a", "b", "c"))


def digest(sample) -> list[object]:
    """What a sample holds, as plain values."""
    if sample is None:
        return []
    tensors = [part for part in (sample.pixels, *(sample.target or ())) if part is not None]
    return [tuple(sample.size), *((str(t.dtype), t.tolist()) for t in tensors)]


def digests(listing, pre, *, shared: bool) -> tuple[object, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = ImageCache(listing, pre, DataConfig(), shared=shared)
    samples = [digest(store.load(index)) for index in range(len(store))]
    stacked = None if store.stacked is None else store.stacked.tolist()
    return samples, stacked, sorted(store.unreadable)


def digests_together(listing, pre):
    with joined(find_place(), MachineConfig(device="cpu")):
        return digests(listing, pre, shared=True)


def test_processes_see_what_one_sees(tmp_path):
    pre = Preprocessing(img_size=(16, 16), fit="center_crop", **HALVES)
    listing = write_listing(tmp_path / "small", 5, 16)
    (tmp_path / "small" / "3.png").write_bytes(b"")
    boxes = Preprocessing(img_size=(64, 96), fit="letterbox", **HALVES)
    detect = list_detect(mixed_sizes(tmp_path / "mixed", count=3), masks=True).train
    for each, how in ((listing, pre), (detect, boxes)):
        alone = digests(each, how, shared=False)
        for outcome in train_forked(2, lambda each=each, how=how: digests_together(each, how)):
            assert outcome.value == alone
    assert alone[1] is None
    # More processes than images.
    few = write_listing(tmp_path / "few", 1, 16)
    alone = digests(few, pre, shared=False)
    assert [one.value for one in train_forked(3, lambda: digests_together(few, pre))] == 3 * [alone]


def test_processes_keep_deep_images_as_one_does(tmp_path):
    listing = write_listing(tmp_path / "deep", 5, 16)
    for entry in listing.entries:
        values = np.random.default_rng(0).integers(2**16, size=(16, 16), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "deep" / entry.path)
    pre = Preprocessing(
        img_size=(16, 16), fit="center_crop", mean=(0.5,), std=(0.25,), interpolation="bilinear",
        in_chans=1, value_range=(0.0, 65535.0), bits=16,
    )  # fmt: skip
    alone = digests(listing, pre, shared=False)
    assert np.shape(alone[1]) == (5, 1, 16, 16)
    for outcome in train_forked(2, lambda: digests_together(listing, pre)):
        assert outcome.value == alone


def shares(listing, pre) -> int:
    """Bytes of this process's share of memory that the images take."""

    def own_bytes() -> int:
        text = Path("/proc/self/smaps_rollup").read_text()
        return (
            int(next(row.split()[1] for row in text.splitlines() if row.startswith("Pss:"))) << 10
        )

    with joined(find_place(), MachineConfig(device="cpu")):
        release_memory()  # touches what is still shared with the test itself
        gather_objects(0)
        before = own_bytes()
        store = ImageCache(listing, pre, DataConfig(), shared=True)
        total = sum(
            int(store.load(index).pixels.sum(dtype=torch.int64)) for index in range(len(store))
        )
        gather_objects(total)
        grown = own_bytes() - before
        gather_objects(0)
        return grown


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["center_crop", "letterbox"])
def test_four_processes_need_the_memory_of_one(tmp_path, fit):
    count, side = 1600, 256  # so many that what each process needs to decode matters little
    listing = write_listing(tmp_path / "large", 1, side)
    listing = replace(listing, entries=listing.entries * count)
    pre = Preprocessing(img_size=(side, side), fit=fit, **HALVES)
    grown = [one.value for one in train_forked(4, lambda: shares(listing, pre))]
    data = count * 3 * side * side
    print(f"{fit}: four processes {sum(grown) / data:.2f} of the data")  # noqa: T201
    assert data < sum(grown) < 1.3 * data


def keep(listing, pre, ready: Path) -> None:
    with joined(find_place(), MachineConfig(device="cpu")):
        store = ImageCache(listing, pre, DataConfig(), shared=True)
        (ready / os.environ["RANK"]).write_text(str(store.stacked.shape[0]))
        time.sleep(100)


def test_nothing_is_left_when_they_are_killed(tmp_path):
    pre = Preprocessing(img_size=(16, 16), fit="center_crop", **HALVES)
    listing = write_listing(tmp_path / "small", 3, 16)
    before = set(os.listdir("/dev/shm")) | set(os.listdir("/tmp"))
    started = Forked(2, lambda: keep(listing, pre, tmp_path))
    until = time.monotonic() + 60
    while not all((tmp_path / str(rank)).exists() for rank in range(2)):
        assert time.monotonic() < until
        time.sleep(0.05)
    for process in started.processes:
        process.kill()
    assert [one.code for one in started.end(30)] == [-9, -9]
    left = (set(os.listdir("/dev/shm")) | set(os.listdir("/tmp"))) - before
    assert not [name for name in left if "muntin" in name or "torch" in name]
