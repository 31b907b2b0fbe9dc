# SPDX-License-Identifier: Apache-2.0
"""Mean IoU and accuracy of semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ShapeError
from muntin.results import SemanticMap
from muntin.shapes import Int


class SemanticMetric:
    """Accumulates predictions and ground truth as one confusion matrix.

    Figures, all in [0, 1]: `miou` (mean intersection over union), `mean_accuracy` and, per class,
    `iou` and `accuracy`; `pixel_accuracy` over all pixels. A class without a pixel in the truth is
    None in the lists and part of no mean; `num_classes_scored` counts the others. Pixels that the
    truth ignores count nowhere. `num_images` counts images.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.num_images = 0
        self.confusion: NDArray[np.int64] = np.zeros((len(class_names),) * 2, np.int64)
        """Pixels by true class (rows) and predicted class (columns)."""

    def update(
        self, answers: Sequence[SemanticMap], truth: Sequence[Int[np.ndarray, "H W"]]
    ) -> None:
        """Add images: predicted labels, and the true class of each pixel (below 0: ignored)."""
        for predicted, truth_map in zip(answers, truth, strict=True):
            self.confusion += count_pixels(predicted.labels, truth_map, len(self.class_names))
            self.num_images += 1

    def compute(self) -> dict[str, Any]:
        """Give the figures; those of a class are lists in the order of the classes."""
        hits = self.confusion.diagonal().astype(np.float64)
        truth = self.confusion.sum(axis=1)
        scored = truth > 0
        # At least 1, so that classes without a pixel, which are not scored, divide by no zero.
        iou = hits / np.maximum(truth + self.confusion.sum(axis=0) - hits, 1)
        accuracy = hits / np.maximum(truth, 1)
        known = bool(scored.any())
        return {
            "miou": float(iou[scored].mean()) if known else None,
            "mean_accuracy": float(accuracy[scored].mean()) if known else None,
            "pixel_accuracy": float(hits.sum() / truth.sum()) if known else None,
            "iou": np.where(scored, iou, None).tolist(),
            "accuracy": np.where(scored, accuracy, None).tolist(),
            "class_names": list(self.class_names),
            "num_classes_scored": int(scored.sum()),
            "num_images": self.num_images,
        }


def count_pixels(
    predicted: Int[np.ndarray, "H W"], truth_map: Int[np.ndarray, "h w"], num_classes: int
) -> NDArray[np.int64]:
    """Count the pixels of one image by true class and predicted class."""
    if predicted.shape != truth_map.shape:
        message = (
            f"prediction and ground truth must have one size, got {predicted.shape} and "
            f"{truth_map.shape}."
        )
        raise ShapeError(message)
    known = truth_map >= 0
    pairs = truth_map[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
