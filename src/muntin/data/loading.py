# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a listing to batches: decoded once when it fits, repeatable, cheap for tiny pictures."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from muntin.data.randomness import derive_seed, draw_order, draw_uniforms
from muntin.data.storing import PictureStore
from muntin.data.transforms import (
    BATCH_DRAWS,
    AugmentConfig,
    Preprocessing,
    augment_batch,
    augment_picture,
    augments_whole_batches,
    build_augmentation,
    fit_picture,
)
from muntin.errors import DataError
from muntin.shapes import Float, Int, Size, UInt8

__all__ = ["Batch", "EvalLoader", "TrainLoader"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Pictures and where they stand in their listing.

    Attributes:
        images: uint8, not yet normalised.
        indices: Place of each picture in the listing.
        weights: 1 for a picture that counts; 0 for one that could not be read, or that only fills
            up the share of a process.
        num_real: Pictures of the whole batch, over all processes.
    """

    images: UInt8[Tensor, "B C H W"]
    indices: Int[Tensor, " B"]
    weights: Float[Tensor, " B"]
    num_real: int


UNREAD = -1.0
"""Stands for the weight of a picture that a worker could not read."""


class _Pictures(Dataset[tuple[Tensor, int, float]]):
    """One picture at a time, for worker processes; the key says what to do with it."""

    def __init__(self, store: PictureStore, augment: AugmentConfig | None, seed: int) -> None:
        self.store = store
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: tuple[int, int, float, Size]) -> tuple[Tensor, int, float]:
        epoch, index, weight, size = key
        pre = _with_size(self.store.pre, size)
        try:
            picture = self.store.picture(index)
        except DataError:
            picture = None
        if picture is None:
            return torch.zeros(pre.in_chans, *size, dtype=torch.uint8), index, UNREAD
        if self.augment is None:
            return fit_picture(picture, pre), index, weight
        transform = build_augmentation(self.augment, pre)
        seed = derive_seed(self.seed, epoch, index)
        return augment_picture(transform, picture, seed), index, weight


def _collate(rows: list[tuple[Tensor, int, float]]) -> Batch:
    images, indices, weights = zip(*rows, strict=True)
    return Batch(
        images=torch.stack(images),
        indices=torch.tensor(indices),
        weights=torch.tensor(weights),
        num_real=len(rows),
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
        augment: AugmentConfig,
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
        return self.store.stacked is not None and augments_whole_batches(self.augment)

    def steps(self, epoch: int, first: int) -> list[_Share]:
        """Give what this process reads in each step of an epoch."""
        order = self.usable[draw_order(self.seed, epoch, len(self.usable), self._shares)]
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
        places = torch.from_numpy(indices)
        uniforms = draw_uniforms(self.seed, epoch, indices, BATCH_DRAWS)
        pre = _with_size(self.store.pre, size)
        return Batch(
            images=augment_batch(stacked[places], uniforms, self.augment, pre),
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
