# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a listing to batches: decoded once when it fits, repeatable, cheap for tiny pictures."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from muntin.data.batches import Batch, pad_pictures
from muntin.data.fitting import fit
from muntin.data.joint import SceneConfig, augment_scene
from muntin.data.label_files import IGNORED
from muntin.data.label_maps import MapConfig, augment_map, scale_of
from muntin.data.randomness import derive_seed, draw_order, draw_uniforms
from muntin.data.storing import Kept, PictureStore
from muntin.data.subjects import SubjectConfig, augment_subject, fit_subject
from muntin.data.transforms import (
    BATCH_DRAWS,
    AugmentConfig,
    Preprocessing,
    augment_batch,
    augment_picture,
    augments_whole_batches,
    build_augmentation,
)
from muntin.errors import DataError
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.targets import BoxTargets, Keypoints, LabelMap, Target

__all__ = ["Augmentation", "EvalLoader", "TrainLoader"]

UNREAD = -1.0
"""Stands for the weight of a picture that a worker could not read."""


class _Item(NamedTuple):
    """One picture as a worker gives it."""

    pixels: Tensor
    original: Size
    place: int
    weight: float
    targets: Target | None


Augmentation = AugmentConfig | SceneConfig | MapConfig | SubjectConfig


class _Pictures(Dataset[_Item]):
    """One picture at a time, for worker processes; the key says what to do with it."""

    def __init__(self, store: PictureStore, augment: Augmentation | None, seed: int) -> None:
        self.store = store
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: tuple[int, int, float, Size]) -> _Item:
        epoch, index, weight, size = key
        pre = _with_size(self.store.pre, size)
        try:
            kept = self.store.look(index)
        except DataError:
            kept = None
        if kept is None:
            blank = torch.zeros(pre.in_chans, *size, dtype=torch.uint8)
            return _Item(blank, size, index, UNREAD, _no_targets(self.store, size))
        pixels, targets = self._prepare(kept, pre, derive_seed(self.seed, epoch, index))
        return _Item(pixels, kept.size, index, weight, targets)

    def _prepare(self, kept: Kept, pre: Preprocessing, seed: int) -> tuple[Tensor, Target | None]:
        if self.augment is None:
            if isinstance(kept.targets, Keypoints):
                frame = kept.targets.frame.double().numpy()
                return fit_subject(kept.pixels, frame, pre), kept.targets
            return fit(kept.pixels, kept.size, pre), kept.targets
        rng = np.random.default_rng(seed)
        if isinstance(self.augment, SceneConfig):
            assert isinstance(kept.targets, BoxTargets), "scenes have objects"
            skeleton = self.store.listing.skeleton
            return augment_scene(kept.pixels, kept.targets, self.augment, pre, rng, skeleton)
        if isinstance(self.augment, MapConfig):
            assert isinstance(kept.targets, LabelMap), "maps have labels"
            scale = scale_of(kept.size, pre) * kept.size[0] / kept.pixels.shape[1]
            return augment_map(kept.pixels, kept.targets, self.augment, pre, scale, rng)
        if isinstance(self.augment, SubjectConfig):
            assert isinstance(kept.targets, Keypoints), "subjects have keypoints"
            skeleton = self.store.listing.skeleton
            assert skeleton is not None, "listings of subjects have a skeleton"
            return augment_subject(kept.pixels, kept.targets, self.augment, skeleton, pre, rng)
        transform = build_augmentation(self.augment, pre)
        return augment_picture(transform, kept.pixels, seed), None


def _no_targets(store: PictureStore, size: Size) -> Target | None:
    """What is known of a picture that cannot be read, for tasks with objects or maps."""
    if store.listing.coding is not None:
        return LabelMap(torch.full(size, IGNORED, dtype=torch.int16))
    if store.listing.skeleton is not None and store.listing.entries[0].subject >= 0:
        count = len(store.listing.skeleton.names)
        return Keypoints(
            points=torch.zeros(count, 2),
            known=torch.zeros(count, dtype=torch.bool),
            frame=torch.tensor([0.0, 0.0, 1.0, 1.0]),
        )
    if store.listing.entries[0].objects is None:
        return None
    return BoxTargets(
        boxes=torch.zeros(0, 4),
        class_ids=torch.zeros(0, dtype=torch.long),
        ignored=torch.zeros(0, 4),
        layers=torch.zeros(0, *size, dtype=torch.int32),
        layer_of=torch.zeros(0, dtype=torch.long),
    )


def _collate(rows: list[_Item]) -> Batch:
    pictures, originals, indices, weights, targets = zip(*rows, strict=True)
    several = isinstance(targets[0], BoxTargets | LabelMap)  # sizes in a batch
    return Batch(
        images=pad_pictures(list(pictures)) if several else torch.stack(pictures),
        sizes=torch.tensor([picture.shape[1:] for picture in pictures]),
        originals=torch.tensor(originals),
        indices=torch.tensor(indices),
        weights=torch.tensor(weights),
        num_real=len(rows),
        targets=None if targets[0] is None else tuple(targets),
    )


def _with_size(pre: Preprocessing, size: Size) -> Preprocessing:
    return pre if size == pre.img_size else replace(pre, img_size=size)


_Share = tuple[NDArray[np.int64], NDArray[np.float32], int]
"""What a process reads in a step: indices, weights, and the pictures of the whole batch."""


class TrainLoader:
    """The batches of each epoch, from any step on.

    Args:
        store: The pictures.
        augment: What to do to them.
        batch_size: Pictures a step, over all processes.
        seed: Of the run.
        shares: How often each picture is wanted (`draw_order`); None = each once an epoch.
        rank: This process.
        world: Processes; each gets a part of every batch.
        workers: Worker processes for pictures that are not augmented in whole batches.
    """

    def __init__(
        self,
        store: PictureStore,
        augment: Augmentation,
        *,
        batch_size: int,
        seed: int,
        shares: NDArray[np.float64] | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.store = store
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.workers = workers
        self.usable = np.array([i for i in range(len(store)) if i not in store.unreadable])
        self._shares = None if shares is None else shares[self.usable]

    def __len__(self) -> int:
        """Steps of an epoch; the last one may be short."""
        return -(-len(self.usable) // self.batch_size)

    @property
    def whole_batches(self) -> bool:
        """Whether pictures are augmented a batch at a time."""
        return (
            self.store.stacked is not None
            and isinstance(self.augment, AugmentConfig)
            and augments_whole_batches(self.augment)
        )

    def steps(self, epoch: int, first: int) -> list[_Share]:
        """Give what this process reads in each step of an epoch."""
        order = self.usable[draw_order(self.seed, epoch, len(self.usable), self._shares)]
        if isinstance(self.augment, SceneConfig):
            order = gather_shapes(order, self.store.listing, self.batch_size)
        parts = []
        for start in range(first * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            # Every process gets equally many; what is missing is repeated with weight 0.
            share = -(-len(batch) // self.world)
            places = np.arange(self.rank * share, (self.rank + 1) * share)
            weights = (places < len(batch)).astype(np.float32)
            parts.append((batch[np.minimum(places, len(batch) - 1)], weights, len(batch)))
        return parts

    def batches(self, epoch: int, first: int, size: Size) -> Iterator[Batch]:
        """Give the batches of an epoch.

        Args:
            epoch: From 0.
            first: Step to begin with.
            size: (height, width) of the pictures.

        Yields:
            One batch a step.
        """
        shares = self.steps(epoch, first)
        if self.whole_batches:
            for share in shares:
                yield self._batch(epoch, share, size)
            return
        keys = (
            [(epoch, int(i), float(w), size) for i, w in zip(indices, weights, strict=True)]
            for indices, weights, _ in shares
        )
        pictures = _Pictures(self.store, self.augment, self.seed)
        for batch, share in zip(_run_workers(pictures, keys, self.workers), shares, strict=True):
            yield replace(batch, num_real=share[2])

    def _batch(self, epoch: int, share: _Share, size: Size) -> Batch:
        indices, weights, num_real = share
        stacked = self.store.stacked
        assert stacked is not None, "whole batches need stacked pictures"
        assert isinstance(self.augment, AugmentConfig), "scenes are read one by one"
        places = torch.from_numpy(indices)
        uniforms = draw_uniforms(self.seed, epoch, indices, BATCH_DRAWS)
        pre = _with_size(self.store.pre, size)
        images = augment_batch(stacked[places], uniforms, self.augment, pre)
        sides = torch.tensor([images.shape[-2:]]).expand(len(places), 2)
        return Batch(
            images=images,
            sizes=sides,
            originals=sides,
            indices=places,
            weights=torch.from_numpy(weights),
            num_real=num_real,
        )


class EvalLoader:
    """The pictures of a listing in order, fitted as prediction fits them.

    Args:
        store: The pictures.
        batch_size: Pictures a batch.
        rank: This process.
        world: Processes; they take turns by batch.
        workers: Worker processes.
    """

    def __init__(
        self,
        store: PictureStore,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.store = store
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.workers = workers

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches; a picture that cannot be read has weight 0."""
        size = self.store.pre.img_size
        starts = range(0, len(self.store), self.batch_size)[self.rank :: self.world]
        keys = (
            [
                (0, index, 1.0, size)
                for index in range(start, min(start + self.batch_size, len(self.store)))
            ]
            for start in starts
        )
        workers = 0 if self.store.in_memory else self.workers
        return _run_workers(_Pictures(self.store, None, 0), keys, workers)


def _run_workers(
    pictures: _Pictures,
    keys: Iterator[list[tuple[int, int, float, Size]]],
    workers: int,
) -> Iterator[Batch]:
    loader = DataLoader(
        pictures,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_leave_signals,
    )
    try:
        for batch in loader:
            unread = batch.weights == UNREAD
            if unread.any():
                pictures.store.read_again(batch.indices[unread].tolist())
                batch = replace(batch, weights=batch.weights.clamp(min=0))
            yield batch
    finally:
        pictures.store.warn()


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the one that trains answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler tells the whole group; the run saves itself first and then ends its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def gather_shapes(order: NDArray[np.int64], listing: Listing, batch_size: int) -> NDArray[np.int64]:
    """Bring pictures of similar shape together, so that batches need little padding.

    Args:
        order: Pictures in random order.
        listing: Says their sizes, where it knows them.
        batch_size: Pictures a step.

    Returns:
        The same pictures: sorted by shape inside chunks of 16 batches, the batches of a chunk in
        random order again. Where sizes are not known, nothing changes.
    """
    ratios = [_ratio(listing.entries[index].size) for index in order]
    if len(set(ratios)) <= 1:
        return order
    places: list[int] = []
    for start in range(0, len(order), 16 * batch_size):
        chunk = range(start, min(start + 16 * batch_size, len(order)))
        by_shape = sorted(chunk, key=lambda place: (ratios[place], place))
        batches = [by_shape[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        # `order` is random already, so the first place of a batch is; a short batch stays last.
        batches.sort(key=lambda batch: (len(batch) < batch_size, min(batch)))
        places += [place for batch in batches for place in batch]
    return order[places]


def _ratio(size: Size | None) -> float:
    return 1.0 if size is None else size[1] / size[0]
