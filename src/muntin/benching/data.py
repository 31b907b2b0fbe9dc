# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From JPEG files to what the network reads, beside torchvision, in turns.

Letters: B images, H and W sides in pixels, h and w those that the network reads.
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

from muntin.benching.competitors import OURS, choose_peers, compare_rows, refuse_compiled, spread
from muntin.benching.interleaving import Contestant, take_turns
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader, TrainLoader
from muntin.data.synthetic_scenes import make_scene
from muntin.data.transforms import AugmentConfig, Preprocessing, normalise
from muntin.errors import ConfigError
from muntin.shapes import Size
from muntin.zoo.model_building import find_model

__all__ = ["bench_data", "write_jpegs"]

IMAGE_SIZE = (375, 500)
"""Height and width in pixels, as of most images of ImageNet."""

LOADERS = ("torchvision",)

Epoch = Callable[[int], Iterator[Tensor]]
"""From the number of an epoch to its batches: B, 3, h, w, normalised."""


def bench_data(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = LOADERS,
    rounds: int = 5,
    compiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
    num_images: int = 200,
    workers: Sequence[int] = (0, 2),
) -> dict[str, Any]:
    """Measure images a second of reading JPEG files, ours and theirs.

    Images are decoded, resized and cropped to what the model reads, and given as normalised
    floats: for evaluation from the middle, for training from a random part, mirrored by chance.
    Nothing is kept between epochs. Interpolation is the same for all. torchvision takes part
    twice: with Pillow, as its reference training does, and with its own decoder and tensors.

    Args:
        model: In the zoo; gives size, mean and standard deviation.
        batch_size: Images a batch.
        size: (height, width) in pixels; what the model is made for when left out.
        peers: Who else takes part; those without a loader are left out with a word.
        rounds: Epochs of each.
        compiled: Refused: there is nothing to compile.
        say: Told what goes on.
        num_images: JPEG files to generate, at least 1.
        workers: Numbers of worker processes.

    Returns:
        The set-up and a row a contestant, kind of epoch and number of workers, with
        ``images_per_s``, ``missing`` (images that did not come) and, for evaluation,
        ``mean_error`` (of the first batch, from a resize in float64; in standard deviations).

    Raises:
        ConfigError: There is no such model or peer, `num_images` is too small, or `compiled`
            is set.
    """
    refuse_compiled(compiled, "data", "where nothing can be compiled")
    if num_images < 1:
        message = f"num_images must be at least 1, got {num_images}. Leave it out for 200."
        raise ConfigError(message)
    chosen = choose_peers(peers, LOADERS, say)
    entry = find_model(model)
    pre = Preprocessing(
        img_size=size or entry.config.img_size,
        mean=entry.mean,
        std=entry.std,
        crop_fraction=DataConfig().crop_fraction,
    )
    with tempfile.TemporaryDirectory() as name:
        say(f"drawing {num_images} images of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels")
        folder = Path(name)
        write_jpegs(folder, num_images)
        readers = [
            reader
            for number in workers
            for work in ("evaluation", "training")
            for reader in _readers(
                folder, pre, chosen, _Way(work=work, workers=number, batch_size=batch_size)
            )
        ]
        truth = _fit_exactly(folder, pre, batch_size)
        errors = [_error(reader, truth) for reader in readers]
        say(f"taking turns: {len(readers)} contestants, {rounds} rounds")
        contestants = [reader.enter() for reader in readers]
        count = np.array([num_images], np.float64)
        timings = take_turns(contestants, rounds=rounds, truth=count)
    rows: list[dict[str, Any]] = [
        {
            "name": reader.name,
            "work": reader.way.work,
            "workers": reader.way.workers,
            "precision": "fp32",
            "rival": reader.name != OURS,
            "images_per_s": spread([num_images / seconds for seconds in timing.seconds]),
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
    """Draw images into two class folders.

    Args:
        folder: Exists and is empty.
        num_images: Files in both folders together.
    """
    for number in range(num_images):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        scene = make_scene(0, number, size=IMAGE_SIZE, max_objects=4)
        Image.fromarray(scene.image).save(place / f"{number:05}.jpg", quality=90)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """What an epoch is for, and who helps."""

    work: str
    workers: int
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """One way to read all images once."""

    name: str
    way: _Way
    epoch: Epoch

    def enter(self) -> Contestant:
        """Count the images of an epoch, a new one each turn."""
        turn = iter(range(10**9))

        def run() -> NDArray[np.float32]:
            with _unsuggested():
                return np.array([sum(len(b) for b in self.epoch(next(turn)))], np.float32)

        return Contestant(name=self.name, precision="fp32", rival=self.name != OURS, run=run)


@contextmanager
def _unsuggested() -> Iterator[None]:
    """Say nothing of more workers than this machine has cores: they are meant."""
    with warnings.catch_warnings(action="ignore"):
        yield


def _readers(
    folder: Path, pre: Preprocessing, peers: Sequence[str], way: _Way
) -> Iterator[_Reader]:
    yield _Reader(name=OURS, way=way, epoch=_our_epoch(folder, pre, way))
    if "torchvision" in peers:
        for name, tensors in (("torchvision Pillow", False), ("torchvision tensors", True)):
            yield _Reader(name=name, way=way, epoch=_their_epoch(folder, pre, way, tensors))


def _our_epoch(folder: Path, pre: Preprocessing, way: _Way) -> Epoch:
    listing = list_classify(folder).train
    assert listing is not None, "class folders without parts are training images"
    store = ImageCache(listing, pre, DataConfig(cache_mib=0))

    def epoch(number: int) -> Iterator[Tensor]:
        if way.work == "evaluation":
            batches = iter(EvalLoader(store, batch_size=way.batch_size, workers=way.workers))
        else:
            loader = TrainLoader(
                store, AugmentConfig(), batch_size=way.batch_size, seed=0, workers=way.workers
            )
            batches = loader.batches(number, 0, pre.img_size)
        for batch in batches:
            yield normalise(batch.images, pre)

    return epoch


def _their_epoch(folder: Path, pre: Preprocessing, way: _Way, tensors: bool) -> Epoch:
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
    """What an image is resized to before its middle is cut out, as `center_crop` does."""
    (high, wide), target = IMAGE_SIZE, pre.img_size
    scale = max(target[0] / high, target[1] / wide) / pre.crop_fraction
    return max(target[0], round(high * scale)), max(target[1], round(wide * scale))


def _fit_exactly(folder: Path, pre: Preprocessing, count: int) -> Tensor:
    """The first images as evaluation reads them, in float64 from decoding on."""
    paths = sorted(folder.rglob("*.jpg"))[:count]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    images = F.interpolate(
        pixels.permute(0, 3, 1, 2).double(), _scaled_size(pre), mode=pre.interpolation,
        antialias=True,
    )  # fmt: skip
    images = v2.functional.center_crop(images.clamp(0, 255) / 255, list(pre.img_size))
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (pre.mean, pre.std))
    return (images - mean) / std


def _error(reader: _Reader, truth: Tensor) -> float | None:
    """Mean difference of the first batch; None where images are cropped at random."""
    if reader.way.work != "evaluation":
        return None
    with _unsuggested():
        first = next(iter(reader.epoch(0)))
    return (first.double() - truth).abs().mean().item()
