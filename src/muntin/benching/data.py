# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From JPEG files to the network's input, compared with torchvision, interleaved.

Letters: B images, H and W sides of a file's image in pixels, h and w those of the network's input.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from muntin.benching.candidates import OURS, compare_rows, reject_compiled, select_peers, summarize
from muntin.benching.interleaving import BenchmarkCase, time_interleaved
from muntin.data.cache import ImageCache
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.data_config import DataConfig
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader, Processes, TrainLoader
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError
from muntin.shapes import Size
from muntin.synthetic.scenes import make_scene
from muntin.zoo.model_building import find_model

__all__ = ["bench_data", "write_jpegs"]

IMAGE_SIZE = (375, 500)
"""Height and width in pixels of most ImageNet images."""

LOADERS = ("torchvision",)

Epoch = Callable[[int], Iterator[Tensor]]
"""From the number of an epoch to its normalized batches (B, 3, h, w)."""


def bench_data(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = LOADERS,
    rounds: int = 5,
    compiled: bool = False,
    log: Callable[[str], None] = lambda line: None,
    num_images: int = 200,
    workers: Sequence[int] = (0, 2),
) -> dict[str, Any]:
    """Measure images per second of loading JPEG files, for muntin and torchvision.

    Images are decoded, resized, cropped to the model's input size and normalized: center crops
    for evaluation, random resized crops with random flips for training. Nothing is cached
    between epochs, and interpolation is the same for all. torchvision runs twice: with Pillow,
    as its reference training does, and with its own decoder on tensors.

    Args:
        model: Name in the zoo; sets size, mean and standard deviation.
        batch_size: Images per batch.
        size: (height, width) in pixels; default: the model's own.
        peers: Libraries to compare with; those without a loader are skipped.
        rounds: Epochs per case.
        compiled: Must be False: data loading cannot be compiled.
        log: Callback for progress messages.
        num_images: JPEG files to generate, at least 1.
        workers: Numbers of worker processes.

    Returns:
        The settings and one row per case, kind of epoch and number of workers, with
        ``images_per_s``, ``missing`` (images not delivered) and, for evaluation, ``mean_error``
        (of the first batch against a float64 resize; in standard deviations).

    Raises:
        ConfigError: The model or a peer is unknown, `num_images` is below 1, or `compiled` is
            set.
    """
    reject_compiled(compiled, "data", "data loading cannot be compiled")
    if num_images < 1:
        message = f"num_images must be at least 1, got {num_images}. The default is 200."
        raise ConfigError(message)
    chosen = select_peers(peers, LOADERS, log)
    entry = find_model(model)
    pre = Preprocessing(
        img_size=size or entry.config.img_size,
        mean=entry.mean,
        std=entry.std,
        crop_fraction=DataConfig().crop_fraction,
    )
    with tempfile.TemporaryDirectory() as name:
        log(f"rendering {num_images} images of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels")
        folder = Path(name)
        write_jpegs(folder, num_images)
        readers = [
            reader
            for number in workers
            for work in ("evaluation", "training")
            for reader in _readers(
                folder,
                pre,
                chosen,
                _EpochSettings(work=work, workers=number, batch_size=batch_size),
            )
        ]
        truth = _reference_images(folder, pre, batch_size)
        errors = [_error(reader, truth) for reader in readers]
        log(f"timing {len(readers)} cases in {rounds} interleaved rounds")
        cases = [reader.to_case() for reader in readers]
        count = np.array([num_images], np.float64)
        timings = time_interleaved(cases, rounds=rounds, truth=count)
    rows: list[dict[str, Any]] = [
        {
            "name": reader.name,
            "work": reader.way.work,
            "workers": reader.way.workers,
            "precision": "fp32",
            "rival": reader.name != OURS,
            "images_per_s": summarize([num_images / seconds for seconds in timing.seconds]),
            "missing": int(timing.error),
            "mean_error": error,
        }
        for reader, timing, error in zip(readers, timings, errors, strict=True)
    ]
    compare_rows(rows, "images_per_s", better="more")
    return {
        "kind": "data",
        "model": model,
        "img_size": list(pre.img_size),
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "num_images": num_images,
        "image_size": list(IMAGE_SIZE),
        "contestants": rows,
    }


def write_jpegs(folder: Path, num_images: int) -> None:
    """Write synthetic images into two class folders.

    Args:
        folder: An empty folder.
        num_images: Number of files in total.
    """
    for number in range(num_images):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        scene = make_scene(0, number, size=IMAGE_SIZE, max_objects=4)
        Image.fromarray(scene.image).save(place / f"{number:05}.jpg", quality=90)


@dataclass(frozen=True, kw_only=True, slots=True)
class _EpochSettings:
    """Purpose of an epoch ("evaluation" or "training"), worker processes and batch size."""

    work: str
    workers: int
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _LoaderCase:
    """One implementation of an epoch over all images."""

    name: str
    way: _EpochSettings
    epoch: Epoch

    def to_case(self) -> BenchmarkCase:
        """Make a case that counts the images of an epoch, a new epoch in each round."""
        epochs = iter(range(10**9))

        def run() -> NDArray[np.float32]:
            with _worker_warnings_ignored():
                return np.array([sum(len(b) for b in self.epoch(next(epochs)))], np.float32)

        return BenchmarkCase(name=self.name, precision="fp32", rival=self.name != OURS, run=run)


@contextmanager
def _worker_warnings_ignored() -> Iterator[None]:
    """Hide warnings about more workers than cores: the numbers are chosen on purpose."""
    with warnings.catch_warnings(action="ignore"):
        yield


def _readers(
    folder: Path, pre: Preprocessing, peers: Sequence[str], way: _EpochSettings
) -> Iterator[_LoaderCase]:
    yield _LoaderCase(name=OURS, way=way, epoch=_our_epoch(folder, pre, way))
    if "torchvision" in peers:
        for name, tensors in (("torchvision Pillow", False), ("torchvision tensors", True)):
            yield _LoaderCase(
                name=name, way=way, epoch=_torchvision_epoch(folder, pre, way, tensors)
            )


def _our_epoch(folder: Path, pre: Preprocessing, way: _EpochSettings) -> Epoch:
    listing = list_classify(folder).train
    assert listing is not None, "class folders without splits are training images"
    store = ImageCache(listing, pre, DataConfig(cache_mib=0))

    def epoch(number: int) -> Iterator[Tensor]:
        size, processes = way.batch_size, Processes(workers=way.workers)
        if way.work == "evaluation":
            batches = iter(EvalLoader(store, batch_size=size, processes=processes))
        else:
            loader = TrainLoader(
                store, AugmentConfig(), batch_size=size, seed=0, processes=processes
            )
            batches = loader.batches(number, 0, pre.img_size)
        for batch in batches:
            yield normalise(batch.images, pre)

    return epoch


def _torchvision_epoch(
    folder: Path, pre: Preprocessing, way: _EpochSettings, tensors: bool
) -> Epoch:
    from torchvision.datasets import ImageFolder

    mode = InterpolationMode(pre.interpolation)
    steps: list[torch.nn.Module]
    if way.work == "evaluation":
        steps = [v2.Resize(list(_scaled_size(pre)), mode), v2.CenterCrop(list(pre.img_size))]
    else:
        scale = (AugmentConfig().crop_scale, 1.0)
        crop = v2.RandomResizedCrop(list(pre.img_size), scale=scale, interpolation=mode)
        steps = [crop, v2.RandomHorizontalFlip()]
    start: list[torch.nn.Module] = [] if tensors else [v2.PILToTensor()]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(pre.mean), list(pre.std))]
    transform = v2.Compose([*steps, *start, *last])
    batch_images: Any
    if tensors:
        batch_images = ImageFolder(str(folder), transform, loader=_decode_to_tensor)
    else:
        batch_images = ImageFolder(str(folder), transform)

    def epoch(number: int) -> Iterator[Tensor]:
        torch.manual_seed(number)
        loader = DataLoader(
            batch_images,
            batch_size=way.batch_size,
            shuffle=way.work == "training",
            num_workers=way.workers,
        )
        for images, _ in loader:
            yield images

    return epoch


def _decode_to_tensor(path: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(path, mode=ImageReadMode.RGB)


def _scaled_size(pre: Preprocessing) -> Size:
    """Size to which an image is resized before its center crop, as `center_crop` does."""
    (high, wide), target = IMAGE_SIZE, pre.img_size
    scale = max(target[0] / high, target[1] / wide) / pre.crop_fraction
    return max(target[0], round(high * scale)), max(target[1], round(wide * scale))


def _reference_images(folder: Path, pre: Preprocessing, count: int) -> Tensor:
    """The first images as evaluation prepares them, in float64 after decoding."""
    paths = sorted(folder.rglob("*.jpg"))[:count]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    images = F.interpolate(
        pixels.permute(0, 3, 1, 2).double(), _scaled_size(pre), mode=pre.interpolation,
        antialias=True,
    )  # fmt: skip
    images = v2.functional.center_crop(images.clamp(0, 255) / 255, list(pre.img_size))
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (pre.mean, pre.std))
    return (images - mean) / std


def _error(reader: _LoaderCase, truth: Tensor) -> float | None:
    """Mean absolute difference of the first batch; None for random crops."""
    if reader.way.work != "evaluation":
        return None
    with _worker_warnings_ignored():
        first = next(iter(reader.epoch(0)))
    return (first.double() - truth).abs().mean().item()
