# SPDX-License-Identifier: Apache-2.0
"""Figures of classes: of images, with one label or any number, and of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.errors import ShapeError
from muntin.results import SemanticMap
from muntin.shapes import Float, Int


class ClassificationMetric:
    """Accumulates logits and targets; the figures do not depend on the batch size.

    Figures, all in [0, 1]. One label an image: `top1`, `top5` (of as many classes as there are, if
    fewer), `macro_f1`, and per class `recall`, `precision`, `f1`. Any number of labels: `map` (mean
    average precision over classes that occur), `macro_f1`, `micro_f1` and `exact_match` at a score
    of 0.5, and per class `average_precision`. Always `num_images`.
    """

    def __init__(self, num_classes: int, *, multi_label: bool = False) -> None:
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.num_images = 0
        self.confusion: Int[Tensor, "K K"] = torch.zeros(num_classes, num_classes, dtype=torch.long)
        """Images by true class (rows) and predicted class (columns); with one label an image."""
        self._top5_hits = 0
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Float[Tensor, "B K"], targets: Tensor) -> None:
        """Add a batch: class numbers (B), or 0 and 1 for each class (B, K)."""
        if not len(logits):
            return
        self.num_images += len(logits)
        logits, targets = logits.float().cpu(), targets.long().cpu()
        if self.multi_label:
            self._scores.append(logits.sigmoid())
            self._targets.append(targets)
            return
        pairs = targets * self.num_classes + logits.argmax(dim=1)
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self.confusion += counts.view_as(self.confusion)
        best = logits.topk(min(5, self.num_classes), dim=1).indices
        self._top5_hits += int((best == targets[:, None]).sum())

    def compute(self) -> dict[str, Any]:
        """Give the figures; those of a class are lists in the order of the classes."""
        if self.num_images == 0:
            return {"num_images": 0}
        return self._compute_many() if self.multi_label else self._compute_one()

    def _compute_one(self) -> dict[str, Any]:
        counts = self.confusion.double()
        hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        recall, precision = hits / truth, hits / predicted  # nan: the class does not occur
        f1 = 2 * hits / (truth + predicted)
        occurs = truth > 0
        return {
            "top1": (hits.sum() / counts.sum()).item(),
            "top5": (torch.tensor(self._top5_hits) / self.num_images).item(),
            "macro_f1": f1[occurs].mean().item(),
            "balanced_accuracy": recall[occurs].mean().item(),
            "recall": _numbers(recall),
            "precision": _numbers(precision),
            "f1": _numbers(f1),
            "num_images": self.num_images,
        }

    def _compute_many(self) -> dict[str, Any]:
        scores, targets = torch.cat(self._scores), torch.cat(self._targets)
        predicted = (scores > 0.5).long()
        hits, either = (predicted * targets).sum(0), (predicted + targets).sum(0)
        known = targets.sum(0) > 0
        columns = zip(scores.T, targets.T, strict=True)
        precision = torch.stack([_average_precision(*column) for column in columns])
        return {
            "map": precision[known].mean().item() if known.any() else None,
            # A class that neither occurs nor is predicted has an F1 of 0.
            "macro_f1": ((2 * hits / either.clamp(min=1)) / self.num_classes).sum().item(),
            "micro_f1": (2 * hits.sum() / either.sum().clamp(min=1)).item(),
            "exact_match": ((predicted == targets).all(1).sum() / self.num_images).item(),
            "average_precision": _numbers(precision),
            "num_images": self.num_images,
        }


def _average_precision(scores: Float[Tensor, " B"], targets: Int[Tensor, " B"]) -> Tensor:
    """Area under the steps of precision against recall; nan without a positive.

    As `sklearn.metrics.average_precision_score`: a threshold lets in all of an equal score.
    """
    order = scores.argsort(descending=True)
    scores, hits = scores[order], targets[order].cumsum(0)
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    counts = torch.arange(1, len(scores) + 1)[last]
    hits = hits[last]
    steps = torch.diff(hits / hits[-1], prepend=torch.zeros(1))
    return (steps * (hits / counts)).sum()


def _numbers(values: Tensor | NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


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
        either = np.maximum(truth + self.confusion.sum(axis=0) - hits, 1)
        iou = np.where(scored, hits / either, np.nan)
        accuracy = np.where(scored, hits / np.maximum(truth, 1), np.nan)
        known = bool(scored.any())
        return {
            "miou": float(iou[scored].mean()) if known else None,
            "mean_accuracy": float(accuracy[scored].mean()) if known else None,
            "pixel_accuracy": float(hits.sum() / truth.sum()) if known else None,
            "iou": _numbers(iou),
            "accuracy": _numbers(accuracy),
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
