# SPDX-License-Identifier: Apache-2.0
"""COCO average precision and recall of detections (boxes and masks), and COCO's evaluation.

Letters: T thresholds of overlap (0.50, 0.55 .. 0.95), R steps of recall (0, 0.01 .. 1),
K classes, A ranges of area (all, small, medium, large), D limits on detections (1, 10, all).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from muntin.errors import ConfigError, DataError, ShapeError
from muntin.results import Detections
from muntin.run_lengths import Segmentation, mask_area, to_run_lengths
from muntin.samples import Objects
from muntin.shapes import Float, Int

Kind = Literal["box", "mask"]
Row = dict[str, Any]

_AT_50, _AT_75 = 0, 5  # places in T
_ALL = 0  # place in A
_AREAS = {"small": 1, "medium": 2, "large": 3}  # up to 32 x 32 pixels, up to 96 x 96, more
_FEW = {"1": 0, "10": 1}  # places in D; the last is the most


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrecisionRecall:
    """Precision against recall at an overlap (IoU) of 0.5, and the score to cut at.

    Precision is that of each class at a recall (0, 0.01 .. 1) or any higher one, NaN for a class
    without truth; `mean` is over the others. `num_objects` leaves out crowds. Keeping the
    detections with at least `best_threshold` makes F1, over the objects of all classes together, as
    high as it can be; None if no detection is correct. `best_f1` is None without truth.
    """

    recall: Float[np.ndarray, " R"]
    precision: Float[np.ndarray, "K R"]
    mean: Float[np.ndarray, " R"]
    num_objects: Int[np.ndarray, " K"]
    best_threshold: float | None
    best_f1: float | None


class DetectionMetric:
    """Accumulates detections and ground truth; neither order nor batch size matters.

    Figures in [0, 1], None without ground truth of that kind (e.g. no small objects):

    - `box_ap`: average precision, the mean over classes and over overlaps of 0.50, 0.55 .. 0.95;
      `box_ap50` and `box_ap75` at one overlap; `box_ap_small`, `box_ap_medium`, `box_ap_large` of
      objects by `Objects.areas` (up to 32 x 32 pixels, up to 96 x 96, more).
    - `box_ar`: average recall with all detections; `box_ar1` and `box_ar10` with so many of a
      class in an image; `box_ar_small`, `box_ar_medium`, `box_ar_large`.
    - `box_ap_per_class` and `box_ap50_per_class`: lists in the order of the classes.
    - The same with `mask_`, if masks are evaluated.
    - `best_threshold`, `best_f1`: see `PrecisionRecall`; of masks, if evaluated.
    - `max_detections`, `num_images`.

    Images without objects count: what is found there lowers precision. So do images without
    detections. A class without truth enters no mean, whatever is found of it; only `best_threshold`
    and `best_f1` take that for the mistake it is. Detections whose box or score is no finite
    number, as of a diverged network, are dropped.

    With masks, an object without one is treated as a crowd that fills its box: it cannot be missed,
    and masks of its class that lie there are neither right nor wrong.

    Source:
        Lin et al., Microsoft COCO (2014), with faster-coco-eval doing the counting; compared with
        pycocotools in tests/metrics/test_detection.py. Differs: COCO counts the 100 best
        detections of a class in an image, which caps the recall of dense images. Here it is as
        many as the fullest image of the truth has objects, if that is more than 100.
    """

    def __init__(self, class_names: Sequence[str], *, masks: bool) -> None:
        self.class_names = tuple(class_names)
        self.masks = masks
        self._images: list[tuple[Detections, Objects]] = []
        self._results: dict[Kind, tuple[dict[str, Any], PrecisionRecall]] = {}

    @property
    def num_images(self) -> int:
        """Images seen."""
        return len(self._images)

    @property
    def max_detections(self) -> int:
        """Detections of a class that count in an image."""
        return max([100, *(len(objects) for _, objects in self._images)])

    def update(self, found: Sequence[Detections], truth: Sequence[Objects]) -> None:
        """Add what was found in images, and what is annotated in them, in the same order."""
        if len(found) != len(truth):
            message = f"found and truth must be equally long, got {len(found)} and {len(truth)}."
            raise ShapeError(message)
        for image, objects in zip(found, truth, strict=True):
            objects = _spread_regions(objects, len(self.class_names))
            self._check(image, objects)
            whole = np.isfinite(image.boxes).all(axis=1) & np.isfinite(image.scores)
            kept = image if whole.all() else image.select(np.flatnonzero(whole))
            self._images.append((kept, objects))
        self._results = {}

    def compute(self) -> dict[str, Any]:
        """Give the figures."""
        kinds: tuple[Kind, ...] = ("box", "mask") if self.masks else ("box",)
        figures: dict[str, Any] = {}
        for kind in kinds:
            figures |= self._evaluate(kind)[0]
        curves = self.curves()
        return figures | {
            "best_threshold": curves.best_threshold,
            "best_f1": curves.best_f1,
            "max_detections": self.max_detections,
            "num_images": self.num_images,
        }

    def curves(self, kind: Kind | None = None) -> PrecisionRecall:
        """Give precision against recall at an overlap of 0.5; of masks by default, if evaluated."""
        kind = kind or ("mask" if self.masks else "box")
        if kind == "mask" and not self.masks:
            message = 'kind must be "box" without masks, got "mask". Set masks=True.'
            raise ConfigError(message)
        return self._evaluate(kind)[1]

    def false_alarms(self, threshold: float) -> dict[str, Any]:
        """Count what is found, from a score of `threshold` on, in images without any object.

        `num_without_objects` images, `num_with_false_alarms` of them, `num_false_alarms`
        detections there, and the threshold; nothing where every image has objects.
        """
        alarms = [
            int((found.scores >= threshold).sum())
            for found, truth in self._images
            if not len(truth)
        ]
        if not alarms:
            return {}
        return {
            "num_without_objects": len(alarms),
            "num_with_false_alarms": sum(count > 0 for count in alarms),
            "num_false_alarms": sum(alarms),
            "false_alarm_threshold": threshold,
        }

    def _check(self, found: Detections, truth: Objects) -> None:
        ids = np.concatenate([found.class_ids, truth.class_ids])
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.class_names):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            message = (
                f"class_ids must be 0 to {len(self.class_names) - 1}, got {wrong} for "
                f"{found.path or 'an image'}. Give the class names of the truth."
            )
            raise DataError(message)
        if self.masks and found.masks is None and len(found):
            message = (
                f"found must have masks, got boxes alone for {found.path or 'an image'}. Set "
                f"masks=False to evaluate boxes."
            )
            raise DataError(message)

    def _evaluate(self, kind: Kind) -> tuple[dict[str, Any], PrecisionRecall]:
        """The figures and the curves, computed once."""
        if kind in self._results:
            return self._results[kind]
        # Equal scores are ranked in the order of the images, so that must be fixed.
        images = sorted(self._images, key=_address)
        truth_rows, found_rows, shapes = [], [], []
        for image_id, (found, truth) in enumerate(images):
            truth_rows += list(_truth_rows(kind, truth, found, image_id))
            found_rows += list(_found_rows(kind, found, image_id))
            shapes.append({"id": image_id, "height": found.size[0], "width": found.size[1]})
        evaluation = evaluate_rows(
            "bbox" if kind == "box" else "segm",
            shapes,
            truth_rows,
            found_rows,
            num_classes=len(self.class_names),
            max_detections=(1, 10, self.max_detections),
        )
        self._results[kind] = _figures(kind, evaluation.eval), _curves(kind, images, evaluation)
        return self._results[kind]


def _address(image: tuple[Detections, Objects]) -> tuple[str | bytes, ...]:
    """Order images by path; those without one by what is in them."""
    found, truth = image
    columns = (found.scores, found.boxes, found.class_ids, truth.boxes, truth.class_ids)
    return (found.path, *(column.tobytes() for column in columns))


def _spread_regions(truth: Objects, num_classes: int) -> Objects:
    """Give a region of unknown class (a crowd, -1) to each class, as COCO's matching needs it."""
    unknown = np.flatnonzero(truth.crowd & (truth.class_ids == -1))
    if not len(unknown):
        return truth
    known = np.flatnonzero(~truth.crowd | (truth.class_ids != -1))
    rows = np.r_[known, np.repeat(unknown, num_classes)]
    ids = np.r_[truth.class_ids[known], np.tile(np.arange(num_classes), len(unknown))]
    return Objects(
        boxes=truth.boxes[rows],
        class_ids=ids,
        crowd=truth.crowd[rows],
        areas=truth.areas[rows],
        masks=tuple(truth.masks[row] for row in rows) if truth.masks else (),
    )


def _is_crowd(kind: Kind, truth: Objects) -> NDArray[np.bool_]:
    """Which objects cannot be missed; an empty list of polygons is no mask either."""
    if kind == "box":
        return truth.crowd
    return truth.crowd | np.array([not mask for mask in truth.masks or [None] * len(truth)], bool)


def _truth_rows(kind: Kind, truth: Objects, found: Detections, image_id: int) -> Iterator[Row]:
    columns = (truth.class_ids, _is_crowd(kind, truth), truth.areas)
    boxes = _corner_and_sides(truth.boxes)
    for index, values in enumerate(zip(boxes, *(c.tolist() for c in columns), strict=True)):
        box, class_id, crowd, area = values
        row = {"image_id": image_id, "category_id": class_id, "bbox": box, "area": area}
        if kind == "mask":
            mask = (truth.masks[index] if truth.masks else None) or _rectangle(*box)
            row["segmentation"] = to_run_lengths(mask, found.size)
        yield row | {"iscrowd": int(crowd)}


def _found_rows(kind: Kind, found: Detections, image_id: int) -> Iterator[Row]:
    boxes = _corner_and_sides(found.boxes)
    shapes: list[Row] = [{"bbox": box, "area": box[2] * box[3]} for box in boxes]
    if kind == "mask":
        shapes = [{"segmentation": mask, "area": mask_area(mask)} for mask in found.masks or ()]
    scores, class_ids = found.scores.tolist(), found.class_ids.tolist()
    for shape, score, class_id in zip(shapes, scores, class_ids, strict=True):
        row = {"image_id": image_id, "category_id": class_id, "score": score, "iscrowd": 0}
        yield shape | row


def _corner_and_sides(boxes: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Bring boxes to COCO's left, top, width and height."""
    corners: list[list[float]] = np.c_[boxes[:, :2], boxes[:, 2:] - boxes[:, :2]].tolist()
    return corners


def _rectangle(left: float, top: float, width: float, height: float) -> Segmentation:
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def _curves(
    kind: Kind,
    images: Sequence[tuple[Detections, Objects]],
    evaluation: Any,  # noqa: ANN401 (the library is untyped)
) -> PrecisionRecall:
    params = evaluation.params
    precision = np.asarray(evaluation.eval["precision"])[_AT_50, :, :, _ALL, -1].T  # K, R
    known = precision[:, 0] > -1
    mean = precision[known].mean(axis=0) if known.any() else np.full(len(params.recThrs), np.nan)
    num_objects = np.zeros(len(precision), np.int64)
    scores, hits = [np.zeros(0)], [np.zeros(0, bool)]
    for image_id, (found, truth) in enumerate(images):
        crowd = _is_crowd(kind, truth)
        np.add.at(num_objects, truth.class_ids[~crowd], 1)
        for class_id in set(found.class_ids.tolist()):
            mine = np.sort(-found.scores[found.class_ids == class_id], kind="stable")
            mine = -mine[: params.maxDets[-1]]
            groups = crowd[truth.class_ids == class_id]
            ious = np.reshape(evaluation.ious[image_id, class_id], (-1, max(len(groups), 1)))
            right, ignored = _match(len(mine), ious, groups)
            scores.append(mine[~ignored])
            hits.append(right[~ignored])
    threshold, f1 = _best(np.concatenate(scores), np.concatenate(hits), int(num_objects.sum()))
    return PrecisionRecall(
        recall=np.asarray(params.recThrs),
        precision=np.where(known[:, None], precision, np.nan),
        mean=mean,
        num_objects=num_objects,
        best_threshold=threshold,
        best_f1=f1,
    )


def _match(
    count: int, ious: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each detection is right, and whether it only finds a crowd, as COCO matches.

    `ious` are the overlaps of each with all objects, the highest score first.
    """
    right, ignored = np.zeros(count, bool), np.zeros(count, bool)
    free = ~crowd
    for place, row in enumerate(ious):
        # An object that is free goes before any crowd; of equal overlaps the last counts.
        for objects, found in ((free, right), (crowd, ignored)):
            fitting = np.where(objects, row, 0)[::-1]
            best = int(fitting.argmax())
            if fitting[best] >= 0.5:
                found[place] = True
                free[len(row) - 1 - best] = False
                break
    return right, ignored


def _best(
    scores: NDArray[np.float64], hits: NDArray[np.bool_], num_objects: int
) -> tuple[float | None, float | None]:
    """Give threshold and F1 where F1 is highest.

    Detections are matched from the highest score down: one pass does for all thresholds.
    """
    if not num_objects:
        return None, None
    if not hits.any():
        return None, 0.0
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], hits[order].cumsum()
    # A threshold lets in all of an equal score.
    ends = np.flatnonzero(np.r_[np.diff(scores) != 0, True])
    f1 = 2 * right[ends] / (ends + 1 + num_objects)
    best = int(f1.argmax())
    return float(scores[ends[best]]), float(f1[best])


def _figures(kind: Kind, results: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of COCOeval's results, which are -1 without ground truth."""
    precision = np.asarray(results["precision"])[..., -1]  # T, R, K, A; with the most detections
    recall = np.asarray(results["recall"])  # T, K, A, D
    classes = range(precision.shape[2])
    figures: dict[str, Any] = {
        "ap": _mean(precision[..., _ALL]),
        "ap50": _mean(precision[_AT_50, ..., _ALL]),
        "ap75": _mean(precision[_AT_75, ..., _ALL]),
        **{f"ap_{name}": _mean(precision[..., place]) for name, place in _AREAS.items()},
        "ar": _mean(recall[..., _ALL, -1]),
        **{f"ar{few}": _mean(recall[..., _ALL, place]) for few, place in _FEW.items()},
        **{f"ar_{name}": _mean(recall[..., place, -1]) for name, place in _AREAS.items()},
        "ap_per_class": [_mean(precision[..., k, _ALL]) for k in classes],
        "ap50_per_class": [_mean(precision[_AT_50, :, k, _ALL]) for k in classes],
    }
    return {f"{kind}_{name}": value for name, value in figures.items()}


def _mean(values: NDArray[np.float64]) -> float | None:
    """Average over what there is truth for, which is where COCOeval leaves no -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


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
