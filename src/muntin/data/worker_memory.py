# SPDX-License-Identifier: Apache-2.0
"""Shared memory between the processes that read images and the one that trains.

Batches of a worker are passed in shared memory, which containers limit: Docker gives 64 MiB.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from muntin.data.batches import Batch
from muntin.data.shared_samples import count_bytes
from muntin.errors import MuntinWarning

SHARED = "/dev/shm"
"""Where the system keeps shared memory; elsewhere it is not limited in this way."""

AHEAD = 4
"""Batches of a worker that exist at a time: two ahead, one being made, one being learnt from."""

_MARGIN = 1.5  # other batches may have larger images or more masks


def free_shared_bytes(place: str = SHARED) -> int | None:
    """Free shared memory; None where it has no limit of its own."""
    return shutil.disk_usage(place).free if Path(place).is_dir() else None


def suit_workers(wanted: int, make_batch: Callable[[], Batch], free: int | None = None) -> int:
    """Number of workers, at most `wanted`, whose batches fit into `free` bytes of shared memory.

    `free` is what the machine has, if left out. `make_batch` makes one batch, which is measured
    only where less than 2 GiB a worker are free. Fewer workers than wanted are a warning.
    """
    free = free_shared_bytes() if free is None else free
    if free is None or free >= wanted * 2**31:
        return wanted
    needed = round(AHEAD * _MARGIN * count_bytes(make_batch()))
    workers = min(wanted, free // max(needed, 1))
    if workers < wanted:
        how = f"{workers} of them" if workers else "the training process"
        # No amounts that change with every epoch: it is told once.
        text = (
            f"{SHARED} is too small for the batches of {wanted} worker processes: {how} "
            f"will read the images. For more, give the container more (docker run --shm-size=2g), "
            f"or lower --batch-size"
        )
        warnings.warn(text, MuntinWarning, stacklevel=2)
    return workers


_FAILED = re.compile(r"DataLoader worker .*(killed|exited)|unable to .*(shm|shared|mmap|file <)")


def describe_failure(error: BaseException) -> str:
    """Describe in one line that a worker ended or got no memory; empty for another error."""
    found = [line for line in str(error).splitlines() if _FAILED.search(line)]
    if not found:
        return ""
    return (
        f"the processes that read images must go on, got: {found[-1].strip()} Give them more "
        f"memory (docker run --shm-size=2g), or read in the training process: "
        f"--set machine.workers=0."
    )
