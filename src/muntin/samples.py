# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets: where each image is and what is annotated in it.

A `Listing` names images without opening them. It does not depend on the layout: a folder, an
archive, a CSV and a COCO file give the same listing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from muntin.errors import ConfigError, ShapeError
from muntin.run_lengths import Segmentation
from muntin.shapes import Bool, Float, Int, Size

__all__ = [
    "Classes",
    "DataSets",
    "Entry",
    "Listing",
    "MaskEncoding",
    "Objects",
    "Problem",
    "Segmentation",
    "Skeleton",
    "TaskKind",
    "rename_keys",
    "skeleton_of",
]


TaskKind = Literal["classification", "detection", "segmentation", "keypoints"]
"""What is predicted: classes of an image, objects in it, the class of each pixel, or keypoints."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Objects:
    """What is annotated in one image, one row an object, in pixels of the original image.

    Attributes:
        boxes: Left, top, right and bottom edge of each; (0, 0) is the outer corner of the image.
        class_ids: Class number of each.
        crowd: Whether a row is a group of objects (COCO: iscrowd): never trained on,
            and neither right nor wrong when it is found.
        areas: Area of each, for COCO's small, medium and large: of the mask if there is one.
            0 if unknown (instances with keypoints only).
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
class MaskEncoding:
    """The classes that values of mask files encode.

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
    """The keypoints of an instance and how they belong together; numbers count from 0.

    Attributes:
        names: Name of each keypoint.
        edges: Pairs of keypoints that drawings join by a line.
        flip_pairs: Pairs of left and right, which are swapped in a mirrored image.
        mirrored: Whether a mirror image is an image of the same kind.
        sigmas: How far people who mark the same point lie apart, one a keypoint, relative to the
            size of the instance (the root of its area): what OKS is measured by.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    mirrored: bool = False
    sigmas: tuple[float, ...] = ()

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the values of an older ``classes.json`` in today's words."""
        return rename_keys(values, {"links": "edges", "pairs": "flip_pairs"})

    @property
    def partners(self) -> tuple[int, ...]:
        """The keypoint that each one becomes in the mirror."""
        partner = dict(self.flip_pairs) | {right: left for left, right in self.flip_pairs}
        return tuple(partner.get(number, number) for number in range(len(self.names)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """What a data set asks for: ``classes.json`` of a run folder.

    Attributes:
        names: Class names in the order of the class numbers.
        multi_label: Whether an image may have any number of them.
        encoding: The classes that values of mask files encode; None if there are none.
        skeleton: The keypoints of each instance; None where the task has none.
    """

    names: tuple[str, ...]
    multi_label: bool = False
    encoding: MaskEncoding | None = None
    skeleton: Skeleton | None = None

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the values of an older ``classes.json`` in today's words."""
        return rename_keys(values, {"coding": "encoding"})


def skeleton_of(classes: Classes) -> Skeleton:
    """Give the skeleton of pose classes.

    Raises:
        ConfigError: The classes have none.
    """
    if classes.skeleton is None:
        message = "pose needs a skeleton of keypoints, got classes.json without one. Restore it."
        raise ConfigError(message)
    return classes.skeleton


def rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename keys from old names to new ones; a key that has its new name already wins."""
    renamed = {names.get(key, key): value for key, value in values.items()}
    return {**renamed, **{key: values[key] for key in names.values() if key in values}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One image and what is known about it.

    Attributes:
        path: The file, relative to the source of its listing, with forward slashes.
        class_ids: One number for single-label data, none to all for multi-label data and for
            images with objects.
        group: Images of one group (a patient, a video) stay in one set of a split; "" = none.
        size: (height, width) in pixels, if the annotations have it.
        objects: What is annotated in it; None where the task has no objects.
        mask: The mask file, likewise relative; "" if the task has
            none.
        instance: Which of the objects the entry is about, where an image has one entry for each;
            -1 = all of them.
    """

    path: str
    class_ids: tuple[int, ...] = ()
    group: str = ""
    size: Size | None = None
    objects: Objects | None = None
    mask: str = ""
    instance: int = -1

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom edge of the instance in pixels; None without one."""
        if self.instance < 0 or self.objects is None:
            return None
        left, top, right, bottom = self.objects.boxes[self.instance].tolist()
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The images of one set, in a fixed order.

    Attributes:
        source: The folder or archive that the paths of the entries are in.
        entries: The images.
        class_names: Name of each class number.
        multi_label: Whether an image may have any number of classes.
        encoding: The classes that values of mask files encode; None if there are none.
        skeleton: The keypoints of each instance; None where the task has none.
    """

    source: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    multi_label: bool = False
    encoding: MaskEncoding | None = None
    skeleton: Skeleton | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.entries)

    @property
    def kind(self) -> TaskKind:
        """What is annotated: keypoints only where an entry is one instance."""
        if self.encoding is not None:
            return "segmentation"
        first = self.entries[0] if self.entries else None
        if first is None or first.objects is None:
            return "classification"
        return "detection" if first.instance < 0 or self.skeleton is None else "keypoints"

    @property
    def unit(self) -> str:
        """What an entry is about, in the plural: "images", or "instances" of images."""
        return "instances" if any(entry.instance >= 0 for entry in self.entries) else "images"

    @property
    def num_classes(self) -> int:
        """Count the classes, those without images included."""
        return len(self.class_names)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images of each class, in the order of `class_names`."""
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
