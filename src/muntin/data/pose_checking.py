# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set of keypoints before training does, and name what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from muntin.data.checking import (
    count_images,
    describe_images,
    find_tiny,
    find_twins,
    find_unreadable,
    find_unsplit,
    read_all,
)
from muntin.data.pose import list_pose
from muntin.data.report import Report
from muntin.errors import DataError, shorten
from muntin.samples import Listing, Problem

__all__ = ["check_pose"]


def check_pose(path: str | os.PathLike[str], *, num_threads: int = 2) -> Report:
    """Read every image and every instance of a data set.

    Args:
        path: What `list_pose` takes.
        num_threads: Images decoded at the same time.

    Returns:
        The report. Faulty data never raises: a layout that cannot be read gives one error.
    """
    try:
        data = list_pose(path)
    except DataError as error:
        problem = Problem(file=str(path), what=str(error), severity="error")
        return Report(task="pose", source=str(path), problems=(problem,))
    parts = data.parts
    seen = list(read_all({part: _images(one) for part, one in parts.items()}, num_threads))
    good = [one for one in seen if not one.fault]
    problems = [*data.problems, *find_unreadable(seen)]
    for one in good:
        annotated = one.entry.size
        if annotated not in (None, one.size):
            what = (
                f"{one.size[0]} x {one.size[1]} pixels (height x width), annotated as "
                f"{annotated[0]} x {annotated[1]}, so its keypoints are wrong"
            )
            problems.append(Problem(file=one.entry.path, what=what, severity="error"))
    problems += find_twins(good)
    problems += find_tiny(good)
    problems += find_unsplit(parts)
    problems += _judge_keypoints(parts)
    problems.sort(key=lambda problem: problem.severity != "error")
    return Report(
        task="pose",
        source=str(path),
        lines=(data.note, *_describe(parts), *describe_images(good)),
        counts=(
            ("pictures", len(seen)),
            *((part, len(listing)) for part, listing in parts.items()),
            ("subjects", sum(map(len, parts.values()))),
            ("keypoints", len(_names(next(iter(parts.values()))))),
            *count_images(seen),
        ),
        problems=tuple(problems),
    )


def _images(listing: Listing) -> Listing:
    """One entry per image: its first."""
    first = {entry.path: entry for entry in reversed(listing.entries)}
    return replace(listing, entries=tuple(first[path] for path in sorted(first)))


def _names(listing: Listing) -> tuple[str, ...]:
    return () if listing.skeleton is None else listing.skeleton.names


def _visible(listing: Listing) -> np.ndarray:
    """(N, P) whether each keypoint of each instance is visible."""
    rows = [
        entry.objects.keypoints[entry.instance, :, 2] > 0
        for entry in listing.entries
        if entry.objects is not None and entry.objects.keypoints is not None
    ]
    return np.stack(rows) if rows else np.zeros((0, len(_names(listing))), bool)


def _judge_keypoints(parts: dict[str, Listing]) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    counts = _visible(listing).sum(axis=0)
    never = [name for name, count in zip(_names(listing), counts, strict=True) if not count]
    if never and len(listing):
        what = f"never visible in {part}: {shorten(never, limit=12)}; nothing to learn for them"
        yield Problem(file=part, what=what, severity="warning")


def _describe(parts: dict[str, Listing]) -> Iterator[str]:
    for part, listing in parts.items():
        visible = _visible(listing)
        names = _names(listing)
        images = len({entry.path for entry in listing.entries})
        summary = f"{len(listing)} instance{'s' * (len(listing) != 1)} of {len(names)} keypoints"
        yield f"{part}: {images} image{'s' * (images != 1)}, {summary}"
        if not len(listing):
            continue
        rarest = np.argsort(visible.mean(axis=0), kind="stable")[:5]
        shares = ", ".join(f"{names[k]} {visible[:, k].mean():.0%}" for k in rarest)
        yield f"{part}: {visible.mean():.0%} of the keypoints are visible; least often {shares}"
