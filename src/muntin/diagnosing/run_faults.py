# SPDX-License-Identifier: Apache-2.0
"""Why a run found nothing: its settings, its progress, and what it answered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.diagnosing.data_faults import find_data_faults
from muntin.diagnosing.findings import Finding
from muntin.errors import plural
from muntin.metrics.class_metrics import ClassificationMetric, SemanticMetric
from muntin.metrics.detection_metric import DetectionMetric
from muntin.ops.boxes import box_iou
from muntin.run_config import RunConfig
from muntin.run_files import read_split
from muntin.runs import Run, read_journal
from muntin.samples import Listing
from muntin.scoring.evaluator import Scored

_NOTHING = 0.005  # of average precision, PCK
_SHORT, _SOME = 100, 500  # steps
_MOVEMENT = 1e-3  # of a weight: rate times steps, as Adam takes steps of the size of the rate


def is_failed(run: Run, figures: Mapping[str, Any]) -> bool:
    """Whether figures are those of a network that found nothing, or guesses."""
    name, value = run.task.goal(figures)
    count = len(run.classes.names)
    match run.task.kind:
        case "pretraining":
            return False
        case "classification" if "balanced_accuracy" in figures and count > 1:
            chance = 1 / count
            value = figures["balanced_accuracy"]
            return bool(value <= min(1.5 * chance, chance + 0.1 * (1 - chance)))
        case "segmentation":
            known = [one for one in figures.get("iou", ()) if one is not None]
            return not known or (len(known) > 1 and sum(one > 0 for one in known) < 2)
    return not name or value < _NOTHING


def diagnose_result(
    run: Run,
    sets: tuple[Listing, Listing] | None,
    figures: Mapping[str, Any],
    scored: Scored | None = None,
) -> list[Finding]:
    """Give the causes of figures that show nothing; none for others.

    `sets` are images of training and of validation, if they are still there; `scored` is what was
    answered, if it is known.
    """
    if not is_failed(run, figures):
        return []
    journal, tuned = read_journal(run.path), run.config.train
    count = read_split(run.path).num_train if sets is None else len(sets[0])
    whole = math.ceil(count / max(tuned.batch_size, 1))  # of lines that earlier versions wrote
    batches = (line.get("steps", whole) for line in journal)
    steps = sum(math.ceil(each / tuned.accumulate) for each in batches)
    short = Finding(code="too-short", where="training", detail=plural(steps, "step"))
    # Nothing else can be told of so few, and looking at images would take longer.
    if steps < _SHORT:
        return [short]
    found: list[Finding] = []
    if sets is not None:
        parts = dict(zip(("train", "val"), sets, strict=True))
        found += find_data_faults(parts, pre=run.preprocessing)
    found += [*find_setting_faults(run.config), *_judge_progress(run, journal, steps)]
    found += [] if scored is None else _judge_answers(scored)
    rest = short if steps < _SOME else Finding(code="unexplained", where="training")
    return found or [rest]


def find_setting_faults(config: RunConfig) -> Iterator[Finding]:
    """Find settings with which little can be learnt."""
    tuned = config.train
    if (tuned.freeze == -1 or tuned.adapt == "lora") and not config.weights:
        detail = f"train.freeze={tuned.freeze}, train.adapt={tuned.adapt}, random weights"
        yield Finding(code="frozen", where="settings", detail=detail)


def _judge_progress(
    run: Run, journal: Sequence[Mapping[str, Any]], steps: int
) -> Iterator[Finding]:
    losses = [float(line["train_loss"]) for line in journal if line.get("train_loss") is not None]
    rates = [float(line.get("learning_rate", 0)) for line in journal]
    if not losses:
        return
    text = f"loss {losses[0]:.3g} -> {losses[-1]:.3g}, learning rate up to {max(rates):.2g}"
    count = len(run.classes.names)
    if max(rates) * steps < _MOVEMENT and run.config.train.optimizer == "adamw":
        yield Finding(code="rate-low", where="training", detail=text)
    elif not math.isfinite(sum(losses)) or losses[-1] > 1.5 * min(losses):
        yield Finding(code="rate-high", where="training", detail=text)
    elif run.task.kind == "classification" and losses[-1] > 0.9 * math.log(count):
        yield Finding(code="no-signal", where="training", detail=f"{text}; {count} classes")
    elif len(losses) > 1 and losses[-1] < losses[0] / 2:
        yield Finding(code="validation-differs", where="val", detail=text)


def _judge_answers(scored: Scored) -> Iterator[Finding]:
    """Whether answers are right but for a permutation of the classes."""
    counts = _count_pairs(scored)
    if counts is None:
        return
    used = np.flatnonzero(counts.sum(axis=1))
    best = counts.argmax(axis=1)[used]
    # Of few, chance makes any order of classes.
    if counts.sum() < max(20, 5 * len(used)) or len(set(best.tolist())) < max(2, len(used)):
        return
    right, renamed = counts.trace(), counts.max(axis=1).sum()
    if renamed > 0.6 * counts.sum() and right < renamed / 3:
        names = scored.listing.class_names
        pairs = list(zip(used.tolist(), best.tolist(), strict=True))[:3]
        detail = ", ".join(f"{names[one]!r} is found as {names[other]!r}" for one, other in pairs)
        yield Finding(code="permuted-classes", where="val", detail=detail)


def _count_pairs(scored: Scored) -> NDArray[np.int64] | None:
    """Count by true class (rows) and found class (columns); of objects, those that overlap."""
    metric = scored.metric
    if isinstance(metric, ClassificationMetric):
        return None if metric.multi_label else metric.confusion.numpy()
    if isinstance(metric, SemanticMetric):
        return metric.confusion
    if not isinstance(metric, DetectionMetric):
        return None
    counts = np.zeros((len(scored.listing.class_names),) * 2, np.int64)
    for found, truth in zip(scored.outputs.answers, scored.outputs.truth, strict=True):
        single = np.flatnonzero(~truth.crowd)
        if len(found) and len(single):
            overlaps = overlaps_of(truth.boxes[single], found.boxes)
            rows = np.flatnonzero(overlaps.max(axis=1) >= 0.5)
            best = overlaps.argmax(axis=1)[rows]
            np.add.at(counts, (truth.class_ids[single[rows]], found.class_ids[best]), 1)
    return counts


def overlaps_of(
    first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Intersection over union of boxes (N, 4) with boxes (M, 4): (N, M)."""
    one, other = (torch.from_numpy(np.asarray(boxes, np.float64)) for boxes in (first, second))
    return np.asarray(box_iou(one, other).numpy())
