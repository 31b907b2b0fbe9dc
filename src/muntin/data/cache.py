# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A cache of decoded images, and the options of reading."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from muntin.data.archives import read_bytes
from muntin.data.box_targets import to_box_targets
from muntin.data.data_config import DataConfig
from muntin.data.decoding import decode
from muntin.data.keypoint_transforms import crop_box, crop_region, to_keypoints
from muntin.data.label_files import read_mask
from muntin.data.segmentation_transforms import resize_factor, resize_labels
from muntin.data.transforms import Preprocessing, letterbox_scale, resize, to_tensor
from muntin.errors import DataError, MuntinWarning, shorten
from muntin.samples import Entry, Listing
from muntin.shapes import Size, UInt8
from muntin.targets import BoxTargets, Keypoints, LabelMap, Target

__all__ = [
    "CachedImage",
    "ImageCache",
]


class CachedImage(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: No larger than training and evaluation can use.
        size: (height, width) of the original.
        targets: Its objects or the classes of its pixels, in pixels of `pixels`; None where the
            task has neither.
    """

    pixels: UInt8[Tensor, "C H W"]
    size: Size
    targets: Target | None


class ImageCache:
    """The decoded images of a listing, kept in memory when they fit.

    Images are kept no larger than training and evaluation can use. One that cannot be read is
    an error in strict mode, and otherwise noted in `unreadable` and given weight 0.

    Args:
        listing: Which images.
        pre: Sizes and channels wanted.
        config: Memory allowed, and strictness.
        zoom: How many times `img_size` the shorter side may be before it is scaled down.
        approximate: Whether large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where that
            leaves enough pixels: faster, and other pixels than prediction sees. Only where
            nothing is known of an image but its class.
        full_labels: Whether labels of pixels are kept in the size of the original, as scoring
            compares them, and not in that of the cached image, as training needs them.

    Raises:
        DataError: Strict, and an image cannot be read; or none can be read.
    """

    def __init__(
        self,
        listing: Listing,
        pre: Preprocessing,
        config: DataConfig,
        *,
        zoom: float = 1.5,
        approximate: bool = False,
        full_labels: bool = False,
    ) -> None:
        self.listing = listing
        self.pre = pre
        self.strict = config.strict
        self.unreadable: dict[int, str] = {}
        self._full_labels = full_labels
        self._limit: Size = (round(pre.img_size[0] * zoom), round(pre.img_size[1] * zoom))
        self._hint = max(self._limit) if approximate and pre.fit == "center_crop" else None
        self._kept: list[CachedImage | None] | None = None
        self._stacked: Tensor | None = None
        if self._fits(config.cache_mib):
            with ThreadPoolExecutor(2) as pool:
                self._kept = list(pool.map(self._read, range(len(listing)), chunksize=64))
            self._stacked = self._stack()
        if len(self.unreadable) == len(listing):
            message = (
                f"{listing.source} must hold images that can be read, got none of "
                f"{len(listing)} that can. {' '.join([*self.unreadable.values()][:1])} "
                f"See muntin check."
            )
            raise DataError(message)
        self._warned: set[int] = set()
        self.warn()

    def __len__(self) -> int:
        """Images, readable or not."""
        return len(self.listing)

    @property
    def in_memory(self) -> bool:
        """Whether the images were decoded in advance."""
        return self._kept is not None

    @property
    def stacked(self) -> UInt8[Tensor, "N C H W"] | None:
        """All images in one tensor, if they are in memory and of one size."""
        return self._stacked

    def warn(self) -> None:
        """Warn of images that could not be read since the last warning."""
        if self._warned != self.unreadable.keys():
            self._warned = set(self.unreadable)
            warnings.warn(self.describe_unreadable(), MuntinWarning, stacklevel=3)

    def retry(self, indices: Iterable[int]) -> None:
        """Read again what a worker process could not, to record it in this one.

        Raises:
            DataError: Strict, and an image cannot be read.
        """
        for index in indices:
            if index not in self.unreadable:
                self._read(index)

    def describe_unreadable(self) -> str:
        """Describe which images are left out."""
        places = sorted(self.unreadable)
        names = shorten(dict.fromkeys(self.listing.entries[i].path for i in places))
        unit = self.listing.unit
        return (
            f"{len(places)} of {len(self.listing)} {unit} in {self.listing.source} are left out, "
            f"as they or their annotations cannot be read: {names}. {self.unreadable[places[0]]} "
            f"See muntin check."
        )

    def load(self, index: int) -> CachedImage | None:
        """Return an image with its targets; None if it cannot be read."""
        return self._read(index, keep=False) if self._kept is None else self._kept[index]

    def image(self, index: int) -> UInt8[Tensor, "C H W"] | None:
        """Return the pixels of an image; None if it cannot be read."""
        kept = self.load(index)
        return None if kept is None else kept.pixels

    def _fits(self, cache_mib: int) -> bool:
        if not len(self.listing):
            return False
        step = max(1, len(self.listing) // 16)
        sizes = [self._read(i) for i in range(0, len(self.listing), step)]
        mean = np.mean([0 if kept is None else self._count_bytes(kept) for kept in sizes])
        return bool(mean * len(self.listing) <= cache_mib * 2**20)

    def _count_bytes(self, kept: CachedImage) -> int:
        size = kept.pixels.numel()
        # Small labels, of training, are not counted: they take a third of what the pixels take.
        if self._full_labels and isinstance(kept.targets, LabelMap):
            size += kept.targets.labels.nbytes
        return size

    def empty_target(self, size: Size) -> Target | None:
        """Give the target of an image of `size` that cannot be read; it is not learnt from."""
        match self.listing.kind:
            case "classification":
                return None
            case "detection":
                return BoxTargets.empty(size)
            case "segmentation":
                return LabelMap.empty(size)
        assert self.listing.skeleton is not None, "data sets with keypoints have a skeleton"
        return Keypoints.empty(len(self.listing.skeleton.names))

    def _stack(self) -> Tensor | None:
        """Stack images of equal size into one tensor, from which batches are indexed."""
        if self.pre.fit != "center_crop":
            return None
        kept = self._kept or []
        shapes = {image.pixels.shape for image in kept if image is not None}
        if len(shapes) != 1:
            return None
        blank = torch.zeros(shapes.pop(), dtype=torch.uint8)
        stacked = torch.stack([blank if image is None else image.pixels for image in kept])
        self._kept = [
            None if p is None else p._replace(pixels=stacked[i]) for i, p in enumerate(kept)
        ]
        return stacked

    def _read(self, index: int, *, keep: bool = True) -> CachedImage | None:
        """Decode an image; without `keep` only the transform resizes it: once is enough."""
        entry = self.listing.entries[index]
        try:
            data = read_bytes(self.listing.source, entry.path)
            decoded = decode(data, where=entry.path, shrink_hint=self._hint)
            image = to_tensor(decoded, self.pre.in_chans)
            original: Size = (image.shape[1], image.shape[2])
            _require_size(entry, original)
            targets: Target | None
            if entry.box is not None:
                pixels, targets = self._cut_out(entry, entry.box, image)
            else:
                pixels = self._shrink(image) if keep or self.pre.fit != "center_crop" else image
                targets = self._read_targets(entry, pixels, original)
        except (DataError, OSError) as error:
            if self.strict:
                message = f"{error} data.strict=true makes this an error. See muntin check."
                raise DataError(message) from error
            self.unreadable[index] = str(error)
            return None
        return CachedImage(pixels=pixels, size=original, targets=targets)

    def _cut_out(
        self, entry: Entry, box: tuple[float, ...], image: Tensor
    ) -> tuple[Tensor, Target | None]:
        """The region of an image around an instance, and its keypoints."""
        assert entry.objects is not None, "an instance is one of the objects"
        frame = crop_box(box, self.pre)
        region = crop_region(image, frame, self.pre)
        return region.pixels, to_keypoints(entry.objects, entry.instance, frame, region)

    def _read_targets(self, entry: Entry, pixels: Tensor, original: Size) -> Target | None:
        size = (pixels.shape[1], pixels.shape[2])
        if self.listing.encoding is None:
            return None if entry.objects is None else to_box_targets(entry.objects, original, size)
        labels = read_mask(self.listing, entry).labels
        if labels.shape != original:
            message = (
                f"The mask {entry.mask!r} must have the size of its image, {original}, got "
                f"{labels.shape} (height, width). Make it again."
            )
            raise DataError(message)
        full = torch.from_numpy(labels)
        return LabelMap(full if self._full_labels else resize_labels(full, size))

    def _shrink(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        if self.pre.fit == "sliding_window":
            scale = resize_factor((height, width), self.pre)
        elif self.pre.fit == "letterbox":
            scale = letterbox_scale((height, width), self._limit)
        else:
            scale = max(self._limit[0] / height, self._limit[1] / width)
        if scale >= 1:
            return image
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return resize(image, size, "bilinear")


def _require_size(entry: Entry, size: Size) -> None:
    """Refuse an image whose annotations are for another size."""
    if entry.objects is not None and entry.size not in (None, size):
        message = (
            f"{entry.path!r} must have the size in its annotations, {entry.size}, got "
            f"{size} (height, width): its boxes would be wrong. Correct one of them."
        )
        raise DataError(message)
