# SPDX-License-Identifier: Apache-2.0
"""Inference data: crops, the batches they are stacked into, and raw network output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from muntin.data.batches import fit, padded_size, stack_images
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.prediction.sources import LoadedImage
from muntin.shapes import Size, UInt8
from muntin.tasks.task import DEFAULT_OPTIONS, ImageMeta, PredictOptions

Merge = Callable[[Sequence[Any]], Any]
"""Merges the results of the crops of an image, in order, into one."""


class Crop(NamedTuple):
    """One network input, not normalised: a whole image, a tile, or one instance."""

    pixels: UInt8[Tensor, "C h w"]
    meta: ImageMeta


class CroppedImage(NamedTuple):
    """An image as crops, none where a detector found no instance.

    `crops` yields them one at a time, so that never all tiles of a huge image are in memory;
    `merge` merges their results into one, and holds no pixels.
    """

    num_crops: int
    crops: Iterator[Crop]
    merge: Merge


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Crops that go through the network together, padded to one size at the right and the bottom.

    `places` are their numbers in the batch.
    """

    images: UInt8[Tensor, "B C H W"]
    metas: tuple[ImageMeta, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedBatch:
    """Images ready for `Predictor.run`: decoded, cut and resized, on the CPU.

    Attributes:
        parts: All crops, grouped by padded size; at most `Predictor.batch_size` in each.
        merges: For each image the number of its crops, which follow one another, and the function
            that merges their results into one.
        options: Options that the task applies; mirrored and tiled detection is in the crops.
    """

    parts: tuple[Part, ...]
    merges: tuple[tuple[int, Merge], ...]
    options: PredictOptions = DEFAULT_OPTIONS

    def __len__(self) -> int:
        return len(self.merges)


class RawPart(NamedTuple):
    """Raw output of `muntin.tasks.Task.predict` for a `Part`, with the origin of each crop."""

    raw: Any
    metas: tuple[ImageMeta, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawBatch:
    """Output of `Predictor.run`: raw network output, and what `Predictor.decode` needs.

    Attributes:
        parts: Raw output of each part of the batch.
        merges: As in `PreparedBatch`.
    """

    parts: tuple[RawPart, ...]
    merges: tuple[tuple[int, Merge], ...]

    def __len__(self) -> int:
        return len(self.merges)


def stack_crops(crops: Sequence[Crop], pre: Preprocessing, batch_size: int) -> tuple[Part, ...]:
    """Stack crops into parts of at most `batch_size`, those of one padded size together.

    No crop is padded for the sake of larger ones, so predictions do not depend on the batch.
    """
    parts = []
    for start in range(0, len(crops), batch_size):
        groups: dict[Size, list[int]] = {}
        for place in range(start, min(start + batch_size, len(crops))):
            groups.setdefault(padded_size(crops[place].pixels), []).append(place)
        parts += [
            Part(
                images=stack_images([crops[place].pixels for place in places], pre),
                metas=tuple(crops[place].meta for place in places),
                places=tuple(places),
            )
            for places in groups.values()
        ]
    return tuple(parts)


def fit_image(image: LoadedImage, pre: Preprocessing) -> Crop:
    """Resize an image, or a tile of one, as the preprocessing asks for."""
    pixels = fit(to_tensor(image.pixels, pre.in_chans), image.size, pre)
    input_size = (pixels.shape[1], pixels.shape[2])
    return Crop(pixels, ImageMeta(path=image.path, size=image.size, input_size=input_size))


def whole_image(image: LoadedImage, pre: Preprocessing) -> CroppedImage:
    """Use a whole image as one crop; its full-size pixels are freed at once."""
    return CroppedImage(1, iter([fit_image(image, pre)]), _first)


def _first(results: Sequence[Any]) -> Any:  # noqa: ANN401 (one of muntin.results)
    return results[0]
