# SPDX-License-Identifier: Apache-2.0
"""Accuracy, F1 and average precision of single-label and multi-label classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def _numbers(values: Tensor) -> list[float | None]:
    return [None if torch.isnan(value) else value.item() for value in values]
