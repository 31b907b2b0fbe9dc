# SPDX-License-Identifier: Apache-2.0
"""From image files to the network's input, compared with torchvision, interleaved.

Letters: B images, h and w sides of the network's input in pixels.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

from muntin.benching.peers import BenchRequest
from muntin.benching.result_rows import (
    OURS,
    BenchmarkCase,
    Row,
    compare_rows,
    summarize,
    time_interleaved,
)
from muntin.data.batches import resized_size
from muntin.data.cache import ImageCache
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.data_config import DataConfig
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader, Processes, TrainLoader
from muntin.data.transforms import Augmentation, Preprocessing, normalise
from muntin.synthetic.scenes import make_scene
from muntin.zoo.model_building import find_model

IMAGE_SIZE = (375, 500)
"""Height and width in pixels of most ImageNet images."""

Epoch = Callable[[int, bool, int], Iterator[Tensor]]
"""Epoch's number, whether it trains, and worker processes, to normalized batches (B, 3, h, w)."""


def bench_data(
    request: BenchRequest,
    *,
    num_images: int = 200,
    workers: Sequence[int] = (0, 2),
    file_format: str = "jpeg",
) -> dict[str, Any]:
    """Measure images per second of loading files of one format, for muntin and torchvision.

    Images are decoded, resized, cropped to the model's input size and normalized: center crops
    for evaluation, random resized crops with random flips for training. Nothing is cached
    between epochs, and interpolation is the same for all. torchvision runs twice: with Pillow,
    as its reference training does, and with its own decoder on tensors.

    One row per case, kind of epoch and number of worker processes, with ``images_per_s``,
    ``missing`` (images not delivered) and, for evaluation, ``mean_error`` (of the first batch
    against a float64 resize; in standard deviations). `num_images` is at least 1.
    """
    pre = preprocessing_of(request)
    # Warnings about more workers than cores: the numbers are chosen on purpose.
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(action="ignore"):
        folder = Path(name)
        request.log(f"rendering {num_images} images of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels")
        write_images(folder, num_images, file_format)
        listing = list_classify(folder).train
        assert listing is not None, "class folders without splits are training images"
        store = ImageCache(listing, pre, DataConfig(cache_mib=0))
        epochs = {OURS: load_batches(store, AugmentConfig(), request.batch_size)}
        if request.select_peers(["torchvision"]):
            for variant, decode in (("Pillow", None), ("tensors", decode_to_tensor)):
                load = _load_torchvision(folder, pre, request.batch_size, decode=decode)
                epochs[f"torchvision {variant}"] = load
        rows = time_epochs(request, epochs, num_images, workers)
        truth = _reference_images(folder, pre, request.batch_size)
        for row in rows:
            evaluated = row["work"] == "evaluation"
            error = _error(epochs[row["name"]](0, False, 0), truth) if evaluated else None
            row["mean_error"] = error
    return request.describe(
        "data", rows, num_images=num_images, image_size=list(IMAGE_SIZE), format=file_format
    )


def time_epochs(
    request: BenchRequest, epochs: Mapping[str, Epoch], num_images: int, workers: Sequence[int]
) -> list[Row]:
    """Time epochs of `num_images` by their owners, evaluation and training, interleaved."""
    works = [*itertools.product(workers, (False, True), epochs)]
    cases = [
        BenchmarkCase(owner=owner, run=_count_images(epochs[owner], training, number))
        for number, training, owner in works
    ]
    request.log(f"timing {len(cases)} cases in {request.rounds} interleaved rounds")
    timings = time_interleaved(cases, rounds=request.rounds, truth=np.array([num_images], float))
    rows = [
        timing.to_row(
            work="training" if training else "evaluation",
            workers=number,
            images_per_s=summarize([num_images / seconds for seconds in timing.seconds]),
            missing=int(timing.error),
        )
        for (number, training, _), timing in zip(works, timings, strict=True)
    ]
    return compare_rows(rows)


def preprocessing_of(request: BenchRequest) -> Preprocessing:
    """How evaluation reads images for the model."""
    entry = find_model(request.model)
    return Preprocessing(
        img_size=request.img_size,
        mean=entry.mean,
        std=entry.std,
        crop_fraction=DataConfig().crop_fraction,
    )


def write_images(folder: Path, num_images: int, file_format: str) -> None:
    """Write images in two class folders."""
    for number in range(num_images):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        scene = make_scene(0, number, size=IMAGE_SIZE, max_objects=4)
        Image.fromarray(scene.image).save(place / f"{number:05}.{file_format}", quality=90)


def _count_images(epoch: Epoch, training: bool, workers: int) -> Callable[[], NDArray[np.float32]]:
    """Count the images of an epoch, a new epoch in each call."""
    numbers = itertools.count()
    return lambda: np.array(
        [sum(len(batch) for batch in epoch(next(numbers), training, workers))], np.float32
    )


def load_batches(store: ImageCache, augment: Augmentation, batch_size: int) -> Epoch:
    """Epochs of muntin, normalized."""

    def epoch(number: int, training: bool, workers: int) -> Iterator[Tensor]:
        processes = Processes(workers=workers)
        batches = iter(EvalLoader(store, batch_size=batch_size, processes=processes))
        if training:
            loader = TrainLoader(store, augment, batch_size=batch_size, seed=0, processes=processes)
            batches = loader.batches(number, 0, store.pre.img_size)
        for batch in batches:
            yield normalise(batch.images, store.pre, batch.sizes)

    return epoch


def _load_torchvision(
    folder: Path, pre: Preprocessing, batch_size: int, *, decode: Callable[[str], Tensor] | None
) -> Epoch:
    """The loader of torchvision; without `decode`, its Pillow loader."""
    from torchvision.datasets import ImageFolder

    mode = InterpolationMode(pre.interpolation)
    scale = (AugmentConfig().crop_scale, 1.0)
    crop = v2.RandomResizedCrop(list(pre.img_size), scale=scale, interpolation=mode)
    steps: dict[bool, list[torch.nn.Module]] = {
        False: [
            v2.Resize(list(resized_size(IMAGE_SIZE, pre)), mode),
            v2.CenterCrop(list(pre.img_size)),
        ],
        True: [crop, v2.RandomHorizontalFlip()],
    }
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(pre.mean), list(pre.std))]
    if decode is None:
        last.insert(0, v2.PILToTensor())
    options: dict[str, Any] = {} if decode is None else {"loader": decode}
    # Files are listed once, as by muntin: an epoch is timed.
    images = {
        training: ImageFolder(str(folder), v2.Compose([*first, *last]), **options)
        for training, first in steps.items()
    }

    def epoch(number: int, training: bool, workers: int) -> Iterator[Tensor]:
        torch.manual_seed(number)
        loader = DataLoader(images[training], batch_size, shuffle=training, num_workers=workers)
        for batch, _ in loader:
            yield batch

    return epoch


def decode_to_tensor(path: str) -> Tensor:
    """Decode a file by torchvision."""
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(path, mode=ImageReadMode.RGB)


def _reference_images(folder: Path, pre: Preprocessing, count: int) -> Tensor:
    """The first images as evaluation prepares them, in float64 after decoding."""
    paths = sorted(folder.rglob("*.*"))[:count]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    images = F.interpolate(
        pixels.permute(0, 3, 1, 2).double(), resized_size(IMAGE_SIZE, pre), mode=pre.interpolation,
        antialias=True,
    )  # fmt: skip
    images = v2.functional.center_crop(images.clamp(0, 255) / 255, list(pre.img_size))
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (pre.mean, pre.std))
    return (images - mean) / std


def _error(epoch: Iterator[Tensor], truth: Tensor) -> float:
    """Mean absolute difference of the first batch."""
    return (next(epoch).double() - truth).abs().mean().item()
