# SPDX-License-Identifier: Apache-2.0
"""Images of a data set that is checked: one after it was read, and what is kept of all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from muntin.data.decoding import ImageInfo
from muntin.data.duplicates import ImageHash
from muntin.data.grouping import MAX_HASHED
from muntin.data.image_formats import format_of_suffix
from muntin.samples import Entry, Problem, warning
from muntin.shapes import Size

Given = TypeVar("Given")
Found = TypeVar("Found")

_THREADS = 2
_TINY = 8  # pixels
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedImage:
    """One image after it was read: what it is, upright, or why it cannot be read (`fault`)."""

    part: str
    entry: Entry
    hash: ImageHash | None = None
    size: Size = (0, 0)
    facts: ImageInfo | None = None
    fault: str = ""

    @property
    def is_misnamed(self) -> bool:
        """Whether the suffix is that of another format."""
        if self.facts is None:
            return False
        named = format_of_suffix(PurePosixPath(self.entry.path).suffix)
        return {named, self.facts.format} not in ({self.facts.format}, {"JPEG", "MPO"})


class CheckedImages:
    """What is kept of the images of a check: little of each, as there may be millions of them.

    `parts`, `entries` and the digests in `pixels` are those of images that can be read, in order;
    `hashes` too, or None where there are more than `MAX_HASHED`.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.entries: list[Entry] = []
        self.pixels = bytearray()
        self.hashes: list[ImageHash] | None = []
        self.problems: dict[str, list[Problem]] = defaultdict(list)
        self.facts: dict[str, Counter[Any]] = defaultdict(Counter)

    def watch(self, seen: Iterable[CheckedImage]) -> Iterator[CheckedImage]:
        """Pass on the images that can be read, and keep what is needed of them."""
        for one in seen:
            if one.hash is None or one.facts is None:
                fault = Problem(file=one.entry.path, what=one.fault, severity="error")
                self.problems["unreadable"].append(fault)
                continue
            self.parts.append(one.part)
            self.entries.append(one.entry)
            self.pixels += one.hash.digest
            if self.hashes is not None:
                self.hashes.append(one.hash)
            if len(self.entries) > MAX_HASHED:
                self.hashes = None
            self.problems["size"] += _find_other_size(one)
            if min(one.size) < _TINY:
                what = f"only {one.size[0]} x {one.size[1]} pixels (height x width)"
                self.problems["tiny"].append(warning(one.entry.path, what))
            sides = {"height": one.size[0], "width": one.size[1], "misnamed": one.is_misnamed}
            # Shares would be as many as images.
            for name, value in {**asdict(replace(one.facts, outside=0.0)), **sides}.items():
                self.facts[name][value] += 1
            yield one

    def find_twins(self) -> list[list[int]]:
        """Rows of images of equal pixels, for all of which there are several."""
        digests = np.frombuffer(self.pixels, "S16") if self.pixels else np.zeros(0, "S16")
        _, numbers, counts = np.unique(digests, return_inverse=True, return_counts=True)
        same: dict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(counts[numbers] > 1).tolist():
            same[int(numbers[row])].append(row)
        return [*same.values()]


def _find_other_size(one: CheckedImage) -> Iterator[Problem]:
    annotated = one.entry.size
    if annotated is None or annotated == one.size:
        return
    what = (
        f"{one.size[0]} x {one.size[1]} pixels (height x width), annotated as "
        f"{annotated[0]} x {annotated[1]}, so its annotations are wrong"
    )
    if annotated == one.size[::-1]:
        what += "; maybe because of the EXIF orientation: annotate the rotated image"
    yield Problem(file=one.entry.path, what=what, severity="error")


def look_in_threads(look: Callable[[Given], Found], items: Iterable[Given]) -> Iterator[Found]:
    """Call `look` for each of any number of items, some at the same time, in their order."""
    work = iter(items)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        while batch := list(islice(work, _AT_ONCE)):
            yield from pool.map(look, batch)
