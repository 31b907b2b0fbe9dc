# SPDX-License-Identifier: Apache-2.0
"""Object detection (boxes) and instance segmentation (boxes and masks)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from muntin.data.detection import check_detect, list_detect
from muntin.heads.detector import Instances
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS, DetectorConfig, build_detector
from muntin.heads.transformers_head import TransformersHeadConfig
from muntin.metrics.detection_metric import DetectionMetric
from muntin.ops.boxes import paste_mask
from muntin.results import Detections
from muntin.run_lengths import encode_mask
from muntin.samples import Classes
from muntin.shapes import Size
from muntin.tasks.task import DenseTask, ImageMeta, InferenceBatch, LazyTruth, Task


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
        drawn = found.masks.float().cpu()
        masks = tuple(
            _draw_mask(mask, box, meta.size) for mask, box in zip(drawn, boxes.float(), strict=True)
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
    bitmap, top, left = paste_mask(mask, box, size)
    return encode_mask(bitmap.numpy(), size=size, top=top, left=left)


def _task(
    name: str, figure: str, heads: Mapping[str, DetectorConfig], large: str, *, masks: bool
) -> Task:
    return Task(
        name=name,
        list_data=lambda path, classes, data: list_detect(
            path, class_names=None if classes is None else classes.names, masks=masks
        ),
        check_data=partial(check_detect, masks=masks),
        make_head=lambda backbone, classes, config: build_detector(
            backbone, len(classes.names), config, masks=masks
        ),
        ground_truth=lambda listing, classes: LazyTruth(listing, lambda _, entry: entry.objects),
        losses=lambda head, features, batch, classes: head.losses(
            features, [*(batch.targets or ())]
        ),
        predict=_predict,
        decode=_decode,
        metric=lambda classes: DetectionMetric(classes.names, masks=masks),
        goals=(figure, f"{figure}50"),
        kind="detection",
        dense=DenseTask(
            heads=heads,
            default_head={"small": "dense_small", "large": large},
            merges=True,
            whole=TransformersHeadConfig(),
        ),
        outputs=("boxes", "scores", "class_ids", *(("masks",) if masks else ())),
    )


DETECT = _task("detect", "box_ap", DETECTORS, "dense", masks=False)

INSTANCE = _task("instance", "mask_ap", MASK_DETECTORS, "mask_rcnn", masks=True)
