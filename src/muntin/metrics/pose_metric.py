# SPDX-License-Identifier: Apache-2.0
"""COCO OKS average precision, PCK and pixel errors of keypoints. P are keypoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.metrics.detection_metric import Row, evaluate_rows
from muntin.ops.keypoints import estimate_area, similarity
from muntin.results import Poses
from muntin.samples import Objects, Skeleton
from muntin.shapes import Size

PCK_AT = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Distances up to which a keypoint is correct, relative to the diagonal of the instance's box."""

_PCK = 0.02
_MOST = 100
_AREA_RULE = (
    "0.53 of the box; without a box, of the tight box of the visible keypoints, whose sides are at "
    "least 0.05 of the image's diagonal"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PoseInstance:
    """Ground truth of a prediction; `row` is -1 if the prediction covers all instances."""

    path: str
    size: Size | None
    objects: Objects
    row: int

    @property
    def keypoints(self) -> NDArray[np.float64]:
        """Those of all instances of the image."""
        assert self.objects.keypoints is not None, "pose data has keypoints"
        return self.objects.keypoints


class PoseMetric:
    """Accumulates poses and ground truth; neither order nor batch size matters.

    Figures:

    - `oks_ap`: average precision over similarities (OKS) of 0.50, 0.55 .. 0.95, in [0, 1], and
      `oks_ap50`, `oks_ap75`, `oks_ar`, as COCO's evaluation computes them; None without truth.
    - `pck`: share of the visible keypoints predicted within 0.02 of the diagonal of their
      instance's box; `pck_at` at other distances; `pck_per_keypoint` a list.
    - `mean_pixel_error`: mean distance of the visible keypoints in pixels of the original;
      `median_pixel_error`; `mean_pixel_error_per_keypoint` a list.
    - `num_found`: instances with a matching pose. With a detector, poses from `score_threshold`
      (`Poses.above`) on are matched one-to-one to ground-truth instances by OKS (above 0.1), best
      first. Instances without a match have no distances, and their keypoints count as missed in
      `pck`; poses without a match count in `oks_ap` only, as do those below the threshold.
    - `num_without_objects`, `num_false_alarms`: with a detector, images without an instance, and
      the poses from `score_threshold` on that are found there.
    - `oks_area`: rule for the area of instances without an annotated one.
    - `num_subjects`, `num_images`, `keypoint_names`.
    """

    def __init__(self, skeleton: Skeleton, *, score_threshold: float = 0.0) -> None:
        self.skeleton = skeleton
        self.score_threshold = score_threshold
        self._found: dict[str, list[Poses]] = defaultdict(list)
        self._truth: dict[str, PoseInstance] = {}
        self._pairs: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
        self._answers = 0
        self.owners: list[int] = []
        """Index of the prediction that each row of `distances` belongs to."""

    @property
    def num_images(self) -> int:
        """Number of images added."""
        return len(self._truth)

    @property
    def distances(self) -> NDArray[np.float64]:
        """Error of every keypoint of every instance in pixels.

        NaN where it is not visible, infinite for instances without a match.
        """
        if not self._pairs:
            return np.zeros((0, len(self.skeleton.names)))
        rows = []
        for predicted, annotation, _ in self._pairs:
            rows.append(np.linalg.norm(predicted - annotation[:, :2], axis=1))
            rows[-1][annotation[:, 2] <= 0] = np.nan
        return np.stack(rows)

    def update(self, answers: Sequence[Poses], truth: Sequence[PoseInstance]) -> None:
        """Add predictions and the ground truth of each."""
        for predicted, annotation in zip(answers, truth, strict=True):
            self._found[annotation.path].append(predicted)
            self._truth[annotation.path] = annotation
            objects = annotation.objects
            if annotation.row >= 0:
                pairs = {annotation.row: 0 if len(predicted) else -1}
            else:
                predicted = predicted.above(self.score_threshold)
                pairs = self._match(predicted, annotation)
            for row, place in pairs.items():
                points = annotation.keypoints[row]
                missed = np.full((len(points), 2), np.inf)
                found = predicted.keypoints[place, :, :2] if place >= 0 else missed
                diagonal = float(np.hypot(*(objects.boxes[row][2:] - objects.boxes[row][:2])))
                self._pairs.append((found, points, diagonal))
                self.owners.append(self._answers)
            self._answers += 1

    def _match(self, predicted: Poses, annotation: PoseInstance) -> dict[int, int]:
        """Match poses, best first, to the most similar free instance; -1: no match."""
        points = annotation.keypoints
        rows = np.flatnonzero((points[:, :, 2] > 0).any(axis=1) & ~annotation.objects.crowd)
        pairs = dict.fromkeys(map(int, rows), -1)
        sigmas = np.array(self.skeleton.sigmas)
        for place in np.argsort(-predicted.scores, kind="stable"):
            best, best_oks = -1, 0.1
            for row in pairs:
                if pairs[row] >= 0:
                    continue
                known = np.where(points[row][:, 2:] > 0, points[row][:, :2], np.nan)
                oks = similarity(
                    predicted.keypoints[place, :, :2], known, self._area(annotation, row), sigmas
                )
                if oks > best_oks:
                    best, best_oks = row, oks
            if best >= 0:
                pairs[best] = int(place)
        return pairs

    def _area(self, annotation: PoseInstance, row: int) -> float:
        objects = annotation.objects
        if objects.areas[row] > 0:
            return float(objects.areas[row])
        box = objects.boxes[row]
        high, wide = annotation.size or (int(box[3]), int(box[2]))
        whole = tuple(box) == (0, 0, wide, high)
        points = annotation.keypoints[row]
        known = points[points[:, 2] > 0, :2]
        return estimate_area(known, None if whole else box, float(np.hypot(high, wide)))

    def compute(self) -> dict[str, Any]:
        """Give the figures; those of a keypoint are lists in the order of the keypoints."""
        distances = self.distances
        visible = ~np.isnan(distances)
        diagonals = np.array([diagonal for _, _, diagonal in self._pairs])[:, None]
        relative = distances / np.maximum(diagonals, 1e-9) if len(distances) else distances
        finite = np.isfinite(distances)
        guessed = any(
            instance.objects.areas[row] <= 0
            for instance in self._truth.values()
            for row in range(len(instance.objects))
        )
        return {
            **self._average_precision(),
            "pck": _share(relative <= _PCK, visible),
            "pck_at": {f"{at:g}": _share(relative <= at, visible) for at in PCK_AT},
            "mean_pixel_error": _mean(distances[finite]),
            "median_pixel_error": float(np.median(distances[finite])) if finite.any() else None,
            "pck_per_keypoint": [
                _share(relative[:, k] <= _PCK, visible[:, k])
                for k in range(len(self.skeleton.names))
            ],
            "mean_pixel_error_per_keypoint": [
                _mean(distances[finite[:, k], k]) for k in range(len(self.skeleton.names))
            ],
            "oks_area": _AREA_RULE if guessed else "as annotated",
            "keypoint_names": list(self.skeleton.names),
            "num_subjects": len(self._pairs),
            "num_found": int(sum(np.isfinite(predicted).all() for predicted, _, _ in self._pairs)),
            **(
                {"threshold": self.score_threshold, **self._alarms()}
                if self.score_threshold
                else {}
            ),
            "num_images": self.num_images,
        }

    def _alarms(self) -> dict[str, int]:
        empty = [path for path, one in self._truth.items() if not len(one.objects)]
        if not empty:
            return {}
        found = [pose.above(self.score_threshold) for path in empty for pose in self._found[path]]
        return {"num_without_objects": len(empty), "num_false_alarms": sum(map(len, found))}

    def _average_precision(self) -> dict[str, float | None]:
        names = ("oks_ap", "oks_ap50", "oks_ap75", "oks_ar")
        truth: list[Row] = []
        found: list[Row] = []
        for number, (path, annotation) in enumerate(self._truth.items()):
            truth += self._as_coco(annotation, number)
            for predicted in self._found[path]:
                found += [
                    {
                        "image_id": number,
                        "category_id": 0,
                        "keypoints": points.ravel().tolist(),
                        "score": float(score),
                        "area": 1.0,  # objects of all sizes are taken together
                    }
                    for points, score in zip(predicted.keypoints, predicted.scores, strict=True)
                    if np.isfinite(points).all()
                ]
        if not any(row["num_keypoints"] and not row["iscrowd"] for row in truth):
            return dict.fromkeys(names)
        if not found:
            return dict.fromkeys(names, 0.0)
        evaluation = evaluate_rows(
            "keypoints",
            [{"id": number} for number in range(self.num_images)],
            truth,
            found,
            num_classes=1,
            max_detections=[_MOST],
            sigmas=self.skeleton.sigmas,
        )
        precision = np.asarray(evaluation.eval["precision"])  # T, R, 1, 1, 1
        return {
            "oks_ap": float(precision[..., 0, 0].mean()),
            "oks_ap50": float(precision[0].mean()),
            "oks_ap75": float(precision[5].mean()),
            "oks_ar": float(np.asarray(evaluation.eval["recall"]).mean()),
        }

    def _as_coco(self, annotation: PoseInstance, image: int) -> list[Row]:
        rows = []
        objects = annotation.objects
        for row in range(len(objects)):
            left, top, right, bottom = objects.boxes[row].tolist()
            points = annotation.keypoints[row]
            rows.append(
                {
                    "image_id": image,
                    "category_id": 0,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": self._area(annotation, row),
                    "iscrowd": int(objects.crowd[row]),
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
        return rows


def _share(found: NDArray[np.bool_], visible: NDArray[np.bool_]) -> float | None:
    return float((found & visible).sum() / visible.sum()) if visible.any() else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
