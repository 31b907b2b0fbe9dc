# SPDX-License-Identifier: Apache-2.0
"""The classes of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from muntin.results.rows import Label, Rows, import_supervision, text_column
from muntin.shapes import Size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Labels(Rows[Label]):
    """The classes of an image, best first.

    Attributes:
        path: Path of the image; empty if it was passed as an array.
        size: (height, width) of the original image in pixels.
        scores: In [0, 1], descending.
        threshold: Minimum score of what drawings and counts show.
    """

    path: str
    size: Size
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    class_names: tuple[str, ...]
    threshold: float = 0.0

    columns: ClassVar[tuple[str, ...]] = ("class_ids", "scores", "class_names")

    @property
    def best(self) -> str:
        """Name of the class with the highest score; empty when there is none."""
        return self.class_names[0] if self.class_names else ""

    def row(self, number: int) -> Label:
        """Give one class."""
        return Label(
            name=self.class_names[number],
            class_id=int(self.class_ids[number]),
            score=float(self.scores[number]),
        )

    def describe(self) -> str:
        """Say the best three classes."""
        best = [f"{row.name} {row.score:.2f}" for row in self.above(self.threshold)[:3]]
        return ", ".join(best) or f"no class with score >= {self.threshold:g}"

    def to_columns(self) -> dict[str, Any]:
        """Give the columns of the image, class, class_id and score."""
        return {
            **self.image_columns(len(self)),
            "class": text_column(self.class_names),
            "class_id": self.class_ids,
            "score": self.scores,
        }

    def to_supervision(self) -> Any:  # noqa: ANN401 (supervision.Classifications)
        """Convert to ``supervision.Classifications``; errors as of `Detections.to_supervision`."""
        library = import_supervision()
        return library.Classifications(class_id=self.class_ids, confidence=self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold."""
        rows = zip(self.class_names, self.class_ids, self.scores, strict=True)
        return {
            "path": self.path,
            "size": list(self.size),
            "threshold": round(self.threshold, 6),
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
            threshold=values.get("threshold", 0.0),
        )
