# SPDX-License-Identifier: Apache-2.0
"""The class of every pixel of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ShapeError
from muntin.results.rows import Region, Rows, import_supervision, text_column
from muntin.run_lengths import encode_mask
from muntin.shapes import Size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class SemanticMap(Rows[Region]):
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

    @property
    def threshold(self) -> float:
        """0: every pixel has a class."""
        return 0.0

    def __iter__(self) -> Iterator[Region]:
        """Give the classes that occur, by class number."""
        counts = self.counts
        return (self._region(class_id, counts) for class_id in np.flatnonzero(counts).tolist())

    def row(self, number: int) -> Region:
        """Give one of the classes that occur."""
        counts = self.counts
        return self._region(int(np.flatnonzero(counts)[number]), counts)

    def _region(self, class_id: int, counts: NDArray[np.int64]) -> Region:
        share = float(counts[class_id] / self.labels.size)
        name = self.class_names[class_id]
        return Region(name=name, class_id=class_id, share=share, labels=self.labels)

    def select(self, rows: NDArray[np.int64]) -> SemanticMap:
        """Refuse: a map has a class for every pixel."""
        message = (
            f"a semantic map is indexed by one number, as some of its pixels are no map, got the "
            f"numbers {rows.tolist()}. Take one, or list(result) for a list of regions."
        )
        raise TypeError(message)

    def describe(self) -> str:
        """Say the largest six classes and their shares of the image."""
        largest = sorted(self, key=lambda region: -region.share)[:6]
        return ", ".join(f"{region.name} {region.share:.1%}" for region in largest)

    def to_columns(self) -> dict[str, Any]:
        """Give the columns of the image, class, class_id, share, and pixels: of what occurs."""
        counts = self.counts
        ids = np.flatnonzero(counts)
        return {
            **self.image_columns(len(ids)),
            "class": text_column([self.class_names[class_id] for class_id in ids]),
            "class_id": ids,
            "share": counts[ids] / self.labels.size,
            "pixels": counts[ids],
        }

    def to_supervision(self) -> Any:  # noqa: ANN401 (supervision.Detections)
        """Convert to ``supervision.Detections``: a mask and its box for each class that occurs."""
        library = import_supervision()
        regions = list(self)
        masks = np.array([region.mask for region in regions], bool).reshape(-1, *self.size)
        names = np.array([region.name for region in regions], str)
        return library.Detections(
            xyxy=library.mask_to_xyxy(masks),
            mask=masks,
            class_id=np.array([region.class_id for region in regions], np.int64),
            data={"class_name": names},
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold: the mask of each class as COCO RLE."""
        return {
            "path": self.path,
            "size": list(self.size),
            "semantic": [
                {
                    "name": region.name,
                    "id": region.class_id,
                    "share": round(region.share, 6),
                    "mask": encode_mask(region.mask),
                }
                for region in self
            ],
        }
