# SPDX-License-Identifier: Apache-2.0
"""From a listing to batches: decoded once when it fits, repeatable, cheap for tiny images."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from muntin.data.batches import Batch, fit, stack_images
from muntin.data.cache import ImageCache
from muntin.data.classification_transforms import BATCH_DRAWS
from muntin.data.randomness import derive_seed, draw_order, draw_uniforms
from muntin.data.shared_samples import Packed, pack, unpack
from muntin.data.transforms import Augmentation, Preprocessing, Sample
from muntin.devices import granted_cores
from muntin.errors import DataError
from muntin.samples import Listing
from muntin.shapes import Size

_MOST_THREADS = 4  # each may hold an image of any size

_FAILED = re.compile(r"DataLoader worker .*(killed|exited)|unable to .*(shm|shared|mmap|file <)")

UNREAD = -1.0
"""Weight of an image that a worker could not read."""


class Processes(NamedTuple):
    """Who reads: one of `world` training processes, each with its own workers.

    Each process gets a part of every batch, or of the batches. Workers decode or augment images one
    by one. Without any, so many threads do that, by default one a core.
    """

    rank: int = 0
    world: int = 1
    workers: int = 0
    threads: int = 0


ALONE = Processes()


class _Item(NamedTuple):
    sample: Sample
    place: int
    weight: float


_Key = tuple[int, int, float, bool]
"""Epoch, image, weight, and whether it may be mixed with other images."""


class _Images(Dataset[_Item]):
    pool: ThreadPoolExecutor | None = None

    def __init__(
        self, store: ImageCache, augment: Augmentation | None, seed: int, size: Size
    ) -> None:
        self.store = store
        self.augment = augment
        self.seed = seed
        self.pre = replace(store.pre, img_size=size)

    def __getitems__(self, keys: list[_Key]) -> list[_Item]:
        """Read the images of a batch, which is how PyTorch asks for them."""
        return [*(map if self.pool is None else self.pool.map)(self.__getitem__, keys)]

    def __getitem__(self, key: _Key) -> _Item:
        epoch, index, weight, mixed = key
        pre, size = self.pre, self.pre.img_size
        kept = self._load(index)
        if kept is None:
            blank = torch.zeros(pre.in_chans, *size, dtype=pre.pixel_type)
            return _Item(Sample(blank, size, self.store.empty_target(size)), index, UNREAD)
        if self.augment is None:
            pixels = fit(kept.pixels, kept.size, pre, kept.target)
            return _Item(kept._replace(pixels=pixels), index, weight)
        seed = derive_seed(self.seed, epoch, index)
        skeleton = self.store.listing.skeleton
        others = self.augment.draw_others(seed, len(self.store)) if mixed else ()
        if not others:
            return _Item(self.augment.augment(kept, pre, seed, skeleton), index, weight)
        samples = [kept, *(self._load(other) or kept for other in others)]
        return _Item(self.augment.mix(samples, pre, seed, skeleton), index, weight)

    def _load(self, index: int) -> Sample | None:
        """Load an image; None if it cannot be read, which is reported when its turn comes."""
        try:
            return self.store.load(index)
        except DataError:
            return None


def _collate(rows: list[_Item], pre: Preprocessing) -> Batch | Packed:
    samples, indices, weights = zip(*rows, strict=True)
    images, originals, targets = zip(*samples, strict=True)
    batch = Batch(
        images=stack_images(list(images), pre),
        sizes=torch.tensor([image.shape[1:] for image in images]),
        originals=torch.tensor(originals),
        indices=torch.tensor(indices),
        weights=torch.tensor(weights),
        num_real=len(rows),
        targets=None if targets[0] is None else targets,
        pad_to=pre.pad_to,
    )
    # Here, where a failure reaches the process that trains: the thread that sends batches would
    # drop this one, and the training would wait for it forever.
    return pack(batch) if get_worker_info() and hasattr(os, "memfd_create") else batch


_Share = tuple[NDArray[np.int64], NDArray[np.float32], int]
"""What a process reads in a step: indices, weights, and the images of the whole batch."""


@dataclass(eq=False)
class TrainLoader:
    """The batches of each epoch, from any step on.

    `batch_size` counts images over all processes; `shares` is how often each image is wanted
    (`draw_order`). A `view` is an independently augmented version, in the order of view 0.
    """

    store: ImageCache
    augment: Augmentation
    _: KW_ONLY
    batch_size: int
    seed: int
    shares: NDArray[np.float64] | None = None
    processes: Processes = ALONE
    view: int = 0

    def __post_init__(self) -> None:
        """Leave out the images that could not be read."""
        self._augment_seed = derive_seed(self.seed, self.view) if self.view else self.seed
        unreadable = self.store.unreadable
        self.usable = np.array([i for i in range(len(self.store)) if i not in unreadable])
        self._shares = None if self.shares is None else self.shares[self.usable]

    def __len__(self) -> int:
        """Steps of an epoch; the last one may be short."""
        return -(-len(self.usable) // self.batch_size)

    @property
    def whole_batches(self) -> bool:
        """Whether images are augmented a batch at a time."""
        return self.store.stacked is not None and self.augment.batch_transform is not None

    def steps(self, epoch: int, first: int) -> list[_Share]:
        """Give what this process reads in each step of an epoch."""
        rank, world = self.processes[:2]
        order = self.usable[draw_order(self.seed, epoch, len(self.usable), self._shares)]
        if self.augment.groups_by_shape:
            order = gather_shapes(order, self.store.listing, self.batch_size)
        parts = []
        for start in range(first * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            # Every process gets equally many; what is missing is repeated with weight 0.
            share = -(-len(batch) // world)
            places = np.arange(rank * share, (rank + 1) * share)
            weights = (places < len(batch)).astype(np.float32)
            parts.append((batch[np.minimum(places, len(batch) - 1)], weights, len(batch)))
        return parts

    def batches(
        self, epoch: int, first: int, size: Size, *, mixed: bool = False
    ) -> Generator[Batch, None, None]:
        """Give the batches of an epoch, counted from 0, from step `first` on.

        `mixed` says whether images may be mixed with others, where the augmentation does so.
        """
        shares = self.steps(epoch, first)
        if self.whole_batches:
            for share in shares:
                yield self._batch(epoch, share, size)
            return
        keys = (
            [(epoch, int(i), float(w), mixed) for i, w in zip(indices, weights, strict=True)]
            for indices, weights, _ in shares
        )
        images = _Images(self.store, self.augment, self._augment_seed, size)
        loaded = _run_workers(images, keys, self.processes)
        for batch, share in zip(loaded, shares, strict=True):
            yield replace(batch, num_real=share[2])

    def _batch(self, epoch: int, share: _Share, size: Size) -> Batch:
        indices, weights, num_real = share
        stacked, transform = self.store.stacked, self.augment.batch_transform
        assert stacked is not None, "whole batches need stacked images"
        assert transform is not None, "and a transform for them"
        places = torch.from_numpy(indices)
        uniforms = draw_uniforms(self._augment_seed, epoch, indices, BATCH_DRAWS)
        pre = replace(self.store.pre, img_size=size)
        images = transform(stacked[places], uniforms, pre)
        sides = torch.tensor([images.shape[-2:]]).expand(len(places), 2)
        return Batch(
            images=images,
            sizes=sides,
            originals=sides,
            indices=places,
            weights=torch.from_numpy(weights),
            num_real=num_real,
        )


@dataclass(eq=False)
class EvalLoader:
    """The images of a listing in order, fitted as for prediction; processes take turns by batch.

    With a `limit` only so many of them, the first ones; those before `first` are left out.
    """

    store: ImageCache
    _: KW_ONLY
    batch_size: int
    processes: Processes = ALONE
    limit: int | None = None
    first: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches; an image that cannot be read has weight 0."""
        rank, world = self.processes[:2]
        count = len(range(len(self.store))[: self.limit])
        starts = range(self.first, count, self.batch_size)[rank::world]
        keys = (
            [(0, index, 1.0, False) for index in range(start, min(start + self.batch_size, count))]
            for start in starts
        )
        images = _Images(self.store, None, 0, self.store.pre.img_size)
        who = self.processes._replace(workers=0) if self.store.in_memory else self.processes
        return _run_workers(images, keys, who)


def _run_workers(images: _Images, keys: Iterator[list[_Key]], who: Processes) -> Iterator[Batch]:
    workers = who.workers
    threads = who.threads or min(_MOST_THREADS, granted_cores() // who.world)
    # Small images in memory are done before a thread has been told of them.
    if not workers and threads > 1 and not images.store.in_memory:
        images.pool = ThreadPoolExecutor(threads)
    loader = DataLoader(
        images,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=partial(_collate, pre=images.store.pre),
        prefetch_factor=2 if workers else None,
        worker_init_fn=_leave_signals,
        # Spawned processes would spawn theirs, which cannot have the images that all share.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    others = set(multiprocessing.active_children())
    loaded = iter(loader)
    started = set(multiprocessing.active_children()) - others
    try:
        for one in loaded:
            batch = one if isinstance(one, Batch) else unpack(one)
            unread = batch.weights == UNREAD
            if unread.any():
                images.store.retry(batch.indices[unread].tolist())
                batch = replace(batch, weights=batch.weights.clamp(min=0))
            yield batch
    finally:
        del loaded  # asks the workers to end, and waits for some seconds
        if images.pool is not None:
            images.pool.shutdown()
        for process in started:
            # It hangs: the training would wait for it when it ends. PyTorch reports its end as
            # an error, of whatever runs when the signal arrives, so that is waited for here.
            if process.is_alive():
                with contextlib.suppress(RuntimeError):
                    process.kill()
                    process.join()
        images.store.warn()


def describe_failure(error: BaseException) -> str:
    """Describe in one line that a worker ended or got no memory; empty for another error."""
    found = [line for line in str(error).splitlines() if _FAILED.search(line)]
    if not found:
        return ""
    return (
        f"the processes that read images must go on, got: {found[-1].strip()} Give them more "
        f"memory, or read in the training process: --set machine.workers=0."
    )


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the one that trains answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler tells the whole group; the run saves itself first and then ends its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def gather_shapes(order: NDArray[np.int64], listing: Listing, batch_size: int) -> NDArray[np.int64]:
    """Bring images in random order together by shape, so that batches need little padding.

    They are sorted by shape inside chunks of 16 batches, the batches of a chunk in random order
    again. Where sizes are not known, nothing changes.
    """
    sizes = [listing.entries[index].size for index in order]
    ratios = [1.0 if size is None else size[1] / size[0] for size in sizes]
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
