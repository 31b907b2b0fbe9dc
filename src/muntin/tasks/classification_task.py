# SPDX-License-Identifier: Apache-2.0
"""Classification, single-label or multi-label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muntin.data.listing import check_classify, list_classify
from muntin.features import Features
from muntin.heads.classification_head import build_classifier, class_losses
from muntin.heads.network import Head
from muntin.metrics.class_metrics import ClassificationMetric
from muntin.results import Labels
from muntin.samples import Classes, Listing
from muntin.shapes import Float, Size
from muntin.tasks.task import ImageMeta, InferenceBatch, Task, TrainBatch

MAX_CLASSES = 1000
"""Classes listed in a result, best first."""


def _ground_truth(listing: Listing, classes: Classes) -> Tensor:
    """Class numbers (N); for multi-label data 0.0 or 1.0 for each class (N, K)."""
    if not classes.multi_label:
        return torch.tensor([entry.class_ids[0] for entry in listing.entries])
    targets = torch.zeros(len(listing), len(classes.names))
    for row, entry in zip(targets, listing.entries, strict=True):
        row[list(entry.class_ids)] = 1
    return targets


def _losses(
    head: Head, features: Features, batch: TrainBatch, classes: Classes
) -> dict[str, Float[Tensor, " B"]]:
    assert batch.labels is not None, "classification needs labels"
    return head.losses(
        features,
        batch.labels,
        class_weights=batch.class_weights,
        label_smoothing=batch.label_smoothing,
        multi_label=classes.multi_label,
    )


def _predict(inputs: InferenceBatch) -> Float[Tensor, "B K"]:
    logits: Tensor = inputs.forward(inputs.images)
    return (logits + inputs.forward(inputs.images.flip(-1))) / 2 if inputs.options.tta else logits


def _decode(
    logits: Float[Tensor, "B K"], metas: Sequence[ImageMeta], classes: Classes
) -> list[Labels]:
    logits = logits.double().cpu()
    scores = logits.sigmoid() if classes.multi_label else logits.softmax(dim=1)
    scores, ids = scores.sort(dim=1, descending=True, stable=True)
    scores, ids = scores[:, :MAX_CLASSES], ids[:, :MAX_CLASSES]
    return [
        Labels(
            path=meta.path,
            size=meta.size,
            class_ids=row_ids.numpy(),
            scores=row_scores.numpy(),
            class_names=tuple(classes.names[i] for i in row_ids.tolist()),
        )
        for meta, row_ids, row_scores in zip(metas, ids, scores, strict=True)
    ]


def _finish(logits: Tensor, size: Size, head: object, classes: Classes) -> Tensor:
    return logits.sigmoid() if classes.multi_label else logits.softmax(dim=1)


CLASSIFY = Task(
    name="classify",
    list_data=lambda path, classes, data: list_classify(
        path, class_names=None if classes is None else classes.names
    ),
    check_data=check_classify,
    make_head=lambda backbone, classes, config: build_classifier(backbone, len(classes.names)),
    ground_truth=_ground_truth,
    losses=_losses,
    predict=_predict,
    make_answers=lambda logits, metas, classes: logits.float().cpu(),
    decode=_decode,
    compare=lambda logits, targets, classes: class_losses(
        logits, targets, multi_label=classes.multi_label
    ),
    metric=lambda classes: ClassificationMetric(
        len(classes.names), multi_label=classes.multi_label
    ),
    goals=("top1", "map", "macro_f1"),
    kind="classification",
    finish=("probabilities", _finish),
)
