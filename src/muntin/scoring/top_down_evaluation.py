# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluate top-down poses on detected instances instead of annotated boxes."""

from __future__ import annotations

from pathlib import Path

import torch

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.data.pose import list_pose
from muntin.errors import ConfigError, DataError
from muntin.metrics.pose_metric import PoseInstance, PoseMetric
from muntin.prediction.from_run import find_threshold, load
from muntin.runs import Run
from muntin.samples import skeleton_of
from muntin.scoring.outputs import Outputs, Scored

__all__ = ["score_detected"]

MIN_SCORE = 0.05
"""Low, because average precision needs detections with low scores too."""


def score_detected(
    run: Run, data: Path | str, detector: Run | Path | str, *, device: str, tta: bool = False
) -> Scored:
    """Detect the instances of every image, predict their keypoints and compute the figures.

    Average precision is computed from all boxes; distances from those above the threshold of
    prediction, see `PoseMetric`. Images without instances count.

    Args:
        run: A top-down pose run.
        data: As for evaluation; its test part if it has one, else its validation part, else all.
        detector: The run that detects instances.
        device: Device of both.
        tta: Whether to average with predictions for mirrored crops.

    Raises:
        ConfigError: The run is not top-down, or `detector` is not a detector.
        DataError: The data cannot be read.
    """
    if not run.task.top_down:
        message = f"detector needs a top-down pose run, got a {run.task.name} run. Leave it out."
        raise ConfigError(message)
    parts = list_pose(data, classes=run.classes, whole=True)
    listing = parts.test or parts.val or parts.train
    if listing is None or not len(listing):
        message = f"{data} must hold images, got none. See: muntin check {run.task.name} {data}"
        raise DataError(message)
    finder = detector if isinstance(detector, Run) else Run.open(detector)
    predictor = load(run, device=device, detector=finder, detector_threshold=MIN_SCORE)
    images = (
        decode(read_bytes(listing.source, entry.path), where=entry.path)
        for entry in listing.entries
    )
    answers = list(predictor.stream(images, tta=tta))
    truth = []
    for entry in listing.entries:
        assert entry.objects is not None, "keypoint readers list objects"
        truth.append(PoseInstance(path=entry.path, size=entry.size, objects=entry.objects, row=-1))
    metric = PoseMetric(skeleton_of(run.classes), score_threshold=find_threshold(finder).score)
    metric.update(answers, truth)
    outputs = Outputs(
        answers=answers, truth=truth, losses=torch.empty(0), indices=torch.arange(len(listing))
    )
    return Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)
