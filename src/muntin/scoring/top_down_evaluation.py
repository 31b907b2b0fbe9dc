# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Score keypoints of instances that a detector has to find first."""

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
"""Score from which boxes count: average precision needs those with low scores too."""


def score_detected(
    run: Run, data: Path | str, detector: Run | Path | str, *, device: str, tta: bool = False
) -> Scored:
    """Find the subjects of every image, those without any included, and score their keypoints.

    Average precision is of every box; distances are of the subjects that prediction tells, see
    `PoseMetric`.

    Args:
        run: It looks for keypoints.
        data: As for evaluation; its test part if it has one, else its validation part, else all.
        detector: The run that finds subjects.
        device: Where both run.
        tta: Whether mirrored subjects are seen too.

    Raises:
        ConfigError: The run does not look for keypoints, or `detector` is no detector.
        DataError: The data cannot be read.
    """
    if not run.task.top_down:
        message = f"a detector is for keypoints, got a run that was trained to {run.task.name}."
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
        assert entry.objects is not None, "readers of keypoints give objects"
        truth.append(PoseInstance(path=entry.path, size=entry.size, objects=entry.objects, row=-1))
    metric = PoseMetric(skeleton_of(run.classes), score_threshold=find_threshold(finder).score)
    metric.update(answers, truth)
    outputs = Outputs(
        answers=answers, truth=truth, losses=torch.empty(0), indices=torch.arange(len(listing))
    )
    return Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)
