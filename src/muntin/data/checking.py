# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Check a whole data set before training, and report every fault.

Training fails on an error; a warning makes its metrics less reliable.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from muntin.data.archives import read_bytes
from muntin.data.data_config import DataConfig
from muntin.data.decoding import ImageInfo, decode_with_facts
from muntin.data.listing import list_classify
from muntin.data.report import Report
from muntin.data.splitting import split
from muntin.errors import DataError, shorten
from muntin.samples import Entry, Listing, Problem
from muntin.shapes import Size

__all__ = [
    "CheckedImage",
    "check_classify",
    "count_images",
    "describe_images",
    "find_tiny",
    "find_twins",
    "find_unreadable",
    "find_unsplit",
    "read_all",
]

_TINY = 8  # pixels
_IMBALANCE = 20
_AT_ONCE = 1024

_SUFFIX_FORMATS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jfif": "JPEG",
    "tif": "TIFF",
    "pgm": "PPM",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedImage:
    """One image after it was read: either what it is, or why it cannot be read.

    Attributes:
        part: The set that it is in.
        entry: What the listing knows of it.
        digest: Equal for equal pixels.
        size: (height, width) in pixels, upright.
        facts: Format and orientation of its file.
        fault: Why it cannot be read; "" when it can.
    """

    part: str
    entry: Entry
    digest: bytes = b""
    size: Size = (0, 0)
    facts: ImageInfo | None = None
    fault: str = ""


def check_classify(path: str | os.PathLike[str], *, num_threads: int = 2) -> Report:
    """Read every image of a classification data set.

    Args:
        path: What `list_classify` takes.
        num_threads: Images decoded at the same time.

    Returns:
        The report. Faulty data never raises: a layout that cannot be read gives one error.
    """
    try:
        data = list_classify(path)
    except DataError as error:
        problem = Problem(file=str(path), what=str(error), severity="error")
        return Report(task="classify", source=str(path), problems=(problem,))
    parts = data.parts
    seen = list(read_all(parts, num_threads))
    good = [one for one in seen if not one.fault]
    problems = find_unreadable(seen)
    problems += find_twins(good, compare_classes=True)
    problems += find_tiny(good)
    problems += find_unsplit(parts)
    problems += _judge_classes(parts)
    problems += _find_parted_groups(parts)
    return Report(
        task="classify",
        source=str(path),
        lines=(data.note, *_describe(parts, good)),
        counts=_count(parts, seen),
        problems=tuple(problems),
    )


def read_all(parts: dict[str, Listing], num_threads: int) -> Iterator[CheckedImage]:
    """Read every image, in the order of the listings, several at the same time."""
    work = ((part, listing, entry) for part, listing in parts.items() for entry in listing.entries)
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        while batch := list(islice(work, _AT_ONCE)):
            yield from pool.map(lambda job: _look(*job), batch, chunksize=1)


def _look(part: str, listing: Listing, entry: Entry) -> CheckedImage:
    try:
        data = read_bytes(listing.source, entry.path)
        pixels, facts = decode_with_facts(data, where=entry.path)
    except DataError as error:
        return CheckedImage(part=part, entry=entry, fault=str(error))
    size = (pixels.shape[0], pixels.shape[1])
    digest = hashlib.blake2b(pixels.data, digest_size=16, salt=size[1].to_bytes(8, "little"))
    return CheckedImage(part=part, entry=entry, digest=digest.digest(), size=size, facts=facts)


def find_unreadable(seen: list[CheckedImage]) -> list[Problem]:
    """Report unreadable images."""
    return [
        Problem(file=one.entry.path, what=one.fault, severity="error") for one in seen if one.fault
    ]


def find_twins(seen: list[CheckedImage], *, compare_classes: bool = False) -> list[Problem]:
    """Name the images that are in several sets, and those that have another class elsewhere."""
    same: dict[bytes, list[CheckedImage]] = defaultdict(list)
    for one in seen:
        same[one.digest].append(one)
    problems = []
    for twins in same.values():
        if len(twins) == 1:
            continue
        first, *others = twins
        names = shorten((repr(one.entry.path) for one in others), limit=3)
        parts = {one.part: None for one in twins}
        if len(parts) > 1:
            what = f"the same image is in {' and '.join(parts)}: {names}"
            problems.append(Problem(file=first.entry.path, what=what, severity="warning"))
        if compare_classes and len({frozenset(one.entry.class_ids) for one in twins}) > 1:
            what = f"the same image has another class as {names}"
            problems.append(Problem(file=first.entry.path, what=what, severity="warning"))
    return problems


def find_unsplit(parts: dict[str, Listing]) -> list[Problem]:
    """Report a data set that has no validation set and is too small to split."""
    if set(parts) != {"train"}:
        return []
    try:
        split(parts["train"], fraction=DataConfig().val_fraction, seed=0)
    except DataError as error:
        return [Problem(file="train", what=str(error), severity="warning")]
    return []


def find_tiny(seen: list[CheckedImage]) -> list[Problem]:
    """Report tiny images."""
    return [
        Problem(
            file=one.entry.path,
            what=f"only {one.size[0]} x {one.size[1]} pixels (height x width)",
            severity="warning",
        )
        for one in seen
        if min(one.size) < _TINY
    ]


def _judge_classes(parts: dict[str, Listing]) -> list[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    counts = dict(zip(listing.class_names, listing.class_counts, strict=True))
    problems = [
        Problem(
            file=name,
            what=f"class {name!r} has {count} images in {part}; at least 2 are needed to learn "
            f"from one and check with another",
            severity="warning",
        )
        for name, count in counts.items()
        if count < 2
    ]
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] > _IMBALANCE * counts[least]:
        what = (
            f"class {most!r} has {counts[most]} images and {least!r} has {counts[least]}: "
            f"accuracy hides rare classes, use macro-F1"
        )
        problems.append(Problem(file=part, what=what, severity="warning"))
    without = sum(not entry.class_ids for entry in listing.entries)
    if without and max((len(entry.class_ids) for entry in listing.entries), default=0) < 2:
        what = (
            f"{without} images have no class and none has several: read as multi-label data; "
            f"if each should have one class, fill the empty cells"
        )
        problems.append(Problem(file=part, what=what, severity="warning"))
    return problems


def _find_parted_groups(parts: dict[str, Listing]) -> list[Problem]:
    where: dict[str, dict[str, None]] = defaultdict(dict)
    for part, listing in parts.items():
        for entry in listing.entries:
            if entry.group:
                where[entry.group][part] = None
    return [
        Problem(
            file=group,
            what=f"group {group!r} is in {' and '.join(found)}, so scores will be too high",
            severity="warning",
        )
        for group, found in where.items()
        if len(found) > 1
    ]


def _describe(parts: dict[str, Listing], seen: list[CheckedImage]) -> Iterator[str]:
    for part, listing in parts.items():
        counts = [
            f"{name} {count}"
            for name, count in zip(listing.class_names, listing.class_counts, strict=True)
        ]
        yield f"{part}: {len(listing)} images; {shorten(counts, limit=12)}"
        groups = {entry.group for entry in listing.entries if entry.group}
        if groups:
            yield f"{part}: {len(groups)} {'group' if len(groups) == 1 else 'groups'} of images"
            if len(groups) == 1 and len(parts) == 1:
                yield "one group cannot be split: training will ask for validation images (--val)"
    yield from describe_images(seen)


def describe_images(seen: list[CheckedImage]) -> Iterator[str]:
    """Describe sizes and pixel formats."""
    if not seen:
        return
    heights, widths = zip(*(one.size for one in seen), strict=True)
    if len({one.size for one in seen}) == 1:
        yield f"sizes (height x width): all {heights[0]} x {widths[0]}"
    else:
        yield (
            f"sizes (height x width): from {min(heights)} x {min(widths)} "
            f"to {max(heights)} x {max(widths)}"
        )
    modes = Counter(one.facts.mode for one in seen if one.facts is not None)
    yield "pixel formats: " + ", ".join(f"{mode} {count}" for mode, count in modes.most_common())
    rotated = sum(one.facts is not None and one.facts.orientation != 1 for one in seen)
    if rotated:
        yield f"{rotated} images are rotated by their EXIF orientation"
    if renamed := sum(_is_misnamed(one) for one in seen):
        yield f"{renamed} images have a suffix of another format; they are read anyway"


def _is_misnamed(one: CheckedImage) -> bool:
    if one.facts is None:
        return False
    suffix = one.entry.path.rpartition(".")[2].lower()
    found = "JPEG" if one.facts.format == "MPO" else one.facts.format
    return found != _SUFFIX_FORMATS.get(suffix, suffix.upper())


def count_images(seen: list[CheckedImage]) -> tuple[tuple[str, int], ...]:
    """Count unreadable, misnamed and duplicate files."""
    good = [one for one in seen if not one.fault]
    return (
        ("unreadable", len(seen) - len(good)),
        ("misnamed", sum(_is_misnamed(one) for one in good)),
        ("duplicates", len(good) - len({one.digest for one in good})),
    )


def _count(parts: dict[str, Listing], seen: list[CheckedImage]) -> tuple[tuple[str, int], ...]:
    return (
        ("pictures", len(seen)),
        *((part, len(listing)) for part, listing in parts.items()),
        ("classes", next(iter(parts.values())).num_classes),
        *count_images(seen),
    )
