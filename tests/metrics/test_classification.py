# SPDX-License-Identifier: Apache-2.0
"""Figures against plain numpy twins, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muntin.metrics.class_metrics import ClassificationMetric


def collect(logits, targets, batch_size, **options):
    metric = ClassificationMetric(logits.shape[1], **options)
    for start in range(0, len(logits), batch_size):
        metric.update(logits[start : start + batch_size], targets[start : start + batch_size])
    return metric


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_one_label_a_image(batch_size):
    logits, targets = torch.randn(97, 8), torch.randint(0, 7, (97,))  # class 7 does not occur
    metric = collect(logits, targets, batch_size)
    figures = metric.compute()
    scores, truth = logits.numpy(), targets.numpy()
    said = scores.argmax(1)
    best = np.argsort(-scores, 1)[:, :5]
    assert figures["num_images"] == 97
    assert figures["top1"] == pytest.approx((said == truth).mean())
    assert figures["top5"] == pytest.approx((best == truth[:, None]).any(1).mean())
    f1s = []
    for class_id in range(8):
        hits = ((said == class_id) & (truth == class_id)).sum()
        in_truth, in_said = (truth == class_id).sum(), (said == class_id).sum()
        if in_truth:
            assert figures["recall"][class_id] == pytest.approx(hits / in_truth)
            f1s.append(2 * hits / (in_truth + in_said))
            assert figures["f1"][class_id] == pytest.approx(f1s[-1])
        if in_said:
            assert figures["precision"][class_id] == pytest.approx(hits / in_said)
    assert figures["recall"][7] is None
    assert figures["macro_f1"] == pytest.approx(np.mean(f1s))
    recalls = [value for value in figures["recall"] if value is not None]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert metric.confusion.sum() == 97
    assert metric.confusion[2, 3] == ((truth == 2) & (said == 3)).sum()


def average_precision(scores, truth):
    order = np.argsort(-scores, kind="stable")
    hits = truth[order]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return (precision * hits).sum() / hits.sum()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_several_labels_a_image(batch_size):
    logits, targets = torch.randn(60, 4), (torch.rand(60, 4) < 0.3).float()
    targets[:, 3] = 0  # does not occur
    figures = collect(logits, targets, batch_size, multi_label=True).compute()
    scores, truth = logits.numpy(), targets.numpy()
    expected = [average_precision(scores[:, k], truth[:, k]) for k in range(3)]
    assert figures["average_precision"][:3] == pytest.approx(expected, abs=1e-5)
    assert figures["average_precision"][3] is None
    assert figures["map"] == pytest.approx(np.mean(expected), abs=1e-5)
    said = scores > 0
    assert figures["exact_match"] == pytest.approx((said == truth).all(1).mean())
    hits = (said & (truth == 1)).sum()
    assert figures["micro_f1"] == pytest.approx(2 * hits / (said.sum() + truth.sum()))


def test_few_classes_and_nothing():
    figures = collect(torch.randn(5, 2), torch.randint(0, 2, (5,)), 5).compute()
    assert figures["top5"] == 1.0
    empty = ClassificationMetric(3)
    empty.update(torch.empty(0, 3), torch.empty(0))
    assert empty.compute() == {"num_images": 0}
