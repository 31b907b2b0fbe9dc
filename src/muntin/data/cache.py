# SPDX-License-Identifier: Apache-2.0
"""A cache of decoded images with their annotations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from muntin.collectives import from_first, gather_objects
from muntin.data.data_config import DataConfig
from muntin.data.entry_images import read_pixels
from muntin.data.joint_transforms import Window, to_box_targets
from muntin.data.keypoint_transforms import crop_box, crop_region, to_keypoints
from muntin.data.mask_values import LabelFile, read_mask
from muntin.data.shared_samples import can_share, share_samples
from muntin.data.transforms import Preprocessing, Sample, resize, scaled_size, to_tensor
from muntin.errors import DataError, MuntinWarning, shorten
from muntin.samples import Entry, Listing
from muntin.shapes import Size
from muntin.targets import BoxTargets, Keypoints, LabelMap, Target

ZOOM = 1.5
"""How many times `img_size` the shorter side of a cached image may be."""


class ImageCache:
    """The decoded images of a listing, kept in memory when they fit.

    Images are kept no larger than training and evaluation can use. One that cannot be read is an
    error in strict mode, and otherwise noted in `unreadable`, by index, and given weight 0. Where
    only `training` is served, masks have the size of the cached image rather than that of the
    original, which scoring compares, and large JPEGs of a single label are decoded at 1/2, 1/4 or
    1/8 of their size where that leaves enough pixels: faster, and other pixels than prediction
    sees. `as_if_kept` gives the pixels that a cache in memory would, for a part of one that is
    elsewhere. `stacked` holds all images, (N, C, H, W), if they are in memory and of one size.
    With `shared`, all training processes make the cache at once; those of a machine keep its images
    together, and none may change them.
    """

    def __init__(
        self,
        listing: Listing,
        pre: Preprocessing,
        config: DataConfig,
        *,
        training: bool = False,
        shared: bool = False,
        mask_reader: Callable[[Listing, Entry], LabelFile] = read_mask,
        as_if_kept: bool = False,
    ) -> None:
        self.listing = listing
        self.pre = pre
        self.strict = config.strict
        self.unreadable: dict[int, str] = {}
        self._training = training
        self._as_if_kept = as_if_kept
        self._read_mask = mask_reader
        limit = (round(pre.img_size[0] * ZOOM), round(pre.img_size[1] * ZOOM))
        self._limit = replace(pre, img_size=limit)
        self._hint = max(limit) if training and pre.fit == "center_crop" else None
        self._kept: Sequence[Sample | None] | None = None
        self.stacked: Tensor | None = None
        fits = partial(self.fits, config.cache_mib)
        if from_first(fits) if shared else fits():
            self._keep(shared)
        if shared:
            for part in gather_objects(self.unreadable):
                self.unreadable.update(part)
        self.refuse_unreadable()
        self._warned: set[int] = set()
        self.warn()

    def __len__(self) -> int:
        """Images, readable or not."""
        return len(self.listing)

    def refuse_unreadable(self) -> None:
        """Raise a `DataError` if no image could be read."""
        if len(self.unreadable) == len(self.listing):
            message = (
                f"{self.listing.source} must hold images that can be read, got none of "
                f"{len(self.listing)} that can. {' '.join([*self.unreadable.values()][:1])} "
                f"See muntin check."
            )
            raise DataError(message)

    @property
    def in_memory(self) -> bool:
        """Whether the images were decoded in advance."""
        return self._kept is not None

    def warn(self) -> None:
        """Warn of images that are left out, if there are more than at the last warning."""
        if self._warned == self.unreadable.keys():
            return
        self._warned = set(self.unreadable)
        places, listing = sorted(self.unreadable), self.listing
        names = shorten(dict.fromkeys(listing.entries[i].path for i in places))
        text = (
            f"{len(places)} of {len(listing)} {listing.unit} in {listing.source} are left out, "
            f"as they or their annotations cannot be read: {names}. {self.unreadable[places[0]]} "
            f"See muntin check."
        )
        warnings.warn(text, MuntinWarning, stacklevel=3)

    def retry(self, indices: Iterable[int]) -> None:
        """Read again what a worker process could not, to record it in this one."""
        for index in indices:
            if index not in self.unreadable:
                self._read(index)

    def load(self, index: int) -> Sample | None:
        """Return an image with its targets; None if it cannot be read."""
        return self._read(index, keep=self._as_if_kept) if self._kept is None else self._kept[index]

    def _keep(self, shared: bool) -> None:
        """Decode all images."""
        if shared and can_share():
            cropped = self.pre.fit == "center_crop"
            together = share_samples(len(self.listing), self._read, stack=cropped)
            if together is not None:
                self._kept, self.stacked = together, together.stacked
                return
            text = "processes cannot see each other's memory: each keeps the images of the data set"
            warnings.warn(text, MuntinWarning, stacklevel=3)
        with ThreadPoolExecutor(2) as pool:
            self._kept = list(pool.map(self._read, range(len(self.listing)), chunksize=64))
        self.stacked = self._stack()

    def fits(self, cache_mib: int) -> bool:
        """Whether so many MiB would hold the decoded images, by the size of some of them."""
        if not len(self.listing):
            return False
        step = max(1, len(self.listing) // 16)
        looks = [self._read(i, masks=False) for i in range(0, len(self.listing), step)]
        # Small labels, of training, are not counted: they take a third of what the pixels take.
        labels = 2 if self.listing.encoding is not None and not self._training else 0
        found = [one.pixels.nbytes + labels * math.prod(one.size) for one in looks if one]
        return sum(found) / len(looks) * len(self.listing) <= cache_mib * 2**20

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
        kept = self._kept or []
        shapes = {image.pixels.shape for image in kept if image is not None}
        if self.pre.fit != "center_crop" or len(shapes) != 1:
            return None
        blank = torch.zeros(shapes.pop(), dtype=self.pre.pixel_type)
        stacked = torch.stack([blank if image is None else image.pixels for image in kept])
        self._kept = [
            None if p is None else p._replace(pixels=stacked[i]) for i, p in enumerate(kept)
        ]
        return stacked

    def _read(self, index: int, *, keep: bool = True, masks: bool = True) -> Sample | None:
        """Decode an image; without `keep` only the transform resizes it: once is enough."""
        entry = self.listing.entries[index]
        try:
            labels = None
            if masks and self.listing.encoding is not None:
                labels = torch.from_numpy(self._read_mask(self.listing, entry).labels)
            decoded, _ = read_pixels(
                self.listing.source,
                entry,
                self.pre.reading,
                size=None if labels is None else (labels.shape[0], labels.shape[1]),
                shrink_hint=self._hint,
            )
            pixels = to_tensor(decoded, self.pre.in_chans)
            original: Size = (pixels.shape[1], pixels.shape[2])
            if entry.objects is not None and entry.size not in (None, original):
                message = (
                    f"{entry.path!r} must have the size in its annotations, {entry.size}, got "
                    f"{original} (height, width): its boxes would be wrong. Correct one of them."
                )
                raise DataError(message)
            if entry.box is not None:
                return self._cut_out(entry, entry.box, pixels)
            if keep or self.pre.fit != "center_crop":
                pixels = self._shrink(pixels)
            return Sample(pixels, original, self._read_target(entry, pixels, original, labels))
        except (DataError, OSError) as error:
            if self.strict:
                message = f"{error} data.strict=true makes this an error. See muntin check."
                raise DataError(message) from error
            self.unreadable[index] = str(error)
            return None

    def _cut_out(self, entry: Entry, box: tuple[float, ...], image: Tensor) -> Sample:
        assert entry.objects is not None, "an instance is one of the objects"
        frame = crop_box(box, self.pre)
        region = crop_region(image, frame, self.pre)
        keypoints = to_keypoints(entry.objects, entry.instance, frame, region)
        return Sample(region.pixels, (image.shape[1], image.shape[2]), keypoints)

    def _read_target(
        self, entry: Entry, pixels: Tensor, original: Size, labels: Tensor | None
    ) -> Target | None:
        size = (pixels.shape[1], pixels.shape[2])
        if self.listing.encoding is None:
            return None if entry.objects is None else to_box_targets(entry.objects, original, size)
        if labels is None:
            return None
        if labels.shape != original:
            message = (
                f"The mask {entry.mask!r} must have the size of its image, {original}, got "
                f"{tuple(labels.shape)} (height, width). Make it again."
            )
            raise DataError(message)
        if self._training:
            labels = Window((0, 0, *original), size).move_labels(labels)
        return LabelMap(labels)

    def _shrink(self, image: Tensor) -> Tensor:
        size = (image.shape[1], image.shape[2])
        if self.pre.fit == "center_crop":
            scale = max(self._limit.img_size[0] / size[0], self._limit.img_size[1] / size[1])
        else:
            scale = self._limit.scale_of(size)
        if scale >= 1:
            return image
        edges = self._limit.edge_size(size) if any(self._limit.edges) else None
        return resize(image, edges or scaled_size(size, scale), "bilinear")
