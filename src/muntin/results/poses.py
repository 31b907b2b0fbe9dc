# SPDX-License-Identifier: Apache-2.0
"""Instances in an image and their keypoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ShapeError, plural
from muntin.results.rows import (
    DEFAULT_SCORE_THRESHOLD,
    Pose,
    Rows,
    edge_columns,
    edges_of,
    import_supervision,
    text_column,
)
from muntin.shapes import Size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Poses(Rows[Pose]):
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
        flip_pairs: Pairs of left and right keypoints, which drawings tell apart.
        threshold: Minimum score of what drawings and counts show, compared as in `above`.
        track_ids: Number of each instance in its video, from 1 on; None where none are tracked.
    """

    path: str
    size: Size
    keypoints: NDArray[np.float64]
    scores: NDArray[np.float64]
    keypoint_names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    boxes: NDArray[np.float64] | None = None
    box_scores: NDArray[np.float64] | None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()
    threshold: float = DEFAULT_SCORE_THRESHOLD
    track_ids: NDArray[np.int64] | None = None

    columns: ClassVar[tuple[str, ...]] = (
        "keypoints", "scores", "boxes", "box_scores", "track_ids",
    )  # fmt: skip

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

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Former name of `edges`."""
        return self.edges

    @property
    def ranking(self) -> NDArray[np.float64]:
        """The scores of the boxes; without a detector, those of the instances."""
        return self.scores if self.box_scores is None else self.box_scores

    def row(self, number: int) -> Pose:
        """Give one instance."""
        return Pose(
            score=float(self.scores[number]),
            keypoints=self.keypoints[number],
            keypoint_names=self.keypoint_names,
            xyxy=None if self.boxes is None else edges_of(self.boxes[number]),
            box_score=None if self.box_scores is None else float(self.box_scores[number]),
        )

    def describe(self) -> str:
        """Count the instances, and the keypoints of a score that drawings show."""
        shown = self.above(self.threshold)
        points = int((shown.keypoints[:, :, 2] >= DEFAULT_SCORE_THRESHOLD).sum())
        sure = f"with score >= {DEFAULT_SCORE_THRESHOLD:g}"
        return f"{plural(len(shown), 'instance')}, {plural(points, 'keypoint')} {sure}"

    def to_columns(self) -> dict[str, Any]:
        """Give the columns of the image, instance, instance_score, edges, track, keypoint, x, y.

        A row is a keypoint: its `score` is the last column, before `box_score` if there is one.
        """
        count = len(self.keypoint_names)
        instances: dict[str, NDArray[Any]] = {
            "instance": np.arange(len(self)),
            "instance_score": self.scores,
            **edge_columns(self.boxes),
        }
        if self.track_ids is not None:
            instances["track"] = self.track_ids
        columns: dict[str, Any] = {
            **self.image_columns(len(self) * count),
            **{name: np.repeat(column, count) for name, column in instances.items()},
            "keypoint": text_column(self.keypoint_names * len(self)),
            **dict(zip(("x", "y", "score"), self.keypoints.reshape(-1, 3).T, strict=True)),
        }
        if self.box_scores is not None:
            columns["box_score"] = np.repeat(self.box_scores, count)
        return columns

    def to_supervision(self) -> Any:  # noqa: ANN401 (supervision.KeyPoints)
        """Convert to ``supervision.KeyPoints``; errors as of `Detections.to_supervision`."""
        return import_supervision().KeyPoints(
            xy=self.keypoints[:, :, :2].astype(np.float32),
            keypoint_confidence=self.keypoints[:, :, 2].astype(np.float32),
            class_id=np.zeros(len(self), np.int64),
        )

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
            if self.track_ids is not None:
                pose["track"] = int(self.track_ids[row])
            poses.append(pose)
        return {
            "path": self.path,
            "size": list(self.size),
            "threshold": round(self.threshold, 6),
            "keypoint_names": list(self.keypoint_names),
            "poses": poses,
        }
