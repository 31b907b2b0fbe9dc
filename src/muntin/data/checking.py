# SPDX-License-Identifier: Apache-2.0
"""Check a whole data set before training, and report every fault.

Training fails on an error; a warning makes its metrics less reliable.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from muntin.data.data_config import DataConfig
from muntin.data.decoding import FIRST_PAGE, ImageInfo
from muntin.data.duplicates import ImageHash, hash_image, look_in_threads
from muntin.data.entry_images import MeasuredRange, measure_range, read_pixels
from muntin.data.grouping import IDENTICAL, MAX_HASHED, find_relations, give_groups, split_apart
from muntin.data.image_formats import format_of_suffix
from muntin.data.value_ranges import PixelReading
from muntin.errors import DataError, plural, shorten
from muntin.samples import DataSets, Entry, Listing, Problem, warning
from muntin.shapes import Size

_TINY = 8  # pixels
Parts = Mapping[str, Listing]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a check found.

    The data set in a few lines for the terminal, the same as numbers, and errors before warnings.
    """

    task: str
    source: str
    lines: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether training can use the data set as it is."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, object]:
        """Give plain values for JSON."""
        return {
            "task": self.task,
            "source": self.source,
            "ok": self.ok,
            "lines": list(self.lines),
            "counts": dict(self.counts),
            "problems": [asdict(problem) for problem in self.problems],
        }


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


class Summary(NamedTuple):
    """What a task has to say of a data set: problems, lines and counts as in `Report`."""

    problems: Sequence[Problem]
    lines: Sequence[str]
    counts: Sequence[tuple[str, int]]


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


def check(
    task: str,
    path: str | os.PathLike[str],
    list_data: Callable[[], DataSets],
    look_at: Callable[[Parts, Iterable[CheckedImage]], Summary],
    reading: DataConfig,
) -> Report:
    """Read every image of a data set; `look_at` judges the sets and the images that can be read.

    Faulty data never raises: a layout that cannot be read gives one error.
    """
    notes: list[str] = []
    try:
        data = list_data()
        parts = {name: give_groups(one, reading.groups, notes) for name, one in data.parts.items()}
    except DataError as error:
        problem = Problem(file=str(path), what=str(error), severity="error")
        return Report(task=task, source=str(path), problems=(problem,))
    measured = measure_range(next(iter(parts.values())), reading.range)
    kept = CheckedImages()
    seen = kept.watch(_read_all(parts, PixelReading(measured.value_range, measured.bands)))
    found = look_at(parts, seen)
    for _ in seen:  # of tasks that need not look at images
        pass
    unsplit = list(_find_unsplit(parts, reading, kept, notes))
    twins = kept.find_twins()
    compare_classes = parts[next(iter(parts))].kind == "classification"
    problems = [
        *data.problems,
        *kept.problems["unreadable"],
        *kept.problems["size"],
        *_find_twins(kept, twins, compare_classes=compare_classes),
        *_find_parted(kept, notes),
        *kept.problems["tiny"],
        *unsplit,
        *_find_few_levels(parts, measured),
        *found.problems,
        *_find_parted_groups(parts),
    ]
    return Report(
        task=task,
        source=str(path),
        lines=(
            data.note,
            *notes,
            *found.lines,
            *_describe_images(kept),
            *filter(None, [measured.note]),
        ),
        counts=(
            ("pictures", len(kept.entries) + len(kept.problems["unreadable"])),
            *((part, len(listing)) for part, listing in parts.items()),
            *found.counts,
            ("unreadable", len(kept.problems["unreadable"])),
            ("misnamed", kept.facts["misnamed"][True]),
            ("duplicates", sum(len(rows) - 1 for rows in twins)),
        ),
        problems=tuple(sorted(problems, key=lambda problem: problem.severity != "error")),
    )


def _read_all(parts: Parts, value_range: PixelReading) -> Iterator[CheckedImage]:
    jobs = (
        (part, listing.source, entry, value_range)
        for part, listing in parts.items()
        for entry in _one_per_image(listing)
    )
    return look_in_threads(lambda job: _look(*job), jobs)


def _find_few_levels(parts: Parts, measured: MeasuredRange) -> Iterator[Problem]:
    for number, (part, listing) in enumerate(parts.items()):
        found = measure_range(listing, measured.value_range) if number else measured
        if found.warning:
            yield warning(part, found.warning)


def _one_per_image(listing: Listing) -> Sequence[Entry]:
    if listing.unit == "images":
        return listing.entries
    first = {entry.path: entry for entry in reversed(listing.entries)}
    return [first[path] for path in sorted(first)]


def _look(part: str, source: str, entry: Entry, value_range: PixelReading) -> CheckedImage:
    try:
        pixels, facts = read_pixels(source, entry, value_range)
    except DataError as error:
        return CheckedImage(part=part, entry=entry, fault=str(error))
    size = (pixels.shape[0], pixels.shape[1])
    return CheckedImage(part=part, entry=entry, hash=hash_image(pixels), size=size, facts=facts)


def _find_twins(
    kept: CheckedImages, twins: Sequence[Sequence[int]], *, compare_classes: bool
) -> Iterator[Problem]:
    """Name the images that are in several sets, and those that have another class elsewhere.

    Those of one name in all, as where sets are one folder, are one warning.
    """
    named_alike: dict[str, list[str]] = defaultdict(list)
    for rows in twins:
        first, *others = (kept.entries[row] for row in rows)
        names = shorten((repr(one.path) for one in others), limit=3)
        parts = dict.fromkeys(kept.parts[row] for row in rows)
        if len(parts) > 1 and {one.path for one in others} == {first.path}:
            named_alike[" and ".join(parts)].append(first.path)
        elif len(parts) > 1:
            what = f"the same image is in {' and '.join(parts)}: {names}"
            yield warning(first.path, what)
        if compare_classes and len({frozenset(one.class_ids) for one in (first, *others)}) > 1:
            paths = [repr(one.path) for one in others if one.path != first.path]
            twins_are = f"as {shorten(paths, limit=3)}" if paths else "further down in the table"
            yield warning(first.path, f"the same image has another class {twins_are}")
    for several, paths in named_alike.items():
        more = f", as {plural(len(paths) - 1, 'image')} more" if len(paths) > 1 else ""
        yield warning(paths[0], f"the same image is in {several}, by the same name{more}")


def _find_parted_groups(parts: Parts) -> Iterator[Problem]:
    where: dict[str, dict[str, None]] = defaultdict(dict)
    for part, listing in parts.items():
        for entry in listing.entries:
            if entry.group:
                where[entry.group][part] = None
    for group, found in where.items():
        if len(found) > 1:
            what = f"group {group!r} is in {' and '.join(found)}, so scores will be too high"
            yield warning(group, what)


def _find_parted(kept: CheckedImages, notes: list[str]) -> Iterator[Problem]:
    """Name copies that are in several sets, but for equal pixels, which `_find_twins` names."""
    if len({*kept.parts}) < 2:
        return
    entries = kept.entries
    if kept.hashes is None:
        notes.append(f"more than {MAX_HASHED} images: those that only look alike are not named")
    hashes: Sequence[ImageHash | None] = kept.hashes or [None] * len(entries)
    for kind, keys in find_relations([one.path for one in entries], hashes).items():
        related: dict[Hashable, list[int]] = defaultdict(list)
        for row, key in enumerate(keys):
            if key is not None and kind != IDENTICAL:
                related[key].append(row)
        for rows in related.values():
            parts = {kept.parts[row]: entries[row].path for row in reversed(rows)}
            if len(parts) > 1:
                names = ", ".join(f"{path!r} in {part}" for part, path in sorted(parts.items()))
                what = f"{len(rows)} images {kind} are in several sets, so scores will be too high"
                yield warning(entries[rows[0]].path, f"{what}: {names}")


def _find_unsplit(
    parts: Parts, reading: DataConfig, kept: CheckedImages, notes: list[str]
) -> Iterator[Problem]:
    """Report a data set that has no validation set and is too small to split; or what it keeps."""
    if set(parts) == {"train"}:
        paths = [one.path for one in kept.entries]
        hashes = None if kept.hashes is None else dict(zip(paths, kept.hashes, strict=True))
        fraction = reading.val_fraction
        try:
            _, _, said = split_apart(
                parts["train"], groups=reading.groups, fraction=fraction, seed=0, hashes=hashes
            )
            notes += said[:-1]  # the numbers are those of another seed
        except DataError as error:
            yield warning("train", str(error))


def _describe_images(kept: CheckedImages) -> Iterator[str]:
    if not kept.entries:
        return
    heights, widths = kept.facts["height"], kept.facts["width"]
    low, high = f"{min(heights)} x {min(widths)}", f"{max(heights)} x {max(widths)}"
    yield f"sizes (height x width): {f'all {low}' if low == high else f'from {low} to {high}'}"
    modes = kept.facts["mode"].most_common()
    yield "pixel formats: " + ", ".join(f"{mode} {count}" for mode, count in modes)
    if rotated := len(kept.entries) - kept.facts["orientation"][1]:
        yield f"{plural(rotated, 'image')} rotated by EXIF orientation"
    said = {
        "kept_as_stored": "not rotated by EXIF orientation, as annotated before it",
        "several": f"of several pages or frames: {FIRST_PAGE}",
        "unknown": "with values that are not finite, which become black",
        "misnamed": "with a suffix of another format, read anyway",
    }
    for name, what in said.items():
        if count := kept.facts[name][True]:
            yield f"{plural(count, 'image')} {what}"
