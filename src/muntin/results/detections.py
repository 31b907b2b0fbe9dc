# SPDX-License-Identifier: Apache-2.0
"""The objects found in an image: boxes, and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from muntin.results.rows import (
    DEFAULT_SCORE_THRESHOLD,
    Detection,
    Rows,
    edge_columns,
    edges_of,
    import_supervision,
    text_column,
)
from muntin.run_lengths import decode_mask, mask_area
from muntin.shapes import Size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Detections(Rows[Detection]):
    """The objects found in an image, best first.

    Attributes:
        path: Path of the image; empty if it was passed as an array.
        size: (height, width) of the original image in pixels.
        boxes: Left, top, right and bottom edge of each object in pixels of the original.
        scores: In [0, 1], descending.
        masks: Mask of each object as COCO RLE: a dictionary with `size` (height, width) and
            `counts` (a string); None if the model predicts boxes only.
        threshold: Minimum score of what drawings and counts show: that of the run.
        track_ids: Number of each object in its video, from 1 on; None where none are tracked.
    """

    path: str
    size: Size
    boxes: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    class_names: tuple[str, ...]
    masks: tuple[dict[str, Any], ...] | None = None
    threshold: float = DEFAULT_SCORE_THRESHOLD
    track_ids: NDArray[np.int64] | None = None

    columns: ClassVar[tuple[str, ...]] = (
        "boxes", "class_ids", "scores", "class_names", "masks", "track_ids",
    )  # fmt: skip

    def row(self, number: int) -> Detection:
        """Give one object."""
        return Detection(
            name=self.class_names[number],
            class_id=int(self.class_ids[number]),
            score=float(self.scores[number]),
            xyxy=edges_of(self.boxes[number]),
            rle=None if self.masks is None else self.masks[number],
        )

    def describe(self) -> str:
        """Count the objects of each class."""
        counts = Counter(self.above(self.threshold).class_names)
        return ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "no objects"

    def to_columns(self) -> dict[str, Any]:
        """Give the columns of the image, class, class_id, score, edges, mask and track.

        `mask` are the counts of COCO's run lengths; `mask_area` in pixels stands behind.
        """
        columns = {
            **self.image_columns(len(self)),
            "class": text_column(self.class_names),
            "class_id": self.class_ids,
            "score": self.scores,
            **edge_columns(self.boxes),
        }
        if self.masks is not None:
            columns["mask"] = text_column([mask["counts"] for mask in self.masks])
        if self.track_ids is not None:
            columns["track"] = self.track_ids
        if self.masks is not None:
            columns["mask_area"] = np.array([mask_area(mask) for mask in self.masks], np.int64)
        return columns

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
            if self.track_ids is not None:
                row["track"] = int(self.track_ids[index])
            boxes.append(row)
        return {
            "path": self.path,
            "size": list(self.size),
            "threshold": round(self.threshold, 6),
            "boxes": boxes,
        }

    def to_supervision(self) -> Any:  # noqa: ANN401 (supervision.Detections)
        """Convert to ``supervision.Detections``, for its annotators, zones and trackers.

        Raises:
            MissingExtra: The library supervision is not installed.
        """
        library = import_supervision()
        masks = None
        if self.masks is not None:
            masks = np.array([decode_mask(mask) for mask in self.masks], bool)
            masks = masks.reshape(-1, *self.size)
        return library.Detections(
            xyxy=self.boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.class_ids,
            tracker_id=self.track_ids,
            data={"class_name": np.array(self.class_names, str)},
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Detections:
        """Read the output of `to_dict`."""
        rows: Sequence[Mapping[str, Any]] = values["boxes"]
        height, width = values["size"]
        masks = tuple(row["mask"] for row in rows) if rows and "mask" in rows[0] else None
        tracks = [row["track"] for row in rows if "track" in row]
        return cls(
            path=values["path"],
            size=(height, width),
            boxes=np.array([row["xyxy"] for row in rows], np.float64).reshape(-1, 4),
            class_ids=np.array([row["id"] for row in rows], np.int64),
            scores=np.array([row["score"] for row in rows], np.float64),
            class_names=tuple(row["name"] for row in rows),
            masks=masks,
            threshold=values.get("threshold", DEFAULT_SCORE_THRESHOLD),
            track_ids=np.array(tracks, np.int64) if tracks else None,
        )
