# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a data set is made of: where each picture is and what is known about it.

A `Listing` names pictures without opening them. It never knows who made it: a folder, an archive,
a CSV and a COCO file give the same listing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from muntin.errors import ShapeError
from muntin.run_lengths import Segmentation
from muntin.shapes import Bool, Float, Int, Size

__all__ = [
    "Classes",
    "DataSets",
    "Entry",
    "Listing",
    "MaskCoding",
    "Objects",
    "Problem",
    "Segmentation",
    "Skeleton",
    "TaskKind",
]


TaskKind = Literal["classification", "detection", "segmentation", "keypoints"]
"""What is predicted: classes of an image, objects in it, the class of each pixel, or keypoints."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Objects:
    """What is annotated in one picture, one row an object, in pixels of the original picture.

    Attributes:
        boxes: Left, top, right and bottom edge of each; (0, 0) is the outer corner of the picture.
        class_ids: Class number of each.
        crowd: Whether a row stands for a group that could not be told apart: never learnt from,
            and neither right nor wrong when it is found.
        areas: Area of each, by which COCO tells small from large: of the mask where there is one.
            Of subjects with keypoints 0 where nobody says it.
        masks: Mask of each as it was written, None where there is none; empty when no object of
            the set has one.
        keypoints: x, y and visibility of each keypoint of each object: 2 seen, 1 covered, 0
            unknown; (0, 0) is the middle of the first pixel. None where the task has no keypoints.
    """

    boxes: Float[np.ndarray, "N 4"]
    class_ids: Int[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    areas: Float[np.ndarray, " N"]
    masks: tuple[Segmentation | None, ...] = ()
    keypoints: Float[np.ndarray, "N P 3"] | None = None

    def __post_init__(self) -> None:
        """Refuse columns that do not belong together."""
        count = len(self.boxes)
        lengths = [len(self.class_ids), len(self.crowd), len(self.areas)]
        if self.keypoints is not None and len(self.keypoints) != count:
            message = f"boxes and keypoints must be equally long, got {count} and "
            raise ShapeError(message + f"{len(self.keypoints)}.")
        if lengths != [count] * 3 or len(self.masks) not in (0, count):
            message = (
                f"boxes, class_ids, crowd, areas and masks must be equally long, got {count}, "
                f"{', '.join(map(str, lengths))} and {len(self.masks)}."
            )
            raise ShapeError(message)

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskCoding:
    """What the values of mask files stand for.

    Attributes:
        kind: "index": palette indices or grey values; "color": colours, red << 16 | green << 8 |
            blue; "objects": there are no files, pixels have the class numbers of objects.
        values: The value of each class, in the order of the class numbers.
        ignored: Values of pixels that are neither learnt from nor scored.
    """

    kind: Literal["index", "color", "objects"]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """The keypoints of a subject and how they belong together; numbers count from 0.

    Attributes:
        names: Name of each keypoint.
        links: Pairs of keypoints that drawings join by a line.
        pairs: Pairs of left and right, which change places in the mirror.
        mirrored: Whether a mirror image is a picture of the same kind.
        sigmas: How far people who mark the same point lie apart, one a keypoint, relative to the
            size of the subject (the root of its area): what OKS is measured by.
    """

    names: tuple[str, ...]
    links: tuple[tuple[int, int], ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    mirrored: bool = False
    sigmas: tuple[float, ...] = ()

    @property
    def partners(self) -> tuple[int, ...]:
        """The keypoint that each one becomes in the mirror."""
        partner = dict(self.pairs) | {right: left for left, right in self.pairs}
        return tuple(partner.get(number, number) for number in range(len(self.names)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """What a data set asks for: ``classes.json`` of a run folder.

    Attributes:
        names: Class names in the order of the class numbers.
        multi_label: Whether a picture may have any number of them.
        coding: What the values of mask files stand for; None where there are none.
        skeleton: The keypoints of each subject; None where the task has none.
    """

    names: tuple[str, ...]
    multi_label: bool = False
    coding: MaskCoding | None = None
    skeleton: Skeleton | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture and what is known about it.

    Attributes:
        path: The file, relative to the source of its listing, with forward slashes.
        class_ids: One number for single-label data, none to all for multi-label data and for
            pictures with objects.
        group: Pictures of one group (a patient, a video) must not be parted by a split; "" = none.
        size: (height, width) in pixels, where the annotations say it.
        objects: What is annotated in it; None where the task has no objects.
        mask: The file that says the class of each pixel, likewise relative; "" where the task has
            no such files.
        subject: Which of the objects the entry is about, where a picture has one entry for each;
            -1 = all of them.
    """

    path: str
    class_ids: tuple[int, ...] = ()
    group: str = ""
    size: Size | None = None
    objects: Objects | None = None
    mask: str = ""
    subject: int = -1

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom edge of the subject in pixels; None without one."""
        if self.subject < 0 or self.objects is None:
            return None
        left, top, right, bottom = self.objects.boxes[self.subject].tolist()
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The pictures of one set, in a fixed order.

    Attributes:
        source: The folder or archive that the paths of the entries are in.
        entries: The pictures.
        class_names: What the class numbers stand for.
        multi_label: Whether a picture may have any number of classes.
        coding: What the values of mask files stand for; None where there are none.
        skeleton: The keypoints of each subject; None where the task has none.
    """

    source: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    multi_label: bool = False
    coding: MaskCoding | None = None
    skeleton: Skeleton | None = None

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.entries)

    @property
    def unit(self) -> str:
        """What an entry is about, in the plural: "pictures", or "subjects" of pictures."""
        return "subjects" if any(entry.subject >= 0 for entry in self.entries) else "pictures"

    @property
    def num_classes(self) -> int:
        """Count the classes, those without pictures included."""
        return len(self.class_names)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Pictures of each class, in the order of `class_names`."""
        counts = Counter(class_id for entry in self.entries for class_id in entry.class_ids)
        return tuple(counts[class_id] for class_id in range(len(self.class_names)))

    def select(self, indices: Iterable[int]) -> Listing:
        """Keep the entries at these positions, in this order."""
        return replace(self, entries=tuple(self.entries[index] for index in indices))


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        file: The file, relative to the source; for what concerns more than a file, the class, the
            set or the source.
        what: What is wrong, one line.
        severity: "error" when training cannot use it, "warning" when it can but should not.
    """

    file: str
    what: str
    severity: Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSets:
    """The sets of a data set.

    Attributes:
        train: What to learn from, or the only set there is.
        val: What to select the model on.
        test: What to report on.
        note: What was found, in one line.
        problems: Annotations that were left out, and others worth a warning.
        left_out: How many annotations were left out and why, in one line; "" when none was.
    """

    train: Listing | None
    val: Listing | None = None
    test: Listing | None = None
    note: str = ""
    problems: tuple[Problem, ...] = ()
    left_out: str = ""

    @property
    def parts(self) -> dict[str, Listing]:
        """The sets that are there, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: listing for name, listing in every.items() if listing is not None}

    @property
    def fault(self) -> str:
        """The first problem that leaves nothing to learn from or to score on; "" if none does."""
        errors = (one for one in self.problems if one.severity == "error")
        return next((f"{one.file}: {one.what}" for one in errors), "")
