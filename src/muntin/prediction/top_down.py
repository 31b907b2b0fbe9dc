# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Top-down poses: find the instances of an image, crop each of them, merge their keypoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from muntin.data.keypoint_transforms import crop_box, crop_region, warp_crop
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.errors import MuntinWarning
from muntin.ops.keypoints import guess_area, suppress_poses
from muntin.prediction.batch import Crop, CroppedImage
from muntin.prediction.sources import LoadedImage
from muntin.results import Poses
from muntin.samples import Classes, Skeleton
from muntin.shapes import Size
from muntin.tasks.task import ImageMeta

__all__ = ["Boxes", "Detector", "crop_instances", "find_boxes"]

Edges = tuple[float, float, float, float]


@runtime_checkable
class Detector(Protocol):
    """What finds instances: a predictor of a run that was trained to detect."""

    classes: Classes
    batch_size: int

    def __call__(self, images: list[NDArray[np.uint8]], /) -> Sequence[Any]:
        """Give one `muntin.results.Detections` an image."""


class Boxes(NamedTuple):
    """Instances of an image.

    Attributes:
        edges: (N, 4) left, top, right and bottom in pixels.
        scores: (N) from 0 to 1.
        given: Whether a user gave them, which fixes their number and order.
    """

    edges: NDArray[np.float64]
    scores: NDArray[np.float64]
    given: bool


def find_boxes(
    images: Iterator[LoadedImage],
    detector: Detector | None,
    classes: Classes,
    *,
    threshold: float,
    whole: bool,
) -> Iterator[tuple[LoadedImage, Boxes | None]]:
    """Find the instances of each image, a batch of the detector at a time.

    Args:
        images: In order; only a batch of them is held.
        detector: Finds instances in images that came without boxes; None takes each such image
            for one instance, with a warning.
        classes: Of the pose run: where the detector shares some, only those count.
        threshold: Score from which boxes of the detector count.
        whole: Whether the run was trained on whole images, so that no warning is due.

    Yields:
        The image and its boxes; None where the whole image is one instance.
    """
    warned = whole
    while batch := list(islice(images, 1 if detector is None else detector.batch_size)):
        unknown = [image for image in batch if image.boxes is None]
        if detector is not None:
            found = iter(detector([image.pixels for image in unknown]) if unknown else ())
        elif unknown and not warned:
            warned = True
            text = (
                "the run was trained on boxes of subjects; without a detector (--detector RUN) or "
                "boxes the whole image is taken for one subject"
            )
            warnings.warn(text, MuntinWarning, stacklevel=5)
        for image in batch:
            if image.boxes is not None:
                yield image, Boxes(image.boxes, np.ones(len(image.boxes)), given=True)
            elif detector is None:
                yield image, None
            else:
                yield image, _select(next(found), detector, classes, threshold)


def _select(found: Any, detector: Detector, classes: Classes, threshold: float) -> Boxes:  # noqa: ANN401 (Detections)
    shared = {*detector.classes.names} & {*classes.names}
    wanted = found.scores >= threshold
    if shared:  # otherwise whatever the detector finds is an instance
        wanted &= np.array([name in shared for name in found.class_names], bool)
    return Boxes(found.boxes[wanted], found.scores[wanted], given=False)


def crop_instances(
    image: LoadedImage, boxes: Boxes | None, pre: Preprocessing, skeleton: Skeleton
) -> CroppedImage:
    """Cut every instance out of an image.

    Args:
        image: Decoded.
        boxes: Of the instances; None takes the whole image for one.
        pre: Says size, padding and alignment of the crops.
        skeleton: Of the keypoints.
    """
    if boxes is None:
        return CroppedImage(1, _cut(image, [None], pre), _only)
    edges: list[Edges | None] = [(row[0], row[1], row[2], row[3]) for row in boxes.edges.tolist()]
    merge = partial(_merge, path=image.path, size=image.size, boxes=boxes, skeleton=skeleton)
    return CroppedImage(len(edges), _cut(image, edges, pre), merge)


def _cut(image: LoadedImage, boxes: Sequence[Edges | None], pre: Preprocessing) -> Iterator[Crop]:
    pixels = to_tensor(image.pixels, pre.in_chans)
    high, wide = image.size
    for box in boxes:
        frame = crop_box(box or (0.0, 0.0, float(wide), float(high)), pre)
        region = crop_region(pixels, frame, pre)
        meta = ImageMeta(path=image.path, size=image.size, input_size=pre.img_size, box=box)
        yield Crop(warp_crop(region.pixels, region.move_frame(frame), pre), meta)


def _only(poses: Sequence[Poses]) -> Poses:
    return poses[0]


def _merge(
    poses: Sequence[Poses], *, path: str, size: Size, boxes: Boxes, skeleton: Skeleton
) -> Poses:
    """Make one result of the instances of an image, best first.

    Of two boxes that a detector put on one instance the one with the higher score stays: so the
    threshold never changes which of the two it is.
    """
    count = len(skeleton.names)
    every = Poses(
        path=path,
        size=size,
        keypoints=np.concatenate([np.zeros((0, count, 3)), *(one.keypoints for one in poses)]),
        scores=np.concatenate([np.zeros(0), *(one.scores for one in poses)]) * boxes.scores,
        keypoint_names=skeleton.names,
        edges=skeleton.edges,
        boxes=boxes.edges,
        box_scores=None if boxes.given else boxes.scores,
    )
    if boxes.given:
        return every
    diagonal = float(np.hypot(*size))
    areas = np.array([guess_area(np.zeros((0, 2)), box, diagonal) for box in boxes.edges])
    points, sigmas = every.keypoints[:, :, :2], np.array(skeleton.sigmas)
    kept = every.select(suppress_poses(points, boxes.scores, areas, sigmas))
    return kept.select(np.argsort(-kept.scores, kind="stable"))
