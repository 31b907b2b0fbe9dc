# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set of masks before training does, and name what is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from muntin.data.checking import (
    CheckedImage,
    count_images,
    describe_images,
    find_tiny,
    find_twins,
    find_unreadable,
    find_unsplit,
    read_all,
)
from muntin.data.label_files import count_values, read_mask
from muntin.data.report import Report
from muntin.data.semantic import list_semantic, name_value
from muntin.errors import DataError, shorten
from muntin.samples import Classes, Listing, Problem

__all__ = ["check_semantic"]


@dataclass(kw_only=True, slots=True)
class _ClassStatistics:
    """What the masks of a set hold.

    Attributes:
        pixels: Of each class number; -1 for ignored ones.
        images: Images with each class.
        problems: Of single masks.
    """

    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


def check_semantic(
    path: str | os.PathLike[str],
    *,
    colors: Sequence[str] = (),
    ignored: Sequence[str] = (),
    classes: Classes | None = None,
    num_threads: int = 2,
) -> Report:
    """Read every image and every mask of a data set.

    Args:
        path: What `list_semantic` takes, as all that follows.
        colors: What classes are stored as.
        ignored: Values that are not learnt.
        classes: Those of a trained run.
        num_threads: Files decoded at the same time.

    Returns:
        The report. Faulty data never raises: a layout that cannot be read gives one error.
    """
    try:
        data = list_semantic(path, classes=classes, colors=colors, ignored=ignored)
    except DataError as error:
        problem = Problem(file=str(path), what=str(error), severity="error")
        return Report(task="semantic", source=str(path), problems=(problem,))
    parts = data.parts
    seen = list(read_all(parts, num_threads))
    good = [one for one in seen if not one.fault]
    tallies = {
        part: _tally(listing, [one for one in good if one.part == part], num_threads)
        for part, listing in parts.items()
    }
    problems = [*data.problems, *find_unreadable(seen)]
    for tally in tallies.values():
        problems += tally.problems
    problems += find_twins(good)
    problems += find_tiny(good)
    problems += find_unsplit(parts)
    problems += _judge_classes(parts, tallies)
    problems.sort(key=lambda problem: problem.severity != "error")
    return Report(
        task="semantic",
        source=str(path),
        lines=(data.note, *_describe(parts, tallies), *describe_images(good)),
        counts=(
            ("pictures", len(seen)),
            *((part, len(listing)) for part, listing in parts.items()),
            ("classes", next(iter(parts.values())).num_classes),
            *count_images(seen),
        ),
        problems=tuple(problems),
    )


def _tally(listing: Listing, seen: list[CheckedImage], num_threads: int) -> _ClassStatistics:
    tally = _ClassStatistics()
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        for counts, problems in pool.map(lambda one: _look(listing, one), seen):
            tally.pixels.update(counts)
            tally.images.update(counts.keys())
            tally.problems += problems
    return tally


def _look(listing: Listing, one: CheckedImage) -> tuple[dict[int, int], list[Problem]]:
    entry, encoding = one.entry, listing.encoding
    file = entry.mask or entry.path
    assert encoding is not None, "masks have a encoding"
    try:
        found = read_mask(listing, entry)
    except DataError as error:
        return {}, [Problem(file=file, what=str(error), severity="error")]
    problems = []
    if found.labels.shape != one.size:
        high, wide = found.labels.shape
        what = (
            f"{high} x {wide} pixels (height x width), its image {entry.path!r} has "
            f"{one.size[0]} x {one.size[1]}: make one of them again"
        )
        problems.append(Problem(file=file, what=what, severity="error"))
    if found.strange:
        total = sum(found.strange.values()) / found.labels.size
        values = shorten(
            (name_value(value, encoding.kind) for value in sorted(found.strange)), limit=5
        )
        what = f"{total:.1%} of the pixels have a value of no class, ignored: {values}"
        problems.append(Problem(file=file, what=what, severity="warning"))
    counts = count_values(found.labels)
    if set(counts) <= {-1}:
        what = "every pixel is ignored: nothing to learn"
        problems.append(Problem(file=file, what=what, severity="warning"))
    return counts, problems


def _judge_classes(
    parts: dict[str, Listing], tallies: dict[str, _ClassStatistics]
) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    pixels = tallies[part].pixels
    without = [name for number, name in enumerate(listing.class_names) if not pixels[number]]
    if len(without) == len(listing.class_names):
        what = "no pixel has a class: nothing to learn"
        yield Problem(file=part, what=what, severity="error")
    elif without:
        what = f"no pixels in {part} of {shorten(without, limit=12)}: nothing to learn for them"
        yield Problem(file=part, what=what, severity="warning")


def _describe(parts: dict[str, Listing], tallies: dict[str, _ClassStatistics]) -> Iterator[str]:
    for part, listing in parts.items():
        tally = tallies[part]
        total = max(sum(tally.pixels.values()), 1)
        shares = (
            f"{name} {tally.pixels[number] / total:.1%} (in {tally.images[number]})"
            for number, name in enumerate(listing.class_names)
        )
        yield (
            f"{part}: {len(listing)} images; pixels: {shorten(shares, limit=16)}; ignored "
            f"{tally.pixels[-1] / total:.1%}"
        )
