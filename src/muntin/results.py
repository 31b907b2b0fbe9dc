# SPDX-License-Identifier: Apache-2.0
"""Results of prediction: numpy arrays and numbers, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ShapeError, check_columns, missing_extra
from muntin.run_lengths import decode_mask, encode_mask
from muntin.shapes import Size

DEFAULT_SCORE_THRESHOLD = 0.3
"""Score threshold of keypoints in drawings, and of objects where validation found none."""


_Result = TypeVar("_Result", "Labels", "Detections", "Poses")


def _select(result: _Result, rows: NDArray[np.int64], *columns: str) -> _Result:
    """Copy a result with the chosen rows of its columns; a column may be None."""
    chosen: dict[str, Any] = {}
    for name in columns:
        column = getattr(result, name)
        if isinstance(column, tuple):
            chosen[name] = tuple(column[row] for row in rows)
        elif column is not None:
            chosen[name] = column[rows]
    return replace(result, **chosen)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """The classes of an image, best first.

    Attributes:
        path: Path of the image; empty if it was passed as an array.
        size: (height, width) of the original image in pixels.
        scores: In [0, 1], descending.
    """

    path: str
    size: Size
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that all columns have equal length."""
        check_columns(class_ids=self.class_ids, scores=self.scores, class_names=self.class_names)

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.class_ids)

    @property
    def best(self) -> str:
        """Name of the class with the highest score; empty when there is none."""
        return self.class_names[0] if self.class_names else ""

    def above(self, threshold: float) -> Labels:
        """Keep classes with a score of `threshold` or more."""
        rows = np.flatnonzero(self.scores >= threshold)
        return _select(self, rows, "class_ids", "scores", "class_names")

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold."""
        rows = zip(self.class_names, self.class_ids, self.scores, strict=True)
        return {
            "path": self.path,
            "size": list(self.size),
            "classes": [
                {"name": name, "id": int(class_id), "score": round(float(score), 6)}
                for name, class_id, score in rows
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """Read the output of `to_dict`."""
        rows: Sequence[Mapping[str, Any]] = values["classes"]
        height, width = values["size"]
        return cls(
            path=values["path"],
            size=(height, width),
            class_ids=np.array([row["id"] for row in rows], np.int64),
            scores=np.array([row["score"] for row in rows], np.float64),
            class_names=tuple(row["name"] for row in rows),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """The objects found in an image, best first.

    Attributes:
        path: Path of the image; empty if it was passed as an array.
        size: (height, width) of the original image in pixels.
        boxes: Left, top, right and bottom edge of each object in pixels of the original.
        scores: In [0, 1], descending.
        masks: Mask of each object as COCO RLE: a dictionary with `size` (height, width) and
            `counts` (a string); None if the model predicts boxes only.
    """

    path: str
    size: Size
    boxes: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    class_names: tuple[str, ...]
    masks: tuple[dict[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        """Check that all columns have equal length."""
        check_columns(
            boxes=self.boxes,
            class_ids=self.class_ids,
            scores=self.scores,
            class_names=self.class_names,
            masks=self.masks,
        )

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.boxes)

    def above(self, threshold: float) -> Detections:
        """Keep objects with a score of `threshold` or more."""
        return self.select(np.flatnonzero(self.scores >= threshold))

    def select(self, rows: NDArray[np.int64]) -> Detections:
        """Select objects by index, in this order."""
        return _select(self, rows, "boxes", "class_ids", "scores", "class_names", "masks")

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold."""
        boxes = []
        for index, name in enumerate(self.class_names):
            row: dict[str, Any] = {
                "xyxy": [round(float(edge), 3) for edge in self.boxes[index]],
                "name": name,
                "id": int(self.class_ids[index]),
                "score": round(float(self.scores[index]), 6),
            }
            if self.masks is not None:
                row["mask"] = self.masks[index]
            boxes.append(row)
        return {"path": self.path, "size": list(self.size), "boxes": boxes}

    def to_supervision(self) -> Any:  # noqa: ANN401 (supervision.Detections)
        """Convert to ``supervision.Detections``, for its annotators, zones and trackers.

        Raises:
            MissingExtra: The library supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            missing = missing_extra("supervision", "supervision", "to_supervision")
            raise missing from error
        masks = None
        if self.masks is not None:
            masks = np.array([decode_mask(mask) for mask in self.masks], bool)
            masks = masks.reshape(-1, *self.size)
        return supervision.Detections(
            xyxy=self.boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.class_names, str)},
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Detections:
        """Read the output of `to_dict`."""
        rows: Sequence[Mapping[str, Any]] = values["boxes"]
        height, width = values["size"]
        masks = tuple(row["mask"] for row in rows) if rows and "mask" in rows[0] else None
        return cls(
            path=values["path"],
            size=(height, width),
            boxes=np.array([row["xyxy"] for row in rows], np.float64).reshape(-1, 4),
            class_ids=np.array([row["id"] for row in rows], np.int64),
            scores=np.array([row["score"] for row in rows], np.float64),
            class_names=tuple(row["name"] for row in rows),
            masks=masks,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SemanticMap:
    """The class of every pixel of an image.

    Attributes:
        path: Path of the image; empty if it was passed as an array.
        size: (height, width) of the original image in pixels.
        labels: Class number of each pixel, int16.
        class_names: Names of all classes of the run, by class number.
        colors: (red, green, blue) of every class if the data set defines them; else empty.
    """

    path: str
    size: Size
    labels: NDArray[np.int16]
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check that the map has the size of its image."""
        if self.labels.shape != self.size:
            message = (
                f"labels must have the size of the image, {self.size}, got {self.labels.shape}."
            )
            raise ShapeError(message)

    def __len__(self) -> int:
        """Number of classes that occur."""
        return int((self.counts > 0).sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of pixels of each class."""
        total = np.zeros(len(self.class_names), np.int64)
        for start in range(0, len(self.labels), 256):  # bincount converts labels to int64
            total += np.bincount(
                self.labels[start : start + 256].ravel(), minlength=len(self.class_names)
            )
        return total

    def above(self, threshold: float) -> SemanticMap:
        """Return self: every pixel has a class, whatever the threshold."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold: the mask of each class as COCO RLE."""
        counts = self.counts
        return {
            "path": self.path,
            "size": list(self.size),
            "semantic": [
                {
                    "name": name,
                    "id": class_id,
                    "share": round(float(counts[class_id] / self.labels.size), 6),
                    "mask": encode_mask(self.labels == class_id),
                }
                for class_id, name in enumerate(self.class_names)
                if counts[class_id]
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Poses:
    """The instances in an image and their keypoints.

    Instances are sorted by descending score, or follow the order of given boxes.

    Attributes:
        path: Path of the image; empty if it was passed as an array.
        size: (height, width) of the original image in pixels.
        keypoints: x, y and score of each keypoint of each instance, in pixels of the original;
            (0, 0) is the centre of the first pixel; points lie inside the image. The score is the
            heatmap value in [0, 1], where 1 is the peak of an annotated point in training; it is
            not a probability.
        scores: Score of each instance: mean of its heatmap peaks above 0.2, clipped to 1 (0 without
            any), times the score of its box.
        boxes: Left, top, right and bottom edge of each instance; None if the whole image is
            treated as one instance.
        box_scores: Detector score of each box; None without a detector.
        keypoint_names: Names of the keypoints.
        edges: Pairs of keypoints, counted from 0, that drawings join by a line.
    """

    path: str
    size: Size
    keypoints: NDArray[np.float64]
    scores: NDArray[np.float64]
    keypoint_names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    boxes: NDArray[np.float64] | None = None
    box_scores: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Check that all columns have equal length."""
        shape = (len(self.scores), len(self.keypoint_names), 3)
        boxes = len(self.scores) if self.boxes is None else len(self.boxes)
        if self.keypoints.shape != shape or boxes != len(self.scores):
            message = (
                f"keypoints must be (instances, keypoints, 3) = {shape} with a box per instance, "
                f"got {self.keypoints.shape} and {boxes} boxes."
            )
            raise ShapeError(message)

    def __len__(self) -> int:
        """Number of instances."""
        return len(self.scores)

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Former name of `edges`."""
        return self.edges

    def above(self, threshold: float) -> Poses:
        """Keep instances with a box score of `threshold` or more.

        Without a detector, the score of the instance itself is compared.
        """
        scores = self.scores if self.box_scores is None else self.box_scores
        return self.select(np.flatnonzero(scores >= threshold))

    def select(self, rows: NDArray[np.int64]) -> Poses:
        """Select instances by index, in this order."""
        return _select(self, rows, "keypoints", "scores", "boxes", "box_scores")

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold."""
        poses = []
        for row in range(len(self)):
            pose: dict[str, Any] = {
                "keypoints": [[round(float(v), 4) for v in point] for point in self.keypoints[row]],
                "score": round(float(self.scores[row]), 6),
            }
            if self.boxes is not None:
                pose["xyxy"] = [round(float(edge), 3) for edge in self.boxes[row]]
            if self.box_scores is not None:
                pose["box_score"] = round(float(self.box_scores[row]), 6)
            poses.append(pose)
        return {
            "path": self.path,
            "size": list(self.size),
            "keypoint_names": list(self.keypoint_names),
            "poses": poses,
        }
