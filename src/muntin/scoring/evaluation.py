# SPDX-License-Identifier: Apache-2.0
"""Evaluate a run on a data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from muntin.clusters.ray_cluster import check_address
from muntin.data.batches import evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig, change_reading
from muntin.data.entry_images import choose_range, read_pixels
from muntin.data.pose import is_whole, list_pose
from muntin.data.value_ranges import UNSET
from muntin.drawing.notebook import show_facts
from muntin.errors import ConfigError, DataError, MuntinWarning, RunError, quote
from muntin.metrics.detection_metric import DetectionMetric
from muntin.metrics.pose_metric import PoseMetric
from muntin.prediction.from_run import find_threshold, load
from muntin.published import open_run
from muntin.run_files import read_split
from muntin.runs import Run
from muntin.samples import Classes, DataSets, Listing, skeleton_of
from muntin.scoring.cluster_scoring import score_on
from muntin.scoring.evaluation_plots import draw_evaluation
from muntin.scoring.evaluator import Outputs, Scored, score
from muntin.staging import part_of
from muntin.tasks.task import Task

MIN_SCORE = 0.05
"""Low, because average precision needs detections with low scores too."""


class Figures(dict[str, Any]):
    """Named figures of an evaluation; a notebook shows those that are numbers."""

    def _repr_html_(self) -> str:
        return show_facts("evaluation", self)


def pick_part(parts: DataSets, task: Task, data: Path | str, classes: Classes) -> Listing:
    """Choose the part of `data` to evaluate: test if it has one, else validation, else all.

    A fault of the data, or labels that the classes of a run do not fit, are a `DataError`.
    """
    listing = _held_out(parts, task, data)
    if parts.fault:
        message = f"{parts.fault}. See: muntin check {task.name} {quote(data)}"
        raise DataError(message)
    if parts.left_out:
        text = f"{parts.left_out}. See: muntin check {task.name} {quote(data)}"
        warnings.warn(text, MuntinWarning, stacklevel=3)
    if task.dense is None and listing.multi_label and not classes.multi_label:
        message = (
            f"{data} must have one class per image, as in training, got images with none or "
            f"several. Evaluate a run that was trained on multi-label data."
        )
        raise DataError(message)
    return listing


def _held_out(parts: DataSets, task: Task, data: Path | str) -> Listing:
    listing = parts.test or parts.val or parts.train
    if listing is None or not len(listing):
        message = f"{data} must hold images, got none. See: muntin check {task.name} {quote(data)}"
        raise DataError(message)
    return listing


def _warn_about_training_images(listing: Listing, run: Run) -> None:
    """Warn if the run is evaluated on images it was trained on (it split the set itself)."""
    try:
        train, num_train, source, held_out = read_split(run.path)
    except RunError:
        return
    learnt = len(listing) - len(held_out)
    same = os.path.realpath(source) == os.path.realpath(listing.source)
    if not same or not held_out or (train, num_train) != (source, learnt):
        return
    text = (
        f"the run was trained on {learnt} of these {len(listing)} {listing.unit}, so the figures "
        f"are too optimistic. For its {len(held_out)} validation {listing.unit} see: "
        f"{run.path}/journal.jsonl"
    )
    warnings.warn(text, MuntinWarning, stacklevel=3)


def _warn_about_missing_boxes(listing: Listing, run: Run) -> None:
    """Warn if a run that was trained on crops is evaluated on data without boxes."""
    if run.task.top_down and run.preprocessing.padding != 1 and is_whole(listing):
        text = (
            "the run was trained on crops of instances, but this data has no boxes: whole images "
            "are used as instances, which lowers the figures. Give --detector RUN"
        )
        warnings.warn(text, MuntinWarning, stacklevel=3)


def evaluate(
    run: Run | Path | str,
    data: Path | str,
    *,
    batch_size: int = 0,
    device: str = "auto",
    pictures: bool = True,
    detector: str | Path = "",
    tta: bool = False,
    settings: Mapping[str, object] | None = None,
    on: str = "",
) -> dict[str, Any]:
    """Score a run on a data set.

    Args:
        run: A run folder, an exported file, or the name of a model with published weights.
        data: A data set; its test part if it has one, else its validation part, else all.
        batch_size: Images at a time; 0 chooses by their size.
        device: "auto" takes a GPU when there is one.
        pictures: Whether to draw plots and the worst errors into ``pictures/eval`` of the run.
        detector: For top-down poses, a run that detects the instances; annotated boxes are used if
            left out. For the matching see `muntin.metrics.pose_metric.PoseMetric`.
        tta: Whether to average predictions with those for mirrored images.
        settings: Changed options of reading this data: ``{"data.ignored": "background"}``.
        on: "ray", or the address of a cluster such as "ray://head:10001", whose machines answer.

    Returns:
        Named figures in [0, 1], per class too, and `num_images`. Of objects, also what is found in
        images without any, see `DetectionMetric.false_alarms`; of keypoints, with a detector, see
        `PoseMetric`.

    Raises:
        RunError: The run folder is incomplete.
        DataError: The data cannot be read, or has other classes.
        ConfigError: `tta` with a detector run, or `on` with `detector`.
        ClusterError: The cluster cannot be used.
    """
    run = open_run(run)
    reading = change_reading(run.config.data_config, settings or {})
    if "data.range" in (settings or {}):
        run = replace(run, preprocessing=replace(run.preprocessing, value_range=reading.range))
    if on and check_address(on) and detector:
        message = "--on does not suit --detector, got both. Leave --on (on) out."
        raise ConfigError(message)
    if detector:
        scored = _score_detected(run, data, detector, device=device, tta=tta)
        if pictures:
            store = ImageCache(scored.listing, run.preprocessing, DataConfig(cache_mib=0))
            draw_evaluation(scored, store, run.classes, part_of(run.folder, "pictures", "eval"))
        return Figures(scored.figures)
    parts = run.task.list_data(data, run.classes, reading)
    listing = pick_part(parts, run.task, data, run.classes)
    _warn_about_training_images(listing, run)
    _warn_about_missing_boxes(listing, run)
    if run.preprocessing.value_range != UNSET:
        choose_range(listing, listing, run.preprocessing.value_range)  # warns
    if tta and run.task.detects:
        message = f"tta does not suit a {run.task.name} run with this head. Leave it out."
        raise ConfigError(message)
    store = ImageCache(listing, run.preprocessing, DataConfig(cache_mib=0) if on else DataConfig())
    batch_size = batch_size or evaluation_batch(run.preprocessing)
    if on:
        scored = score_on(on, run, store, batch_size=batch_size, device=device, tta=tta)
    else:
        scored = score(load(run, device=device), store, batch_size=batch_size, tta=tta)
    if pictures:
        draw_evaluation(scored, store, run.classes, part_of(run.folder, "pictures", "eval"))
    if not isinstance(scored.metric, DetectionMetric):
        return Figures(scored.figures)
    # What is found in images without objects: precision alone says nothing of it.
    return Figures({**scored.figures, **scored.metric.false_alarms(find_threshold(run).score)})


def _score_detected(
    run: Run, data: Path | str, detector: Path | str, *, device: str, tta: bool
) -> Scored:
    """Detect the instances of every image, predict their keypoints and compute the figures.

    Average precision is computed from all boxes; distances from those above the threshold of
    prediction. Images without instances count.
    """
    finder = open_run(detector)
    predictor = load(run, device=device, detector=finder, detector_threshold=MIN_SCORE)
    listing = _held_out(list_pose(data, classes=run.classes, whole=True), run.task, data)
    # By functions: the detector may see other values of the same image.
    images = (
        lambda value_range, entry=entry: read_pixels(listing.source, entry, value_range)[0]
        for entry in listing.entries
    )
    answers = list(predictor.stream(images, tta=tta))
    indices = torch.arange(len(listing))
    truth = run.task.ground_truth(listing, run.classes)[indices]
    metric = PoseMetric(skeleton_of(run.classes), score_threshold=find_threshold(finder).score)
    metric.update(answers, truth)
    outputs = Outputs(answers=answers, truth=truth, losses=torch.empty(0), indices=indices)
    return Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)
