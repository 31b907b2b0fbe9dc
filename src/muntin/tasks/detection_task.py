# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Object detection (boxes) and instance segmentation (boxes and masks)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from muntin.data.checking import Report
from muntin.data.data_config import DataConfig
from muntin.data.detection import check_detect, list_detect
from muntin.errors import ConfigError
from muntin.features import Backbone, Features
from muntin.heads.head import Head, HeadConfig
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS, DetectorConfig, build_detector
from muntin.heads.instances import Instances
from muntin.metrics.detection_metric import DetectionMetric
from muntin.ops.boxes import paste_mask
from muntin.results import Detections
from muntin.run_lengths import encode_mask
from muntin.samples import Classes, DataSets, Listing, Objects
from muntin.shapes import Float, Size
from muntin.tasks.task import DenseTask, ImageMeta, InferenceBatch, Task, TrainBatch, count_images

__all__ = ["DETECT", "INSTANCE"]


class _GroundTruth:
    """Annotated objects, indexed by image."""

    def __init__(self, listing: Listing) -> None:
        self._objects = [entry.objects for entry in listing.entries]

    def __getitem__(self, places: Tensor) -> list[Objects | None]:
        return [self._objects[place] for place in places.tolist()]


def _list_data(
    path: Path | str, classes: Classes | None, reading: DataConfig, *, masks: bool
) -> DataSets:
    return list_detect(path, class_names=None if classes is None else classes.names, masks=masks)


def _check_data(path: Path | str, reading: DataConfig, *, masks: bool) -> Report:
    return check_detect(path, masks=masks)


def _classes(listing: Listing) -> Classes:
    return Classes(names=listing.class_names)


def _build_head(
    backbone: Backbone, classes: Classes, config: HeadConfig | None, *, masks: bool
) -> nn.Module:
    if not isinstance(config, DetectorConfig):
        message = "a detector needs a head config, got none. Restore the config.json of the run."
        raise ConfigError(message)
    return build_detector(backbone, len(classes.names), config, masks=masks)


def _ground_truth(listing: Listing, classes: Classes) -> _GroundTruth:
    return _GroundTruth(listing)


def _losses(
    head: Head, features: Features, batch: TrainBatch, classes: Classes
) -> dict[str, Float[Tensor, " B"]]:
    assert batch.targets is not None, "detection needs box targets"
    losses: dict[str, Tensor] = head.losses(features, [*batch.targets])
    return losses


def _predict(inputs: InferenceBatch) -> Sequence[Instances]:
    network: Any = inputs.network
    found: Sequence[Instances] = network.decode(inputs.forward(inputs.images, inputs.sizes))
    return found


def _decode(
    raw: Sequence[Instances], metas: Sequence[ImageMeta], classes: Classes
) -> list[Detections]:
    return [_to_result(found, meta, classes) for found, meta in zip(raw, metas, strict=True)]


def _to_result(found: Instances, meta: ImageMeta, classes: Classes) -> Detections:
    """Scale boxes and masks to pixels of the original image."""
    height, width = meta.size
    scale = found.boxes.new_tensor(
        [width / meta.input_size[1], height / meta.input_size[0]] * 2
    ).double()
    limits = found.boxes.new_tensor([width, height] * 2).double()
    boxes = (found.boxes.double() * scale).clamp(min=0).minimum(limits).cpu()
    masks: tuple[dict[str, Any], ...] | None = None
    if found.masks is not None:
        drawn = found.masks.cpu()
        masks = tuple(
            _draw_mask(mask, box, meta.size) for mask, box in zip(drawn, boxes, strict=True)
        )
    ids = found.class_ids.cpu().numpy().astype(np.int64)
    return Detections(
        path=meta.path,
        size=meta.size,
        boxes=boxes.numpy(),
        class_ids=ids,
        scores=found.scores.double().cpu().numpy(),
        class_names=tuple(classes.names[i] for i in ids),
        masks=masks,
    )


def _draw_mask(mask: Tensor, box: Tensor, size: Size) -> dict[str, Any]:
    bitmap, top, left = paste_mask(mask, box.float(), size)
    return encode_mask(bitmap.numpy(), size=size, top=top, left=left)


def _compare(answers: object, truth: object, classes: Classes) -> None:
    """No validation loss: two-stage losses depend on sampled proposals, not on detections."""


def _metric(classes: Classes, *, masks: bool) -> DetectionMetric:
    return DetectionMetric(classes.names, masks=masks)


def _task(name: str, *, masks: bool, dense: DenseTask, goals: tuple[str, ...]) -> Task:
    return Task(
        name=name,
        list_data=partial(_list_data, masks=masks),
        check_data=partial(_check_data, masks=masks),
        classes=_classes,
        build_head=partial(_build_head, masks=masks),
        ground_truth=_ground_truth,
        losses=_losses,
        predict=_predict,
        answers=_decode,
        decode=_decode,
        compare=_compare,
        metric=partial(_metric, masks=masks),
        class_counts=count_images,
        goals=goals,
        kind="detection",
        dense=dense,
        outputs=("boxes", "scores", "class_ids", *(("masks",) if masks else ())),
    )


DETECT = _task(
    "detect",
    masks=False,
    dense=DenseTask(
        heads=DETECTORS,
        default_head={"small": "fcos_small", "large": "fcos"},
        merges=True,
    ),
    goals=("box_ap", "box_ap50"),
)

INSTANCE = _task(
    "instance",
    masks=True,
    dense=DenseTask(
        heads=MASK_DETECTORS,
        default_head={"small": "mask_rcnn_small", "large": "mask_rcnn"},
        merges=True,
    ),
    goals=("mask_ap", "mask_ap50"),
)
