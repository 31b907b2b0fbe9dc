# SPDX-License-Identifier: Apache-2.0
"""Top-down poses: find the instances of an image, crop each of them, merge their keypoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from muntin.configs import check_range
from muntin.data.decoding import open_image
from muntin.data.keypoint_transforms import crop_box, crop_region, warp_crop
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.errors import ConfigError, MuntinWarning
from muntin.ops.keypoints import estimate_area, suppress_poses
from muntin.prediction.batch import Crop, CroppedImage, LoadedImage
from muntin.results import DEFAULT_SCORE_THRESHOLD, Poses
from muntin.samples import Classes, Skeleton
from muntin.shapes import Size
from muntin.tasks.task import ImageMeta, Task

Edges = tuple[float, float, float, float]


@runtime_checkable
class Detector(Protocol):
    """Interface of detectors: a predictor of a detection run."""

    task: Task
    classes: Classes
    batch_size: int

    def __call__(self, images: list[NDArray[np.uint8]], /) -> Sequence[Any]:
        """Give one `muntin.results.Detections` an image."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxDetector:
    """Finds instances with a score, in [0, 1], of at least the threshold."""

    predict: Detector
    threshold: float = DEFAULT_SCORE_THRESHOLD

    def __post_init__(self) -> None:
        check_range("detector_threshold", self.threshold, 0, 1)


def refuse_detector(task: Task, other: Task) -> None:
    """Check that the second task can detect the instances for the first, a top-down one."""
    if not task.top_down:
        message = f"detector needs a top-down pose run, got a {task.name} run. Leave it out."
        raise ConfigError(message)
    if not other.detects:
        message = (
            f"detector must be a run of muntin train detect or instance, got a {other.name} run."
        )
        raise ConfigError(message)


class Boxes(NamedTuple):
    """Instances of an image: (N, 4) left, top, right and bottom in pixels, and scores in [0, 1].

    Where the user gave them, number and order must not change.
    """

    edges: NDArray[np.float64]
    scores: NDArray[np.float64]
    given: bool


def find_boxes(
    images: Iterator[LoadedImage],
    detector: BoxDetector | None,
    classes: Classes,
    pre: Preprocessing,
) -> Iterator[tuple[LoadedImage, Boxes | None]]:
    """Find the instances of each image, a batch of the detector at a time.

    Without boxes and a detector, the whole image is one instance (None), with a warning unless
    the run was trained on whole images. If the detector knows some of the classes of the pose
    run, its others are dropped. `pre` is that of the pose run: a detector of another range of
    values reads the images by its own.
    """
    warned = pre.padding == 1
    other = pre if detector is None else getattr(detector.predict, "preprocessing", pre)
    own, same = other.reading, other.reading == pre.reading
    while batch := list(islice(images, 1 if detector is None else detector.predict.batch_size)):
        unknown = [image for image in batch if image.boxes is None]
        if detector is not None:
            seen: list[Any] = [
                one.pixels if same else open_image(one.given, own) for one in unknown
            ]
            if own.bits == 16:  # these have been scaled: an array would be scaled again
                seen = [lambda _, pixels=pixels: pixels for pixels in seen]
            found = iter(detector.predict(seen) if seen else ())
        elif unknown and not warned:
            warned = True
            text = (
                "the run was trained on crops of instances, but got neither boxes nor a detector "
                "(--detector RUN): each whole image is used as one instance"
            )
            warnings.warn(text, MuntinWarning, stacklevel=5)
        for image in batch:
            if image.boxes is not None:
                yield image, Boxes(image.boxes, np.ones(len(image.boxes)), given=True)
            elif detector is None:
                yield image, None
            else:
                yield image, _select(next(found), detector, classes)


def _select(found: Any, detector: BoxDetector, classes: Classes) -> Boxes:  # noqa: ANN401 (Detections)
    shared = {*detector.predict.classes.names} & {*classes.names}
    wanted = found.scores >= detector.threshold
    if shared:  # otherwise every detection is an instance
        wanted &= np.array([name in shared for name in found.class_names], bool)
    return Boxes(found.boxes[wanted], found.scores[wanted], given=False)


def crop_instances(
    image: LoadedImage, boxes: Boxes | None, pre: Preprocessing, skeleton: Skeleton
) -> CroppedImage:
    """Crop every instance of an image; without boxes, the whole image is one instance."""
    if boxes is None:
        return CroppedImage(1, _cut(image, [None], pre), itemgetter(0))
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


def _merge(
    poses: Sequence[Poses], *, path: str, size: Size, boxes: Boxes, skeleton: Skeleton
) -> Poses:
    """Merge the instances of an image into one result, best first.

    Of duplicate poses, that with the higher box score is kept, whatever the threshold.
    """
    count = len(skeleton.names)
    every = Poses(
        path=path,
        size=size,
        keypoints=np.concatenate([np.zeros((0, count, 3)), *(one.keypoints for one in poses)]),
        scores=np.concatenate([np.zeros(0), *(one.scores for one in poses)]) * boxes.scores,
        keypoint_names=skeleton.names,
        edges=skeleton.edges,
        flip_pairs=skeleton.flip_pairs,
        boxes=boxes.edges,
        box_scores=None if boxes.given else boxes.scores,
    )
    if boxes.given:
        return every
    diagonal = float(np.hypot(*size))
    areas = np.array([estimate_area(np.zeros((0, 2)), box, diagonal) for box in boxes.edges])
    points, sigmas = every.keypoints[:, :, :2], np.array(skeleton.sigmas)
    kept = every.select(suppress_poses(points, boxes.scores, areas, sigmas))
    return kept.select(np.argsort(-kept.scores, kind="stable"))
