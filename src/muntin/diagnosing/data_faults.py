# SPDX-License-Identifier: Apache-2.0
"""Faults of a data set that its listing shows, or a look at a few dozen of its images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.data.data_config import DataConfig
from muntin.data.duplicates import hash_image
from muntin.data.entry_images import read_pixels
from muntin.data.mask_values import read_mask
from muntin.data.objects import OUTSIDE, UNKNOWN_CLASS
from muntin.data.transforms import Preprocessing
from muntin.data.value_ranges import ValueRange
from muntin.diagnosing.alignment import AnnotatedImage, find_misalignment
from muntin.diagnosing.findings import Finding
from muntin.errors import DataError, UnitError, plural, shorten
from muntin.samples import DataSets, Entry, Listing, Problem

Sets = Mapping[str, Listing]

SAMPLE = 64
"""Images of each part that are looked at, spread evenly over it."""

_SIDE = 192  # pixels of the longer side, as which they are looked at
_BOXES = 16  # of an image
_FEW, _MANY, _NEARLY_ALL = 0.05, 0.2, 0.98  # shares
_SMALL = 4.0  # pixels of the input: half the finest stride of a detector
_LEAST = 8  # images or instances that are evidence
_EVEN = 2.0  # levels of 256


def diagnose_data(
    list_data: Callable[[], DataSets], pre: Preprocessing | None = None
) -> tuple[DataSets | None, list[Finding]]:
    """List data and find its faults; data that cannot be listed is None, and a finding."""
    try:
        data = list_data()
    except (DataError, OSError) as error:
        code = "units" if isinstance(error, UnitError) else "unreadable"
        return None, [Finding(code=code, where="data", detail=str(error))]
    found = find_data_faults(data.parts, data.problems, pre)
    if data.fault and not any(one.is_error or one.code == "class-range" for one in found):
        found = [Finding(code="unreadable", where="data", detail=data.fault), *found]
    return data, found


def find_data_faults(
    sets: Sets, problems: Sequence[Problem] = (), pre: Preprocessing | None = None
) -> list[Finding]:
    """Find faults of the parts of a data set, train first; errors first.

    `problems` are what reading named; `pre` tells at which size objects are seen, and in which
    range of values images are read.
    """
    found = list(_judge_problems(sets, problems))
    train, *others = sets.values()
    for part, listing in sets.items():
        found += _judge_objects(part, listing, pre)
        found += _judge_keypoints(part, listing)
    found += _judge_classes(train, others[0] if others else None)
    value_range = DataConfig().range if pre is None else pre.value_range
    seen = {part: _Sample.read(listing, value_range) for part, listing in sets.items()}
    for part, sample in seen.items():
        found += _judge_images(part, sample, is_label=sets[part].kind == "classification")
        found += _judge_masks(part, sample)
        outlined = sets[part].kind != "keypoints"
        if misaligned := find_misalignment(sample.looked, outlined=outlined):
            found.append(Finding(code=misaligned[0], where=part, detail=misaligned[1]))
    if len(seen) > 1:
        found += _compare_channels(*list(seen.values())[:2])
    return sorted(found, key=lambda one: not one.is_error)


class _Sample(NamedTuple):
    """What some images of a listing show; `masks` are (labels, pixels of no class)."""

    entries: list[Entry]
    pixels: list[NDArray[np.uint8]]
    looked: list[AnnotatedImage]
    masks: list[tuple[NDArray[np.int16], int]]
    class_names: tuple[str, ...]

    @classmethod
    def read(cls, listing: Listing, value_range: ValueRange) -> _Sample:
        """Read up to `SAMPLE` images; those that cannot be read are left out, as elsewhere."""
        sample = cls([], [], [], [], listing.class_names)
        first = {entry.path: entry for entry in reversed(listing.entries)}
        chosen = [first[path] for path in sorted(first)]
        for entry in chosen[:: -(-len(chosen) // SAMPLE) or 1]:
            try:
                labels = None if listing.encoding is None else read_mask(listing, entry)
                size = None if labels is None else labels.labels.shape
                pixels, _ = read_pixels(listing.source, entry, value_range, size=size)
            except (DataError, OSError):
                continue
            small = Image.fromarray(pixels)
            small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
            sample.entries.append(entry)
            sample.pixels.append(pixels if listing.encoding is None else np.asarray(small))
            boxes = _boxes_of(entry, (pixels.shape[0], pixels.shape[1]))
            maps = None
            if labels is not None:
                sample.masks.append((labels.labels, sum(labels.strange.values())))
                maps = labels.labels
            shown = np.asarray(small, np.float32) / 255
            sample.looked.append(AnnotatedImage(shown, boxes, maps))
        return sample


def _boxes_of(entry: Entry, size: tuple[int, int]) -> NDArray[np.float64] | None:
    """Boxes as parts of the sides, those around its keypoints where an entry is an instance."""
    objects = entry.objects
    if objects is None:
        return None
    boxes = objects.boxes[~objects.crowd]
    if entry.instance >= 0 and objects.keypoints is not None:
        points = objects.keypoints[~objects.crowd]
        sets = [one[one[:, 2] > 0, :2] + 0.5 for one in points]
        rows = [[*one.min(axis=0), *one.max(axis=0)] for one in sets if len(one) > 2]
        boxes = np.array(rows, np.float64).reshape(-1, 4)
    scaled = np.asarray(boxes / np.tile(size[::-1], 2), np.float64)
    sides = (boxes[:, 2:] - boxes[:, :2]) * min(1.0, _SIDE / max(size))
    return scaled[(sides >= _BOXES // 4).all(axis=1)][:_BOXES]


def _judge_problems(sets: Sets, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Judge how many annotations reading left out, and why."""
    left_out = [one for one in problems if " left out, " in one.what]
    kept = [one.objects for listing in sets.values() for one in listing.entries if one.objects]
    total = len(left_out) + sum(int((~objects.crowd).sum()) for objects in kept)
    kinds = {"class-range": UNKNOWN_CLASS, "boxes-outside": OUTSIDE, "left-out": ""}
    for code, kind in kinds.items():
        mine = [one for one in left_out if kind in one.what]
        # A class that is unknown is one that others are taken for, however few they are.
        if mine and len(mine) >= (_FEW if code == "class-range" else _MANY) * total:
            detail = f"{len(mine)} of {plural(total, 'annotation')}; {mine[0].file}: {mine[0].what}"
            yield Finding(code=code, where="data", detail=detail)
            return


def _judge_objects(part: str, listing: Listing, pre: Preprocessing | None) -> Iterator[Finding]:
    if listing.kind not in ("detection", "keypoints"):
        return
    full = sum(bool(len(entry.class_ids)) for entry in listing.entries)
    if full < _FEW * len(listing) or not full:
        code = "empty-training" if part == "train" else "empty-validation"
        yield Finding(code=code, where=part, detail=f"{full} of {plural(len(listing), 'image')}")
        return
    if listing.kind == "keypoints" or pre is None:
        return
    sides = [
        (entry.objects.boxes[:, 2:] - entry.objects.boxes[:, :2]).min(axis=1)[~entry.objects.crowd]
        * (pre.scale_of(entry.size) if pre.fit == "letterbox" else 1.0)
        for entry in listing.entries
        if entry.objects is not None and entry.size is not None
    ]
    median = float(np.median(np.concatenate(sides))) if sides else _SMALL
    if median < _SMALL:
        detail = f"half of them are less than {median:.1f} pixels wide or high in the input"
        yield Finding(code="objects-too-small", where=part, detail=detail)


def _judge_classes(train: Listing, val: Listing | None) -> Iterator[Finding]:
    used = {number for entry in train.entries for number in entry.class_ids}
    names = train.class_names
    if train.kind == "classification" and len(names) > 1 and len(used) == 1:
        yield Finding(code="one-class", where="train", detail=repr(names[next(iter(used))]))
    if val is None or val.kind == "segmentation":
        return
    lacking = Counter(n for entry in val.entries for n in entry.class_ids if n not in used)
    share = lacking.total() / max(sum(len(entry.class_ids) for entry in val.entries), 1)
    if lacking and (max(lacking.values()) >= _LEAST or share > _MANY):
        detail = shorten(f"{names[number]!r} in {count}" for number, count in lacking.items())
        yield Finding(code="unseen-classes", where="val", detail=f"{detail} validation images")


def _judge_keypoints(part: str, listing: Listing) -> Iterator[Finding]:
    rows = [
        (entry.objects.keypoints[entry.instance], entry.objects.boxes[entry.instance])
        for entry in listing.entries
        if entry.objects is not None and entry.objects.keypoints is not None and entry.instance >= 0
    ]
    if len(rows) < _LEAST or listing.skeleton is None:
        return
    points, boxes = (np.stack(column) for column in zip(*rows, strict=True))
    known = points[:, :, 2] > 0
    xy = np.where(known[:, :, None], points[:, :, :2], np.nan)
    inside = ((xy > boxes[:, None, :2] - 2) & (xy < boxes[:, None, 2:] + 1)).all(axis=2)
    apart = int((~(inside & known).any(axis=1)).sum())
    if apart >= _MANY * len(rows):
        yield Finding(
            code="keypoints-apart", where=part, detail=f"{apart} of {len(rows)} instances"
        )
    always = xy[:, known.all(axis=0)]
    if always.size and np.ptp(always, axis=0).max() < 1:
        yield Finding(code="keypoints-constant", where=part, detail=f"{len(rows)} instances")
    # Left and right of all pairs lie on the same sides of a body, however it is turned.
    pairs = np.array(listing.skeleton.flip_pairs, int).reshape(-1, 2)
    across = xy[:, pairs[:, 0]] - xy[:, pairs[:, 1]] if len(pairs) > 2 else np.zeros((0, 0, 2))
    for number, (left, right) in enumerate(pairs[: across.shape[1]].tolist()):
        others = np.nansum(np.delete(across, number, axis=1), axis=1)
        agree = (across[:, number] * others).sum(axis=1)
        agree = agree[np.isfinite(agree) & (agree != 0)]
        if len(agree) >= _LEAST and (agree < 0).mean() > 1 - _MANY:
            names = listing.skeleton.names
            detail = (
                f"{names[left]}, {names[right]} in {(agree < 0).sum()} of {len(agree)} instances"
            )
            yield Finding(code="left-right", where=part, detail=detail)


def _judge_images(part: str, sample: _Sample, *, is_label: bool) -> Iterator[Finding]:
    count = len(sample.pixels)
    even = sum(float(pixels[::4, ::4].std(axis=(0, 1)).max()) < _EVEN for pixels in sample.pixels)
    if even > count / 2:
        yield Finding(code="blank-images", where=part, detail=f"{even} of {count} looked at")
        return
    if not is_label:
        return
    classes: dict[bytes, list[tuple[int, ...]]] = defaultdict(list)
    for entry, pixels in zip(sample.entries, sample.pixels, strict=True):
        classes[hash_image(pixels).digest].append(entry.class_ids)
    unsure = sum(len(found) for found in classes.values() if len(set(found)) > 1)
    if unsure >= max(2, _FEW * count):
        detail = f"{unsure} of {count} images looked at"
        yield Finding(code="conflicting-labels", where=part, detail=detail)


def _judge_masks(part: str, sample: _Sample) -> Iterator[Finding]:
    if not sample.masks:
        return
    counts: Counter[int] = Counter()
    for labels, _ in sample.masks:
        counts.update(dict(zip(*np.unique(labels, return_counts=True), strict=True)))
    total, strange = sum(counts.values()), sum(strange for _, strange in sample.masks)
    known = total - counts[-1]
    first, *_ = sample.class_names
    if strange > _FEW * total and not counts[0] and known:
        detail = f"{strange / total:.0%} of the pixels have a value of no class, none is {first!r}"
        yield Finding(code="class-range", where=part, detail=detail)
    elif known < (1 - _NEARLY_ALL) * total or strange > total / 2:
        detail = f"{known / total:.1%} of the pixels have a class"
        yield Finding(code="ignored-masks", where=part, detail=detail)
    elif max(counts[number] for number in counts if number >= 0) == known:
        name = sample.class_names[next(n for n in counts if n >= 0)]
        detail = f"{name!r} in all of {plural(len(sample.masks), 'mask')} looked at"
        yield Finding(code="one-class-masks", where=part, detail=detail)


def _compare_channels(train: _Sample, val: _Sample) -> Iterator[Finding]:
    """Whether the usual difference of red and blue has the opposite sign in validation."""
    rows = [
        np.array([float(one.mean(axis=(0, 1)) @ (1, 0, -1)) for one in part.pixels])
        for part in (train, val)
    ]
    if min(map(len, rows)) < _LEAST:
        return
    means = [float(row.mean()) for row in rows]
    sure = all(abs(row.mean()) > 4 * row.std() / len(row) ** 0.5 for row in rows)
    largest = max(map(abs, means))
    if sure and means[0] * means[1] < 0 and abs(sum(means)) < largest / 2 and largest > 2 * _EVEN:
        detail = f"red - blue is {means[0]:+.0f} of 255 in training images, {means[1]:+.0f} here"
        yield Finding(code="channels", where="val", detail=detail)
