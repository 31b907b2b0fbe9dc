# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a check of keypoints looks at besides the images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from muntin.data.annotation import warning
from muntin.data.checking import CheckedImage, Findings, Parts, Report, check
from muntin.data.pose import list_pose
from muntin.errors import plural, shorten
from muntin.samples import Listing

__all__ = ["check_pose"]


def check_pose(path: str | os.PathLike[str], *, num_threads: int = 2) -> Report:
    """Check a data set of keypoints: `path` is what `list_pose` takes, the rest as `check`."""
    return check("pose", path, lambda: list_pose(path), _look_at_poses, num_threads=num_threads)


def _look_at_poses(parts: Parts, seen: Sequence[CheckedImage]) -> Findings:
    part, listing = next(iter(parts.items()))  # train, where there is one
    names = _names(listing)
    counts = _visible(listing).sum(axis=0)
    never = [name for name, count in zip(names, counts, strict=True) if not count]
    what = f"never visible in {part}: {shorten(never, limit=12)}; nothing to learn for them"
    return Findings(
        problems=[warning(part, what)] if never and len(listing) else [],
        lines=list(_describe(parts)),
        counts=[("subjects", sum(map(len, parts.values()))), ("keypoints", len(names))],
    )


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


def _describe(parts: Parts) -> Iterator[str]:
    for part, listing in parts.items():
        visible = _visible(listing)
        names = _names(listing)
        images = plural(len({entry.path for entry in listing.entries}), "image")
        yield f"{part}: {images}, {plural(len(listing), 'instance')} of {len(names)} keypoints"
        if not len(listing):
            continue
        rarest = np.argsort(visible.mean(axis=0), kind="stable")[:5]
        shares = ", ".join(f"{names[k]} {visible[:, k].mean():.0%}" for k in rarest)
        yield f"{part}: {visible.mean():.0%} of the keypoints are visible; least often {shares}"
