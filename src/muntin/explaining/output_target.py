# SPDX-License-Identifier: Apache-2.0
"""What is explained: the scalar output of a target, by the kind of the task.

- classification: the logit of a class;
- detection: what `score_of` of the head gives, which holds the place that the box came from, so
  that the output is differentiable. An exported file gives final detections only: the output is the
  score of those that overlap the box;
- segmentation: the mean logit of a class over the cells that are assigned to it;
- keypoints: the value of the heatmap at its peak.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.errors import ConfigError, MuntinError, shorten, unknown_name
from muntin.explaining.context import Context
from muntin.explaining.figures import find_text
from muntin.heads.detector import Instances
from muntin.ops.boxes import box_iou
from muntin.ops.keypoints import read_heatmaps, to_pixels
from muntin.shapes import Bool, Float

MIN_SHARE = 0.01
"""Fraction of cells that a class must cover to be selected by default."""

Measure = Callable[[Tensor], Tensor]

AnyNetwork = Any
"""Backbone and head, or the engine of an exported file."""


class EmptyPrediction(Exception):
    """The prediction for this image contains nothing to explain."""


class TargetNotFound(ConfigError):
    """The model does not detect the target in this image."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OutputTarget:
    """A scalar output of a network.

    The title is such as "the logit of 'cat'"; the value is that of the unmodified image, and
    `measure` computes it from a batch of inputs. The number is that of the class, box or keypoint;
    box (left, top, right, bottom), point (x, y) of a keypoint and region (h, w) of a class are in
    pixels of the network's input.
    """

    title: str
    value: float
    measure: Measure
    number: int
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    region: NDArray[np.bool_] | None = None


def find_target(context: Context, target: str | int | None) -> int | None:
    """Resolve a target (name or number of a class or keypoint, or number of a box) to its number.

    It is a `TargetNotFound` that no such box is detected in this image.
    """
    if target is None:
        return None
    task, classes = context.task, context.classes
    kind, names = "class", classes.names
    if classes.skeleton is not None and not task.detects:
        kind, names = "keypoint", classes.skeleton.names
    if isinstance(target, str) and target in names:
        number = names.index(target)
        return _find_box(context, number) if task.detects else number
    if isinstance(target, str) and not re.fullmatch(r"\s*\d{1,9}\s*", target):
        hint = "Omit the target to explain the prediction with the highest score."
        raise ConfigError(unknown_name(kind, target, names, hint=hint))
    number = int(target)
    if task.detects:
        _require_box(context, number)
    elif not 0 <= number < len(names):
        message = (
            f"target must be a {kind}: a name, or a number from 0 to {len(names) - 1}, got "
            f"{target}. Omit it to explain the prediction with the highest score."
        )
        raise ConfigError(message)
    return number


def _require_box(context: Context, number: int) -> None:
    try:
        count = len(context.prediction)
    except MuntinError:
        return  # the explainers report an image that the network cannot process
    if not 0 <= number < count:
        known = f"a number from 0 to {count - 1}" if count else "but none was detected"
        raise _not_found(context, f"box, {known}", number)


def _find_box(context: Context, class_id: int) -> int:
    """Number of the box of a class with the highest score."""
    found = context.prediction
    class_ids = getattr(found, "class_ids", np.zeros(len(found), np.int64))
    places = np.flatnonzero(class_ids == class_id)
    if not len(places):
        raise _not_found(context, "class", context.classes.names[class_id])
    return int(places[0])


def _not_found(context: Context, wanted: str, target: str | int) -> TargetNotFound:
    message = (
        f"target must be a detected {wanted}, in {context.path or 'the image'}, got {target!r}. "
        f"Omit it to explain the prediction with the highest score."
    )
    return TargetNotFound(message)


def select_output(context: Context, network: nn.Module, images: Tensor) -> OutputTarget:
    """Select the output of the target; without one, of the prediction with the highest score.

    The images, a batch of one, are normalised; those for the engine of an exported file, whose
    output has no gradient, are pixels. It is an `EmptyPrediction` that there is nothing to explain.
    """
    task = context.task
    if task.detects:
        return _select_object(context, network, images)
    with torch.no_grad():
        raw = network(images)
    if task.top_down:
        return _select_keypoint(context, network, images, raw)
    if task.kind == "segmentation":
        return _select_region(context, network, images, raw)
    names = _names_of(context, raw.shape[1])
    number = _choose(context.target, int(raw[0].argmax()), names, "class")
    return OutputTarget(
        title=find_text("targets", "class", name=names[number]),
        value=float(raw[0, number]),
        measure=lambda images: network(images)[:, number],
        number=number,
    )


def _names_of(context: Context, count: int) -> list[str]:
    names = context.classes.names
    return [names[k] if k < len(names) else f"class {k}" for k in range(count)]


def _choose(target: int | None, best: int, names: Sequence[str], kind_name: str) -> int:
    """Validate the target, or default to the best one."""
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


def _select_keypoint(
    context: Context, network: nn.Module, images: Tensor, maps: Tensor
) -> OutputTarget:
    count, high, wide = maps.shape[1:]
    skeleton = context.classes.skeleton
    names = [f"keypoint {number}" for number in range(count)]
    names = names if skeleton is None else list(skeleton.names)
    heights, cells = maps[0].flatten(1).max(dim=1)
    number = _choose(context.target, int(heights.argmax()), names, "keypoint")
    row, column = divmod(int(cells[number]), wide)
    head: Any = network.head
    coding = head.config.coding
    peaks = read_heatmaps(maps.float(), coding=coding)
    shown = (images.shape[2], images.shape[3])
    x, y = to_pixels(peaks.points, shown, (high, wide), coding=coding)[0, number].tolist()
    return OutputTarget(
        title=find_text("targets", "keypoint", name=names[number]),
        value=float(heights[number]),
        measure=lambda images: network(images)[:, number, row, column],
        number=number,
        point=(x, y),
    )


def _find_region(
    context: Context, logits: Float[Tensor, "K h w"]
) -> tuple[int, Bool[Tensor, "h w"]]:
    """Select a class and its cells; by default the one of highest mean probability over them."""
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
    number = _choose(context.target, int(means.argmax()), names, "class")
    if not counts[number]:
        present = shorten((names[k] for k in range(len(names)) if counts[k]), limit=12)
        fields = {"name": names[number], "present": present}
        raise EmptyPrediction(find_text("missing.decision-empty", "pixels", **fields))
    return number, assigned == number


def _select_region(
    context: Context, network: nn.Module, images: Tensor, logits: Tensor
) -> OutputTarget:
    high, wide = context.shown_size
    step_y, step_x = images.shape[2] / logits.shape[2], images.shape[3] / logits.shape[3]
    rows, columns = int(np.ceil(high / step_y)), int(np.ceil(wide / step_x))
    number, region = _find_region(context, logits[0, :, :rows, :columns])
    places = region.nonzero(as_tuple=True)

    def measure(images: Tensor) -> Tensor:
        inside: Tensor = network(images)[:, number][:, places[0], places[1]]
        return inside.mean(dim=1)

    at_row = (np.arange(high) / step_y).astype(int)
    at_column = (np.arange(wide) / step_x).astype(int)
    name = _names_of(context, logits.shape[1])[number]
    return OutputTarget(
        title=find_text("targets", "region", name=name),
        value=float(logits[0, number][places].mean()),
        measure=measure,
        number=number,
        region=region.numpy()[at_row][:, at_column],
    )


def _select_object(context: Context, network: AnyNetwork, images: Tensor) -> OutputTarget:
    sizes = torch.tensor([context.shown_size])
    with torch.no_grad():
        found: Instances = network.decode(network(images, sizes))[0]
    if not len(found.boxes):
        raise EmptyPrediction(find_text("missing.decision-empty", "boxes"))
    class_ids = found.class_ids.tolist()
    names = _names_of(context, 1 + max(class_ids))
    rows = zip(class_ids, found.scores.tolist(), strict=True)
    labels = [f"{names[class_id]} ({score:.2f})" for class_id, score in rows]
    number = _choose(context.target, int(found.scores.argmax()), labels, "box")
    measure, score_name = _measure_overlap(network, sizes, found, number), "score"
    if hasattr(network.head, "score_of"):
        measure = _measure_score(network, images, sizes, found, number)
        score_name = network.head.score_name
    with torch.no_grad():
        value = float(measure(images)[0])
    left, top, right, bottom = found.boxes[number].tolist()
    fields = {"score": score_name, "number": number, "name": labels[number]}
    return OutputTarget(
        title=find_text("targets", "box", **fields),
        value=value,
        measure=measure,
        number=number,
        box=(left, top, right, bottom),
    )


def _measure_score(
    network: AnyNetwork, images: Tensor, sizes: Tensor, found: Instances, number: int
) -> Measure:
    """Score that the head gives the place of a box in other images."""
    box, class_id = found.boxes[number], int(found.class_ids[number])
    with torch.no_grad():
        score_of = network.head.score_of(network.features(images, sizes), box, class_id)
    return lambda images: score_of(network.features(images, sizes.expand(len(images), -1)))


def _measure_overlap(network: AnyNetwork, sizes: Tensor, found: Instances, number: int) -> Measure:
    """Largest product of score and IoU with the box over detections of its class."""
    target_box, class_id = found.boxes[number], found.class_ids[number]

    def measure(images: Tensor) -> Tensor:
        numbers = []
        for one in network.decode(network(images, sizes.expand(len(images), -1))):
            same_class = one.class_ids == class_id
            overlaps = box_iou(one.boxes[same_class], target_box[None])[:, 0]
            overlaps = overlaps * one.scores[same_class]
            numbers.append(overlaps.amax() if len(overlaps) else target_box.new_zeros(()))
        return torch.stack(numbers)

    return measure
