# SPDX-License-Identifier: Apache-2.0
"""Loading of images, compared with torchvision: JPEG, PNG and WebP of classes, boxes and masks.

Classes are the benchmark of `muntin bench data`. Images with objects, every fourth a PNG, are
brought to 320 pixels at their shorter side, mirrored at random in training, padded to multiples of
32 and normalised, with their boxes and, for instance segmentation, masks. The peer decodes and
moves them as tensors, with torchvision's transforms v2 and tv_tensors, and unpacks masks by
pycocotools, as its own wrapper of COCO does.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from muntin.benching.data import (
    IMAGE_SIZE,
    Epoch,
    bench_data,
    decode_to_tensor,
    load_batches,
    preprocessing_of,
    time_epochs,
    write_images,
)
from muntin.benching.peers import BenchRequest
from muntin.benching.result_rows import OURS, summarize
from muntin.data.cache import ImageCache
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.data_config import DataConfig
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.data.detection import list_detect
from muntin.data.listing import list_classify
from muntin.data.transforms import Preprocessing
from muntin.run_lengths import to_run_lengths
from muntin.samples import Listing
from muntin.synthetic.datasets import write_coco

FORMATS = {"jpeg": 100, "png": 30, "webp": 40}
"""Images of each format of which an epoch has so many: PNGs take five times as long."""

NUM_IMAGES = 80
SHORT_SIDE, LONG_SIDE = 320, 427  # of the network's input, which keeps the proportions
PAD_TO = 32


class Objects(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Images of a listing with their objects, as torchvision's wrapper of COCO gives them."""

    def __init__(
        self, listing: Listing, *, masks: bool, training: bool, pre: Preprocessing
    ) -> None:
        self.listing, self.masks = listing, masks
        flip = [v2.RandomHorizontalFlip()] * training
        self.transform = v2.Compose([
            v2.Resize([SHORT_SIDE], max_size=LONG_SIDE), *flip, v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize([*pre.mean], [*pre.std]),
        ])  # fmt: skip
        # Only what is known before an epoch is prepared: the run lengths that COCO files hold.
        self.lengths = [
            [to_run_lengths(mask, IMAGE_SIZE) for mask in entry.objects.masks]
            for entry in listing.entries
        ]

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        entry = self.listing.entries[index]
        image = tv_tensors.Image(decode_to_tensor(f"{self.listing.source}/{entry.path}"))
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(entry.objects.boxes).float(),
                format="XYXY", canvas_size=IMAGE_SIZE,
            ),
            "labels": torch.from_numpy(entry.objects.class_ids),
        }  # fmt: skip
        if self.masks:
            drawn = [coco_mask.decode(lengths) for lengths in self.lengths[index]]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(np.stack(drawn)))
        return self.transform(image, target)


def pad(rows: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stack images of several sizes, as torchvision's detectors do."""
    images, targets = zip(*rows, strict=True)
    high, wide = (
        -(-max(image.shape[axis] for image in images) // PAD_TO) * PAD_TO for axis in (1, 2)
    )
    batch = images[0].new_zeros(len(images), 3, high, wide)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch, [*targets]


def load_peer(listing: Listing, pre: Preprocessing, batch_size: int, *, masks: bool) -> Epoch:
    """Epochs of torchvision."""
    sets = {
        training: Objects(listing, masks=masks, training=training, pre=pre)
        for training in (False, True)
    }

    def epoch(number: int, training: bool, workers: int) -> Iterator[Tensor]:
        torch.manual_seed(number)
        loader = DataLoader(
            sets[training], batch_size, shuffle=training, num_workers=workers, collate_fn=pad
        )
        for images, _ in loader:
            yield images

    return epoch


def bench_objects(request: BenchRequest, *, masks: bool) -> dict[str, Any]:
    """Measure images per second of loading JPEGs with boxes, or also masks."""
    pre = Preprocessing(
        img_size=(SHORT_SIDE, LONG_SIDE), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        fit="letterbox", interpolation="bilinear",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        write_coco(folder, num_train=NUM_IMAGES, num_val=1, size=IMAGE_SIZE)
        listing = list_detect(folder, masks=masks).train
        assert listing is not None, "a training set was written"
        store = ImageCache(listing, pre, DataConfig(cache_mib=0))
        epochs = {
            OURS: load_batches(store, DetectionAugmentConfig(), request.batch_size),
            "torchvision tensors": load_peer(listing, pre, request.batch_size, masks=masks),
        }
        rows = time_epochs(request, epochs, NUM_IMAGES, (0, 2))
    found = request.describe("data", rows, num_images=NUM_IMAGES, image_size=[*IMAGE_SIZE])
    return {**found, "img_size": [*pre.img_size]}


def bench_cache(request: BenchRequest) -> dict[str, Any]:
    """Measure decoding JPEGs into the cache, and epochs of what is in it, without workers."""
    seconds: dict[str, list[float]] = {"decoding": [], "evaluation": [], "training": []}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(action="ignore"):
        write_images(Path(name), FORMATS["jpeg"], "jpeg")
        listing = list_classify(name).train
        assert listing is not None, "class folders without splits are training images"
        for _ in range(request.rounds):
            begun = time.perf_counter()
            store = ImageCache(listing, preprocessing_of(request), DataConfig())
            seconds["decoding"].append(time.perf_counter() - begun)
            epoch = load_batches(store, AugmentConfig(), request.batch_size)
            for training in (False, True):
                begun = time.perf_counter()
                for _ in epoch(0, training, 0):
                    pass
                work = "training" if training else "evaluation"
                seconds[work].append(time.perf_counter() - begun)
    rates = {
        work: summarize([len(listing) / each for each in values])
        for work, values in seconds.items()
    }
    return {"num_images": len(listing), "image_size": [*IMAGE_SIZE], "images_per_s": rates}


def main() -> None:
    """Measure and write the results."""
    parts = (*FORMATS, "detect", "instance", "cache")
    options = record.options(__doc__, parts=parts, model="swin_tiny", rounds=5)
    for part in options.parts:
        request = BenchRequest(model=options.model, rounds=options.rounds, log=record.log)
        if part in FORMATS:
            found = bench_data(request, num_images=FORMATS[part], file_format=part)
        elif part == "cache":
            found = bench_cache(request)
        else:
            found = bench_objects(request, masks=part == "instance")
        topics = {"jpeg": "peers_data", "cache": "data_cache"}
        record.save(topics.get(part, f"peers_data_{part}"), found)


if __name__ == "__main__":
    main()
