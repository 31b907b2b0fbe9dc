# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy, F1 and average precision of single-label and multi-label classification."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from muntin.shapes import Float

__all__ = ["ClassificationMetric"]


class ClassificationMetric:
    """Accumulates logits and targets; the figures do not depend on the batch size.

    Figures, all in [0, 1]. One label an image: `top1`, `top5` (of as many classes as there are,
    if fewer), `macro_f1`, and per class `recall`, `precision`, `f1`. Any number of labels: `map`
    (mean average precision over classes that occur), `macro_f1`, `micro_f1` and `exact_match` at
    a score of 0.5, and per class `average_precision`. Always `num_images`.

    Args:
        num_classes: Classes.
        multi_label: Whether an image may have any number of labels.
    """

    def __init__(self, num_classes: int, *, multi_label: bool = False) -> None:
        # Imported here: loading it takes seconds.
        import torchmetrics.classification as metrics
        from torchmetrics import MetricCollection

        self.num_classes = num_classes
        self.multi_label = multi_label
        self.num_images = 0
        self._occurrences = torch.zeros(num_classes)
        parts: dict[str, Any]
        if multi_label:
            parts = {
                "average_precision": metrics.MultilabelAveragePrecision(
                    num_classes, average="none"
                ),
                "macro_f1": metrics.MultilabelF1Score(num_classes, average="macro"),
                "micro_f1": metrics.MultilabelF1Score(num_classes, average="micro"),
                "exact_match": metrics.MultilabelExactMatch(num_classes),
            }
        else:
            top = min(5, num_classes)
            parts = {
                "top5": metrics.MulticlassAccuracy(num_classes, top_k=top, average="micro"),
                "confusion": metrics.MulticlassConfusionMatrix(num_classes),
            }
        self._parts = MetricCollection(parts, compute_groups=False)

    def update(self, logits: Float[Tensor, "B K"], targets: Tensor) -> None:
        """Add a batch: class numbers (B), or 0 and 1 for each class (B, K)."""
        if not len(logits):
            return
        self.num_images += len(logits)
        if self.multi_label:
            self._occurrences += targets.float().cpu().sum(dim=0)
            self._parts.update(logits.float().sigmoid().cpu(), targets.long().cpu())
        else:
            self._parts.update(logits.float().cpu(), targets.long().cpu())

    @property
    def confusion(self) -> Tensor:
        """Counts (true class, predicted class); only with one label an image."""
        matrix: Tensor = self._parts["confusion"].compute()
        return matrix

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
            "top5": self._parts["top5"].compute().item(),
            "macro_f1": f1[occurs].mean().item(),
            "balanced_accuracy": recall[occurs].mean().item(),
            "recall": _numbers(recall),
            "precision": _numbers(precision),
            "f1": _numbers(f1),
            "num_images": self.num_images,
        }

    def _compute_many(self) -> dict[str, Any]:
        with warnings.catch_warnings():
            # Of classes without images, which are left out below.
            warnings.filterwarnings("ignore", "No positive samples found")
            values = self._parts.compute()
        known = self._occurrences > 0
        precision = torch.where(known, values["average_precision"], torch.nan)
        return {
            "map": precision[known].mean().item() if known.any() else None,
            "macro_f1": values["macro_f1"].item(),
            "micro_f1": values["micro_f1"].item(),
            "exact_match": values["exact_match"].item(),
            "average_precision": _numbers(precision),
            "num_images": self.num_images,
        }


def _numbers(values: Tensor) -> list[float | None]:
    """Numbers for JSON; None where there is none."""
    return [None if torch.isnan(value) else value.item() for value in values]
