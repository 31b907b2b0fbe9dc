# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a check of masks looks at besides the images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from muntin.data.annotation import warning
from muntin.data.checking import CheckedImage, Findings, Parts, Report, check
from muntin.data.label_files import count_values, read_mask
from muntin.data.semantic import list_semantic, name_value
from muntin.errors import DataError, plural, shorten
from muntin.samples import Classes, Listing, Problem

__all__ = ["check_semantic"]

Pixels = Counter[int]
"""Pixels of each class number; -1 for ignored ones."""


def check_semantic(
    path: str | os.PathLike[str],
    *,
    colors: Sequence[str] = (),
    ignored: Sequence[str] = (),
    classes: Classes | None = None,
    num_threads: int = 2,
) -> Report:
    """Check a data set of masks: arguments as of `list_semantic`, the rest as `check`."""

    def look_at(parts: Parts, seen: Sequence[CheckedImage]) -> Findings:
        problems: list[Problem] = []
        pixels: dict[str, Pixels] = {}
        lines = []
        with ThreadPoolExecutor(max_workers=num_threads) as pool:
            for part, listing in parts.items():
                mine = [one for one in seen if one.part == part]
                looked = list(pool.map(lambda one, of=listing: _look(of, one), mine))
                problems += [problem for _, found in looked for problem in found]
                counts = [counts for counts, _ in looked]
                pixels[part] = sum(counts, Counter())
                lines.append(_describe(part, listing, pixels[part], counts))
        problems += _judge_classes(parts, pixels)
        num_classes = next(iter(parts.values())).num_classes
        return Findings(problems=problems, lines=lines, counts=[("classes", num_classes)])

    return check(
        "semantic",
        path,
        lambda: list_semantic(path, classes=classes, colors=colors, ignored=ignored),
        look_at,
        num_threads=num_threads,
    )


def _look(listing: Listing, one: CheckedImage) -> tuple[Pixels, list[Problem]]:
    entry, encoding = one.entry, listing.encoding
    file = entry.mask or entry.path
    assert encoding is not None, "masks have an encoding"
    try:
        found = read_mask(listing, entry)
    except DataError as error:
        return Counter(), [Problem(file=file, what=str(error), severity="error")]
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
        values = shorten(name_value(value, encoding.kind) for value in sorted(found.strange))
        what = f"{total:.1%} of the pixels have a value of no class, ignored: {values}"
        problems.append(warning(file, what))
    counts = Counter(count_values(found.labels))
    if set(counts) <= {-1}:
        problems.append(warning(file, "every pixel is ignored: nothing to learn"))
    return counts, problems


def _judge_classes(parts: Parts, pixels: dict[str, Pixels]) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    without = [name for number, name in enumerate(listing.class_names) if not pixels[part][number]]
    if len(without) == len(listing.class_names):
        what = "no pixel has a class: nothing to learn"
        yield Problem(file=part, what=what, severity="error")
    elif without:
        what = f"no pixels in {part} of {shorten(without, limit=12)}: nothing to learn for them"
        yield warning(part, what)


def _describe(part: str, listing: Listing, pixels: Pixels, images: Sequence[Pixels]) -> str:
    total = max(pixels.total(), 1)
    shares = (
        f"{name} {pixels[number] / total:.1%} (in {sum(number in counts for counts in images)})"
        for number, name in enumerate(listing.class_names)
    )
    return (
        f"{part}: {plural(len(listing), 'image')}; pixels: {shorten(shares, limit=16)}; ignored "
        f"{pixels[-1] / total:.1%}"
    )
