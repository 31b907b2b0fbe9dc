# SPDX-License-Identifier: Apache-2.0
"""Figures of maps beside scikit-learn, and classes that are not there."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from muntin.errors import ShapeError
from muntin.metrics.class_metrics import SemanticMetric
from muntin.results import SemanticMap

NAMES = ("a", "b", "c", "d")


def said(labels):
    labels = np.asarray(labels, np.int16)
    return SemanticMap(path="", size=labels.shape, labels=labels, class_names=NAMES)


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(0)
    metric = SemanticMetric(NAMES)
    pixels = []
    for size in ((7, 9), (20, 3), (1, 1)):
        answer, truth = rng.integers(0, 4, size), rng.integers(-1, 4, size).astype(np.int16)
        metric.update([said(answer)], [truth])
        pixels.append(np.stack([truth, answer])[:, truth >= 0])
    expected = np.concatenate(pixels, axis=1)
    figures = metric.compute()
    iou = jaccard_score(*expected, average=None)
    assert figures["iou"] == pytest.approx(iou)
    assert figures["miou"] == pytest.approx(iou.mean())
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(*expected))
    assert figures["num_images"] == 3


def test_a_class_that_is_not_there_is_no_figure():
    metric = SemanticMetric(NAMES)
    metric.update([said([[0, 1, 2, 2]])], [np.array([[0, 1, 1, -1]], np.int16)])
    figures = metric.compute()
    assert figures["iou"] == [1.0, 0.5, None, None]
    assert figures["accuracy"] == [1.0, 0.5, None, None]
    assert figures["miou"] == 0.75
    assert figures["pixel_accuracy"] == pytest.approx(2 / 3)


def test_nothing_known():
    metric = SemanticMetric(NAMES)
    metric.update([said([[0, 1]])], [np.array([[-1, -1]], np.int16)])
    figures = metric.compute()
    assert (figures["miou"], figures["pixel_accuracy"]) == (None, None)
    assert figures["iou"] == [None] * 4


def test_other_size():
    with pytest.raises(ShapeError, match=r"\(1, 2\) and \(2, 1\)"):
        SemanticMetric(NAMES).update([said([[0, 1]])], [np.array([[0], [1]], np.int16)])
