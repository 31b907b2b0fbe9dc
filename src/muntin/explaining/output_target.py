# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The scalar output that is explained, by the kind of the task.

- classification: the logit of a class;
- detection: the log-odds of the class for the region proposal, or the cell, that the box came from.
  The region stays fixed while the image changes, so that the output is differentiable. An exported
  file gives final detections only: the output is the score of those that overlap the box;
- segmentation: the mean logit of a class over the cells that are assigned to it;
- keypoints: the value of the heatmap at its peak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou

from muntin.errors import ConfigError, shorten
from muntin.explaining.activation_recorder import record, replace_output
from muntin.explaining.context import Context
from muntin.heads.fcos import FCOS
from muntin.heads.instances import Instances
from muntin.heads.rcnn import RCNN
from muntin.ops.heatmaps import read_heatmaps, to_pixels
from muntin.shapes import Bool, Float

__all__ = ["EmptyPrediction", "OutputTarget", "class_name", "find_region", "select_output"]

MIN_SHARE = 0.01
"""Fraction of cells that a class must cover to be selected by default."""

Measure = Callable[[Tensor], Tensor]


class EmptyPrediction(Exception):
    """The prediction for this image contains nothing to explain."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutputTarget:
    """A scalar output of a network.

    Attributes:
        title: Description, such as "the logit of 'cat'".
        value: Its value for the unmodified image.
        measure: Computes it from a batch of network inputs: (B).
        number: Number of the class, box or keypoint.
        box: Edges of the box in pixels of the network's input, for detection.
        point: (x, y) in the same pixels, for a keypoint.
        region: (h, w) mask of the pixels of the class, for segmentation.
    """

    title: str
    value: float
    measure: Measure
    number: int
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    region: NDArray[np.bool_] | None = None


def select_output(context: Context, network: nn.Module, images: Tensor) -> OutputTarget:
    """Select the output for a context's target.

    Args:
        context: Its task determines the kind of output.
        network: Backbone and head whose parameters support autograd; or the engine of an exported
            file, whose output has no gradient.
        images: The network's input, (1, C, Hi, Wi): normalised, or pixels for an engine.

    Returns:
        The output of the target; without a target, of the prediction with the highest score.

    Raises:
        ConfigError: The class, box or keypoint does not exist.
        EmptyPrediction: The prediction contains nothing to explain.
    """
    task = context.task
    if task.detects:
        return _select_object(context, network, images)
    if task.top_down:
        return _select_keypoint(context, network, images)
    if task.kind == "segmentation":
        return _select_region(context, network, images)
    return _select_class(context, network, images)


def class_name(context: Context, class_id: int) -> str:
    """Name of a class; its number if it has no name."""
    names = context.classes.names
    return names[class_id] if class_id < len(names) else f"class {class_id}"


def choose(target: int | None, best: int, names: Sequence[str], kind_name: str) -> int:
    """Validate the target, or default to the best one.

    Raises:
        ConfigError: The target is out of range.
    """
    if target is None:
        return best
    if 0 <= target < len(names):
        return target
    known = shorten((f"{number} {name}" for number, name in enumerate(names)), limit=12)
    message = (
        f"target must be the number of a {kind_name}, from 0 to {len(names) - 1}, got {target}. "
        f"Available: {known}."
    )
    raise ConfigError(message)


def _names_of(context: Context, count: int) -> list[str]:
    return [class_name(context, number) for number in range(count)]


def _select_class(context: Context, network: nn.Module, images: Tensor) -> OutputTarget:
    with torch.no_grad():
        logits = network(images)
    names = _names_of(context, logits.shape[1])
    number = choose(context.target, int(logits[0].argmax()), names, "class")
    return OutputTarget(
        title=f"the logit of '{names[number]}'",
        value=float(logits[0, number]),
        measure=lambda images: network(images)[:, number],
        number=number,
    )


def _select_keypoint(context: Context, network: nn.Module, images: Tensor) -> OutputTarget:
    with torch.no_grad():
        maps = network(images)
    count, high, wide = maps.shape[1:]
    skeleton = context.classes.skeleton
    names = [f"keypoint {number}" for number in range(count)]
    names = names if skeleton is None else list(skeleton.names)
    heights, cells = maps[0].flatten(1).max(dim=1)
    number = choose(context.target, int(heights.argmax()), names, "keypoint")
    row, column = divmod(int(cells[number]), wide)
    head: Any = network.head
    coding = head.config.coding
    peaks = read_heatmaps(maps.float(), coding=coding)
    shown = (images.shape[2], images.shape[3])
    x, y = to_pixels(peaks.points, shown, (high, wide), coding=coding)[0, number].tolist()
    return OutputTarget(
        title=f"the peak of the heatmap of '{names[number]}'",
        value=float(heights[number]),
        measure=lambda images: network(images)[:, number, row, column],
        number=number,
        point=(x, y),
    )


def find_region(
    context: Context, logits: Float[Tensor, "K h w"]
) -> tuple[int, Bool[Tensor, "h w"]]:
    """Select a class of a segmentation map and the cells that are assigned to it.

    Args:
        context: Its target is the class; by default, the class with the highest mean probability
            over its cells.
        logits: Logits of each cell, without padding.

    Raises:
        ConfigError: The class does not exist.
        EmptyPrediction: No cell is assigned to the class.
    """
    assigned = logits.argmax(dim=0)
    counts = assigned.flatten().bincount(minlength=len(logits))
    confidence = logits.softmax(dim=0).amax(dim=0)
    means = torch.stack([
        confidence[assigned == k].mean()
        if counts[k] >= MIN_SHARE * assigned.numel()
        else confidence.new_tensor(-1.0)
        for k in range(len(logits))
    ])  # fmt: skip
    names = _names_of(context, len(logits))
    number = choose(context.target, int(means.argmax()), names, "class")
    if not counts[number]:
        present = shorten((names[k] for k in range(len(names)) if counts[k]), limit=12)
        message = f"no pixel of this image is predicted as '{names[number]}'; predicted: {present}"
        raise EmptyPrediction(message)
    return number, assigned == number


def _select_region(context: Context, network: nn.Module, images: Tensor) -> OutputTarget:
    with torch.no_grad():
        logits = network(images)
    high, wide = context.shown_size
    step_y, step_x = images.shape[2] / logits.shape[2], images.shape[3] / logits.shape[3]
    rows, columns = int(np.ceil(high / step_y)), int(np.ceil(wide / step_x))
    number, region = find_region(context, logits[0, :, :rows, :columns])
    places = region.nonzero(as_tuple=True)

    def measure(images: Tensor) -> Tensor:
        inside: Tensor = network(images)[:, number][:, places[0], places[1]]
        return inside.mean(dim=1)

    at_row = (np.arange(high) / step_y).astype(int)
    at_column = (np.arange(wide) / step_x).astype(int)
    return OutputTarget(
        title=f"the mean logit of '{class_name(context, number)}' over its pixels",
        value=float(logits[0, number][places].mean()),
        measure=measure,
        number=number,
        region=region.numpy()[at_row][:, at_column],
    )


def _select_object(context: Context, network: nn.Module, images: Tensor) -> OutputTarget:
    sizes = torch.tensor([context.shown_size])
    with torch.no_grad():
        detections: Instances = _find(network, images, sizes)[0]
    if not len(detections.boxes):
        message = "no detections in this image"
        raise EmptyPrediction(message)
    predicted = zip(detections.class_ids.tolist(), detections.scores.tolist(), strict=True)
    names = [f"{class_name(context, class_id)} ({score:.2f})" for class_id, score in predicted]
    number = choose(context.target, int(detections.scores.argmax()), names, "box")
    head = network.head
    if isinstance(head, RCNN):
        measure = _measure_region(network, head, images, sizes, detections, number)
    elif isinstance(head, FCOS):
        measure = _measure_cell(network, head, images, sizes, detections, number)
    else:
        measure = _measure_overlap(network, sizes, detections, number)
    with torch.no_grad():
        value = float(measure(images)[0])
    left, top, right, bottom = detections.boxes[number].tolist()
    kind = "log-odds" if isinstance(head, (RCNN, FCOS)) else "score"
    return OutputTarget(
        title=f"the {kind} of box {number}, {names[number]}",
        value=value,
        measure=measure,
        number=number,
        box=(left, top, right, bottom),
    )


def _measure_region(
    network: nn.Module,
    head: RCNN,
    images: Tensor,
    sizes: Tensor,
    detections: Instances,
    number: int,
) -> Measure:
    """Log-odds of the proposal that the box came from, classified again in other images."""
    class_id = int(detections.class_ids[number])
    with torch.no_grad(), record([head.rpn]) as outputs:
        boxes, scores = head.candidates(_levels(network, head, images), sizes)
    row = _find_candidate(boxes[0], scores[0], detections, number)
    region = outputs[0][1][0][:, row : row + 1]  # 1, 1, 4
    averages_scores = head.config.stage_average == "scores"

    def measure(images: Tensor) -> Tensor:
        # Replacing the proposals keeps the region fixed: selecting proposals has no gradient.
        count = len(images)
        levels = _levels(network, head, images)
        held = (region.expand(count, -1, -1), torch.ones(count, 1, dtype=torch.bool))
        with replace_output(head.rpn, held), record(head.box_heads) as outputs:
            head.candidates(levels, sizes.expand(count, -1))
        logits = torch.stack([output[0] for _, output in outputs])  # stages, B, K + 1
        logs = (logits if averages_scores else logits.mean(0, keepdim=True)).log_softmax(dim=2)
        others = torch.cat([logs[..., :class_id], logs[..., class_id + 1 :]], dim=2)
        return logs[..., class_id].logsumexp(dim=0) - others.logsumexp(dim=(0, 2))

    return measure


def _measure_cell(
    network: nn.Module,
    head: FCOS,
    images: Tensor,
    sizes: Tensor,
    detections: Instances,
    number: int,
) -> Measure:
    """Logit, in other images, of the cell that the box came from."""
    class_id = int(detections.class_ids[number])
    with torch.no_grad():
        levels = [level.detach() for level in _levels(network, head, images)]
    with record([head.classes]) as outputs:
        levels = [level.requires_grad_() for level in levels]
        boxes, scores = head.candidates(levels, sizes)
    row = _find_candidate(boxes[0], scores[0], detections, number)
    maps = [output for _, output in outputs]
    # The score depends on one logit of one cell of one level: the one with a non-zero gradient.
    slopes = torch.autograd.grad(scores[0, row, class_id], maps, allow_unused=True)
    largest = [0.0 if slope is None else float(slope.abs().max()) for slope in slopes]
    at = int(np.argmax(largest))
    slope = slopes[at]
    assert slope is not None, "a score comes from one of the levels"
    cell = divmod(int(slope[0, class_id].abs().argmax()), slope.shape[3])

    def measure(images: Tensor) -> Tensor:
        level = _levels(network, head, images)[at]
        logits: Tensor = head.classes(head.class_convs(level))
        return logits[:, class_id, cell[0], cell[1]]

    return measure


def _measure_overlap(
    network: nn.Module, sizes: Tensor, detections: Instances, number: int
) -> Measure:
    """Largest product of score and IoU with the box over detections of its class."""
    target_box, class_id = detections.boxes[number], detections.class_ids[number]

    def measure(images: Tensor) -> Tensor:
        numbers = []
        for one in _find(network, images, sizes.expand(len(images), -1)):
            same_class = one.class_ids == class_id
            overlaps = (
                box_iou(one.boxes[same_class], target_box[None])[:, 0] * one.scores[same_class]
            )
            numbers.append(overlaps.amax() if len(overlaps) else target_box.new_zeros(()))
        return torch.stack(numbers)

    return measure


def _find(network: nn.Module, images: Tensor, sizes: Tensor) -> list[Instances]:
    """Detections of each image."""
    decode: Any = network.decode
    detections: list[Instances] = decode(network(images, sizes))
    return detections


def _levels(network: nn.Module, head: RCNN | FCOS, images: Tensor) -> list[Tensor]:
    backbone: Any = network.backbone
    return head.read_levels(backbone.features(images))


def _find_candidate(
    boxes: Float[Tensor, "Q S 4"], scores: Float[Tensor, "Q K"], detections: Instances, number: int
) -> int:
    """Row of the candidate that became the detection: the highest score at its position."""
    class_id = int(detections.class_ids[number])
    slot = class_id if boxes.shape[1] > 1 else 0
    away = (boxes[:, slot].detach() - detections.boxes[number]).abs().amax(dim=1)
    near = away <= away.min() + 1e-3
    return int(torch.where(near, scores[:, class_id].detach(), -1.0).argmax())
