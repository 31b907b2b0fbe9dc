# SPDX-License-Identifier: Apache-2.0
"""Data sets: the location of each image and its annotations.

A `Listing` indexes images without opening them. It does not depend on the layout: a folder, an
archive, a CSV and a COCO file of the same data produce the same listing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from muntin.errors import ConfigError, check_columns
from muntin.run_lengths import Segmentation
from muntin.shapes import Bool, Float, Int, Size

TaskKind = Literal["classification", "detection", "segmentation", "keypoints", "pretraining"]
"""What is predicted: classes of an image, objects in it, the class of each pixel, or keypoints.

"pretraining" learns from images without labels, and predicts nothing that a user asks for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Objects:
    """Annotations of one image, one row per object, in pixels of the original image.

    Attributes:
        boxes: Left, top, right and bottom edge; (0, 0) is the outer corner of the image.
        crowd: Whether a row is a group of objects (COCO: iscrowd), which is excluded from
            training, and whose detections are neither correct nor wrong. A class of -1 is a
            region of any class: what is there is unknown, because its annotation is faulty.
        areas: For COCO's small, medium and large; of the mask if available, 0 if unknown.
        masks: As annotated, None for objects without; empty if no object of the set has one.
        keypoints: x, y and visibility of each: 2 visible, 1 occluded, 0 unknown; (0, 0) is the
            centre of the first pixel. None without keypoints.
    """

    boxes: Float[np.ndarray, "N 4"]
    class_ids: Int[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    areas: Float[np.ndarray, " N"]
    masks: tuple[Segmentation | None, ...] = ()
    keypoints: Float[np.ndarray, "N P 3"] | None = None

    def __post_init__(self) -> None:
        check_columns(
            boxes=self.boxes,
            class_ids=self.class_ids,
            crowd=self.crowd,
            areas=self.areas,
            masks=self.masks or None,
            keypoints=self.keypoints,
        )

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskEncoding:
    """How the values of mask files encode classes.

    Attributes:
        kind: "index": palette indices or grey values; "color": colours, red << 16 | green << 8 |
            blue; "alpha": opacities; "objects": no files, masks are rasterised from annotated
            objects.
        values: The value of each class, by class number.
        ignored: Values of pixels that are excluded from training and scoring.
        tolerance: Largest distance at which a pixel takes the nearest of these values, of colours
            in any channel; for masks that were smoothed or stored with loss. 0: equal values only.
    """

    kind: Literal["index", "color", "alpha", "objects"]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    tolerance: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """The keypoints of an instance and their relations; numbers count from 0.

    Attributes:
        edges: Pairs of keypoints that drawings join by a line.
        flip_pairs: Pairs of left and right keypoints, which are swapped in a mirrored image.
        mirrored: Whether a mirrored image is valid training data.
        sigmas: Standard deviations of annotation for OKS, relative to the root of the area.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    mirrored: bool = False
    sigmas: tuple[float, ...] = ()

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translate keys of ``classes.json`` files of earlier versions."""
        return rename_keys(values, {"links": "edges", "pairs": "flip_pairs"})

    @property
    def partners(self) -> tuple[int, ...]:
        """Index of the keypoint that each one becomes in a mirrored image."""
        partner = dict(self.flip_pairs) | {right: left for left, right in self.flip_pairs}
        return tuple(partner.get(number, number) for number in range(len(self.names)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """Classes of a data set by class number; ``classes.json`` of a run folder.

    With `multi_label`, an image may have any number of classes; `encoding` is that of mask files.
    """

    names: tuple[str, ...]
    multi_label: bool = False
    encoding: MaskEncoding | None = None
    skeleton: Skeleton | None = None

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translate keys of ``classes.json`` files of earlier versions."""
        return rename_keys(values, {"coding": "encoding"})


def check_classes(classes: Classes) -> None:
    """Check that the parts of ``classes.json`` fit each other; a ValueError names what does not."""
    bones = classes.skeleton
    values = None if classes.encoding is None else classes.encoding.values
    known = () if bones is None else range(len(bones.names))
    pairs = () if bones is None else (*bones.edges, *bones.flip_pairs)
    faults = {
        "names": not classes.names,
        "encoding.values": values is not None and len(values) != len(classes.names),
        "skeleton.edges or flip_pairs": any(end not in known for pair in pairs for end in pair),
        "skeleton.sigmas": bones is not None
        and bones.sigmas != ()
        and (len(bones.sigmas) != len(known) or not min(bones.sigmas) > 0),
    }
    for name, wrong in faults.items():
        if wrong:
            message = f"{name} of classes.json do not fit its other values"
            raise ValueError(message)


def skeleton_of(classes: Classes) -> Skeleton:
    """Give the skeleton of pose classes."""
    if classes.skeleton is None:
        message = "pose needs a skeleton of keypoints, got classes.json without one. Restore it."
        raise ConfigError(message)
    return classes.skeleton


def rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename keys; a key that already has the new name takes precedence."""
    renamed = {names.get(key, key): value for key, value in values.items()}
    return {**renamed, **{key: values[key] for key in names.values() if key in values}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One image and its annotations.

    Attributes:
        path: The file, relative to the source of its listing, with forward slashes.
        class_ids: One number for single-label data; any number for multi-label data and for
            images with objects.
        group: Images of one group (patient, video) stay in the same split; "" = none.
        size: (height, width) in pixels, if annotated.
        mask: The mask file, also relative; "" if the task has none.
        instance: Index of the object that the entry describes, if each object has its own entry;
            -1 = all objects.
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
        """Left, top, right and bottom edge of the instance in pixels; None if `instance` is -1."""
        if self.instance < 0 or self.objects is None:
            return None
        left, top, right, bottom = self.objects.boxes[self.instance].tolist()
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The images of one set, in a fixed order; other fields as in `Classes`.

    `source` is the folder or archive that contains the files.
    """

    source: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    multi_label: bool = False
    encoding: MaskEncoding | None = None
    skeleton: Skeleton | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def kind(self) -> TaskKind:
        """Kind of the annotations; "keypoints" only if each entry is one instance."""
        if self.encoding is not None:
            return "segmentation"
        first = self.entries[0] if self.entries else None
        if first is None or first.objects is None:
            return "classification"
        return "detection" if first.instance < 0 or self.skeleton is None else "keypoints"

    @property
    def unit(self) -> str:
        """What an entry describes: "images", or "instances"."""
        return "instances" if any(entry.instance >= 0 for entry in self.entries) else "images"

    @property
    def num_classes(self) -> int:
        """Number of classes, including those without images."""
        return len(self.class_names)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of images of each class."""
        counts = Counter(class_id for entry in self.entries for class_id in entry.class_ids)
        return tuple(counts[class_id] for class_id in range(len(self.class_names)))

    def select(self, indices: Iterable[int]) -> Listing:
        """Select entries by index, in this order."""
        return replace(self, entries=tuple(self.entries[index] for index in indices))

    def divide(self, taken: Collection[int]) -> tuple[Listing, Listing]:
        """Part the entries in two, in their order; those whose index is `taken` come second."""
        every = range(len(self))
        return (
            self.select(index for index in every if index not in taken),
            self.select(index for index in every if index in taken),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A problem of a data set.

    `file` is relative to the source, or is the class, split or source; an error prevents training.
    """

    file: str
    what: str
    severity: Literal["error", "warning"]


def warning(file: str, what: str) -> Problem:
    """Name a problem that training can live with."""
    return Problem(file=file, what=what, severity="warning")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSets:
    """The splits of a data set.

    A single split is `train`; `val` selects a model, `test` is for reported metrics. `note` is the
    layout in one line, `left_out` the number of skipped annotations and why, "" if none.
    """

    train: Listing | None
    val: Listing | None = None
    test: Listing | None = None
    note: str = ""
    problems: tuple[Problem, ...] = ()
    left_out: str = ""

    @property
    def parts(self) -> dict[str, Listing]:
        """The existing splits by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: listing for name, listing in every.items() if listing is not None}

    @property
    def fault(self) -> str:
        """The first error, which prevents training or scoring; "" if none."""
        errors = (one for one in self.problems if one.severity == "error")
        return next((f"{one.file}: {one.what}" for one in errors), "")
