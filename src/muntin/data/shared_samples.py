# SPDX-License-Identifier: Apache-2.0
"""Images in memory that several processes of a machine see, and batches on their way to another.

The training processes of a machine keep decoded images once, not once each: each decodes a part of
them into memory without a name (memfd), which the others map by way of ``/proc``: nothing is left
when processes are killed, and none must have started another. Containers do not limit such memory,
as they do ``/dev/shm``, through which PyTorch passes batches.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle  # noqa: TID251 (between the processes of a training, never a file)
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.collectives import agree, gather_machine, machine_rank
from muntin.data.transforms import Sample
from muntin.devices import release_memory

if TYPE_CHECKING:
    from muntin.data.batches import Batch

_ALIGN = 64

_Kind = tuple[torch.Size, torch.dtype]
"""Of the pixels of an image."""

Read = Callable[[int], Sample | None]


class _Memory:
    """Memory without a name, which is written from its start on."""

    def __init__(self, size: int = 0) -> None:
        self.descriptor = os.memfd_create("muntin-images")
        self.size = size
        os.ftruncate(self.descriptor, max(size, 1))  # a process may have no images

    def append(self, part: bytes | memoryview) -> int:
        """Write a part, and return where it begins."""
        start = -(-self.size // _ALIGN) * _ALIGN
        self.size = start + _write(self.descriptor, part, start)
        return start

    def add(self, content: Sample | Batch | None) -> tuple[int, int]:
        """Write a sample or a batch, and return start and end of its pickled part."""
        file = io.BytesIO()
        _Writer(file, self).dump(content)
        return self.append(file.getbuffer()), self.size


def _write(descriptor: int, part: bytes | memoryview, place: int) -> int:
    view = memoryview(part).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], place + done)
    return done


def _bytes_of(tensor: Tensor) -> memoryview:
    view: memoryview = tensor.contiguous().numpy().reshape(-1).view(np.uint8).data
    return view


def _open(owner: int, descriptor: int) -> int | None:
    """Open the memory of a process of this machine; None if that is not possible."""
    try:
        return os.open(f"/proc/{owner}/fd/{descriptor}", os.O_RDWR)
    except OSError:
        return None


class _Writer(pickle.Pickler):
    """Writes tensors beside what it pickles."""

    def __init__(self, file: io.BytesIO, arena: _Memory) -> None:
        super().__init__(file, protocol=5)
        self.arena = arena

    def persistent_id(self, value: Any) -> Any:  # noqa: ANN401 (pickle's own)
        if not isinstance(value, Tensor):
            return None
        start = self.arena.append(_bytes_of(value)) if value.numel() else 0
        return start, value.numpy().dtype.str, tuple(value.shape)


class _Reader(pickle.Unpickler):
    """Reads tensors where `_Writer` has written them, without a copy."""

    def __init__(self, file: io.BytesIO, memory: mmap.mmap) -> None:
        super().__init__(file)
        self.memory = memory

    def persistent_load(self, pid: Any) -> Tensor:  # noqa: ANN401 (pickle's own)
        start, dtype, shape = pid
        count = int(np.prod(shape))
        if not count:
            return torch.from_numpy(np.empty(shape, dtype))
        array = np.frombuffer(self.memory, dtype, count, start).reshape(shape)
        return torch.from_numpy(array)


Packed = tuple[Any, int, int]
"""What leads to the memory of a batch, and where its pickled part lies."""


def pack(batch: Batch) -> Packed:
    """Write a batch for another process, all tensors to one memory: passing each takes longer."""
    arena = _Memory()
    try:
        place = arena.add(batch)
        return (reduction.DupFd(arena.descriptor), *place)
    finally:
        os.close(arena.descriptor)


def unpack(packed: Packed) -> Batch:
    """Give a batch whose tensors lie where they were written; once only."""
    handle, start, end = packed
    memory = _map(handle.detach(), end)
    assert memory is not None, "it was opened by who wrote it"
    found: Batch = _Reader(io.BytesIO(memory[start:end]), memory).load()
    return found


class SharedSamples(Sequence[Sample | None]):
    """Samples in the memory of all processes of a machine; `stacked` are their pixels, if equal.

    `places` has a row for each sample: which memory, start and end of its pickled part.
    """

    def __init__(
        self, memories: list[mmap.mmap], places: NDArray[np.int64], stacked: Tensor | None
    ) -> None:
        self.memories, self.places, self.stacked = memories, places, stacked

    def __len__(self) -> int:
        """Number of samples, readable or not."""
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 (an integer only)
        """Give a sample whose tensors must not be changed; None if it could not be read."""
        number, start, end = self.places[index]
        memory = self.memories[number]
        found: Sample | None = _Reader(io.BytesIO(memory[start:end]), memory).load()
        if found is None or self.stacked is None:
            return found
        return found._replace(pixels=self.stacked[index])


def can_share() -> bool:
    """Whether several processes of this machine can keep images together: on Linux."""
    return machine_rank()[1] > 1 and hasattr(os, "memfd_create")


def share_samples(count: int, read: Read, *, stack: bool) -> SharedSamples | None:
    """Read `count` samples, each in one process of this machine; all processes must call it.

    With `stack`, the pixels are one tensor if all have one shape. None if the processes cannot see
    each other's memory; what reading raises in one of them, all raise.
    """
    rank, size = machine_rank()
    own = range(rank, count, size)
    places = np.zeros((len(own), 3), np.int64)
    held: list[Sample | None] = []
    arena = _Memory()

    def decode() -> set[_Kind]:
        kinds: set[_Kind] = set()
        with ThreadPoolExecutor(2) as pool:
            for row, sample in enumerate(pool.map(read, own, chunksize=64)):
                if stack:
                    held.append(sample)
                    if sample is not None:
                        kinds.add((sample.pixels.shape, sample.pixels.dtype))
                else:
                    places[row] = rank, *arena.add(sample)
        return kinds

    try:
        kinds = set[_Kind]().union(*agree(decode))
        stacked = _stack(kinds.pop(), held, own, count) if len(kinds) == 1 else None
        for row, sample in enumerate(held):
            if sample is not None and stacked is not None:
                sample = sample._replace(pixels=sample.pixels[:0])
            places[row], held[row] = (rank, *arena.add(sample)), None
        release_memory()  # of the images that were held
        parts = gather_machine((os.getpid(), arena.descriptor, arena.size, places))
        memories = [_map(_open(pid, descriptor), length) for pid, descriptor, length, _ in parts]
        # Before the end of any: all have opened what they need.
        if not all(gather_machine(None not in memories)):
            return None
    finally:
        os.close(arena.descriptor)
    rows = np.zeros((count, 3), np.int64)
    for number, part in enumerate(parts):
        rows[number::size] = part[3]
    return SharedSamples([each for each in memories if each is not None], rows, stacked)


def _stack(kind: _Kind, held: list[Sample | None], own: range, count: int) -> Tensor | None:
    """The pixels of all images, of which this process writes its own."""
    shape, dtype = kind
    length = shape.numel() * dtype.itemsize
    arena = _Memory(count * length) if own.start == 0 else None
    try:
        owner = gather_machine((os.getpid(), -1 if arena is None else arena.descriptor))[0]
        opened = _open(*owner)
        for index, sample in zip(own, held, strict=True):
            if sample is not None and opened is not None:
                _write(opened, _bytes_of(sample.pixels), index * length)
        # Rows of images that could not be read stay 0.
        memory = _map(opened, count * length)
        if not all(gather_machine(memory is not None)) or memory is None:
            return None
    finally:
        if arena is not None:
            os.close(arena.descriptor)
    return torch.frombuffer(memory, dtype=dtype, count=count * shape.numel()).view(count, *shape)


def _map(descriptor: int | None, length: int) -> mmap.mmap | None:
    """Map memory and close its descriptor; what is written here by mistake stays here."""
    if descriptor is None:
        return None
    try:
        return mmap.mmap(descriptor, max(length, 1), access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
