# SPDX-License-Identifier: Apache-2.0
"""COCO's evaluation of boxes, masks and keypoints, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster

Row = dict[str, Any]


def evaluate_rows(
    kind: Literal["bbox", "segm", "keypoints"],
    images: Sequence[Row],
    truth: Sequence[Row],
    found: Sequence[Row],
    *,
    num_classes: int,
    max_detections: Sequence[int],
    sigmas: Sequence[float] = (),
) -> Any:  # noqa: ANN401 (the library is untyped)
    """Evaluate annotations in the form of COCO's files, without ids of their own.

    Categories are numbered from 0; `max_detections` of a class in an image count, ascending. With
    `sigmas` of keypoints, objects of all sizes are taken together. Gives COCOeval after
    `accumulate`: `eval` and, by image and class, `ious`.
    """
    categories = [{"id": class_id} for class_id in range(num_classes)]
    tables = []
    for rows in (truth, found):
        # Ids start at 1: COCOeval stores 0 for "not matched".
        numbered = [row | {"id": number} for number, row in enumerate(rows, start=1)]
        table = COCO()
        table.dataset = {"images": images, "categories": categories, "annotations": numbered}
        table.createIndex()
        tables.append(table)
    evaluation = COCOeval_faster(*tables, kind, kpt_oks_sigmas=list(sigmas) or None)
    evaluation.params.maxDets = list(max_detections)
    if sigmas:
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation
