# SPDX-License-Identifier: Apache-2.0
"""Check a whole data set before training, and report every fault.

Training fails on an error; a warning makes its metrics less reliable.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

from muntin.data.data_config import DataConfig
from muntin.data.decoding import FIRST_PAGE, ImageInfo
from muntin.data.duplicates import ImageHash, hash_image
from muntin.data.entry_images import MeasuredRange, measure_range, read_pixels
from muntin.data.grouping import IDENTICAL, find_relations, give_groups, split_apart
from muntin.data.image_formats import format_of_suffix
from muntin.data.value_ranges import PixelReading
from muntin.errors import DataError, plural, shorten
from muntin.samples import DataSets, Entry, Listing, Problem, warning
from muntin.shapes import Size

THREADS = 2
"""Images that are decoded at the same time."""

_TINY = 8  # pixels
_AT_ONCE = 1024

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


def check(
    task: str,
    path: str | os.PathLike[str],
    list_data: Callable[[], DataSets],
    look_at: Callable[[Parts, Sequence[CheckedImage]], Summary],
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
    seen = list(_read_all(parts, PixelReading(measured.value_range, measured.bands)))
    good = [one for one in seen if not one.fault]
    found = look_at(parts, good)
    unsplit = list(_find_unsplit(parts, reading, good, notes))
    problems = [
        *data.problems,
        *(
            Problem(file=one.entry.path, what=one.fault, severity="error")
            for one in seen
            if one.fault
        ),
        *_find_other_sizes(good),
        *_find_twins(good, compare_classes=parts[next(iter(parts))].kind == "classification"),
        *_find_parted(good),
        *_find_tiny(good),
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
            *_describe_images(good),
            *filter(None, [measured.note]),
        ),
        counts=(
            ("pictures", len(seen)),
            *((part, len(listing)) for part, listing in parts.items()),
            *found.counts,
            ("unreadable", len(seen) - len(good)),
            ("misnamed", sum(one.is_misnamed for one in good)),
            ("duplicates", len(good) - len({one.hash.digest for one in good if one.hash})),
        ),
        problems=tuple(sorted(problems, key=lambda problem: problem.severity != "error")),
    )


def _read_all(parts: Parts, value_range: PixelReading) -> Iterator[CheckedImage]:
    work = (
        (part, listing.source, entry, value_range)
        for part, listing in parts.items()
        for entry in _one_per_image(listing)
    )
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        while batch := list(islice(work, _AT_ONCE)):
            yield from pool.map(lambda job: _look(*job), batch, chunksize=1)


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


def _find_other_sizes(seen: Sequence[CheckedImage]) -> Iterator[Problem]:
    for one in seen:
        annotated = one.entry.size
        if annotated in (None, one.size):
            continue
        what = (
            f"{one.size[0]} x {one.size[1]} pixels (height x width), annotated as "
            f"{annotated[0]} x {annotated[1]}, so its annotations are wrong"
        )
        if annotated == one.size[::-1]:
            what += "; maybe because of the EXIF orientation: annotate the rotated image"
        yield Problem(file=one.entry.path, what=what, severity="error")


def _find_twins(seen: Sequence[CheckedImage], *, compare_classes: bool) -> Iterator[Problem]:
    """Name the images that are in several sets, and those that have another class elsewhere.

    Those of one name in all, as where sets are one folder, are one warning.
    """
    named_alike: dict[str, list[str]] = defaultdict(list)
    same: dict[bytes, list[CheckedImage]] = defaultdict(list)
    for one in seen:
        same[b"" if one.hash is None else one.hash.digest].append(one)
    for twins in same.values():
        first, *others = twins
        names = shorten((repr(one.entry.path) for one in others), limit=3)
        parts = {one.part: None for one in twins}
        if len(parts) > 1 and len({one.entry.path for one in twins}) == 1:
            named_alike[" and ".join(parts)].append(first.entry.path)
        elif len(parts) > 1:
            what = f"the same image is in {' and '.join(parts)}: {names}"
            yield warning(first.entry.path, what)
        if compare_classes and len({frozenset(one.entry.class_ids) for one in twins}) > 1:
            paths = [repr(one.entry.path) for one in others if one.entry.path != first.entry.path]
            twins_are = f"as {shorten(paths, limit=3)}" if paths else "further down in the table"
            yield warning(first.entry.path, f"the same image has another class {twins_are}")
    for several, paths in named_alike.items():
        more = f", as {plural(len(paths) - 1, 'image')} more" if len(paths) > 1 else ""
        yield warning(paths[0], f"the same image is in {several}, by the same name{more}")


def _find_tiny(seen: Sequence[CheckedImage]) -> Iterator[Problem]:
    for one in seen:
        if min(one.size) < _TINY:
            what = f"only {one.size[0]} x {one.size[1]} pixels (height x width)"
            yield warning(one.entry.path, what)


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


def _find_parted(seen: Sequence[CheckedImage]) -> Iterator[Problem]:
    """Name copies that are in several sets, but for equal pixels, which `_find_twins` names."""
    if len({one.part for one in seen}) < 2:
        return
    relations = find_relations([one.entry.path for one in seen], [one.hash for one in seen])
    for kind, keys in relations.items():
        related: dict[Hashable, list[CheckedImage]] = defaultdict(list)
        for one, key in zip(seen, keys, strict=True):
            if key is not None and kind != IDENTICAL:
                related[key].append(one)
        for found in related.values():
            parts = {one.part: one.entry.path for one in reversed(found)}
            if len(parts) > 1:
                names = ", ".join(f"{path!r} in {part}" for part, path in sorted(parts.items()))
                what = f"{len(found)} images {kind} are in several sets, so scores will be too high"
                yield warning(found[0].entry.path, f"{what}: {names}")


def _find_unsplit(
    parts: Parts, reading: DataConfig, seen: Sequence[CheckedImage], notes: list[str]
) -> Iterator[Problem]:
    """Report a data set that has no validation set and is too small to split; or what it keeps."""
    if set(parts) == {"train"}:
        hashes = {one.entry.path: one.hash for one in seen}
        fraction = reading.val_fraction
        try:
            _, _, said = split_apart(
                parts["train"], groups=reading.groups, fraction=fraction, seed=0, hashes=hashes
            )
            notes += said[:-1]  # the numbers are those of another seed
        except DataError as error:
            yield warning("train", str(error))


def _describe_images(seen: Sequence[CheckedImage]) -> Iterator[str]:
    if not seen:
        return
    heights, widths = zip(*(one.size for one in seen), strict=True)
    low, high = f"{min(heights)} x {min(widths)}", f"{max(heights)} x {max(widths)}"
    yield f"sizes (height x width): {f'all {low}' if low == high else f'from {low} to {high}'}"
    modes = Counter(one.facts.mode for one in seen if one.facts is not None)
    yield "pixel formats: " + ", ".join(f"{mode} {count}" for mode, count in modes.most_common())
    if rotated := sum(one.facts is not None and one.facts.orientation != 1 for one in seen):
        yield f"{plural(rotated, 'image')} rotated by EXIF orientation"
    if kept := sum(one.facts is not None and one.facts.kept_as_stored for one in seen):
        yield f"{plural(kept, 'image')} not rotated by EXIF orientation, as annotated before it"
    if several := sum(one.facts is not None and one.facts.several for one in seen):
        yield f"{plural(several, 'image')} of several pages or frames: {FIRST_PAGE}"
    if unknown := sum(one.facts is not None and one.facts.unknown for one in seen):
        yield f"{plural(unknown, 'image')} with values that are not finite, which become black"
    if renamed := sum(one.is_misnamed for one in seen):
        yield f"{plural(renamed, 'image')} with a suffix of another format, read anyway"
