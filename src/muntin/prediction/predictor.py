# SPDX-License-Identifier: Apache-2.0
"""The predictor: images in, results in pixels of the original images out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from muntin.configs import check_range
from muntin.data.band_selection import open_bands
from muntin.data.batches import evaluation_batch
from muntin.data.transforms import Preprocessing
from muntin.devices import choose_device
from muntin.errors import ConfigError
from muntin.prediction.batch import (
    Crop,
    CroppedImage,
    ImageLike,
    LoadedImage,
    PreparedBatch,
    RawBatch,
    RawPart,
    read_images,
    stack_crops,
    whole_image,
)
from muntin.prediction.tiling import crop_views
from muntin.prediction.top_down import (
    BoxDetector,
    Detector,
    crop_instances,
    find_boxes,
    refuse_detector,
)
from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Poses
from muntin.samples import Classes, skeleton_of
from muntin.tasks.task import DEFAULT_OPTIONS, InferenceBatch, PredictOptions, Task


@dataclass(kw_only=True, slots=True, eq=False)
class _Pending:
    """An image some of whose crops may not have been run yet."""

    image: CroppedImage
    results: list[Any] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.results) == self.image.num_crops


class Predictor:
    """A network, and everything between an image file and a result.

    A call is made of three parts, which are public so that a server or a cluster can run each where
    it wants: `prepare` (decode and resize, on the CPU), `run` (the network, on its device) and
    `decode` (raw output to results). A call changes nothing of the predictor, so that several
    threads may use one.

    Args:
        network: Backbone and head, with their weights; moved to `device`, in evaluation mode.
        task: Runs the network and decodes its output.
        classes: Names of the classes.
        preprocessing: How an image is resized and normalised.
        device: "auto", "cpu", "cuda" or "mps", or a device.
        batch_size: Crops (whole images, tiles, instances) in a batch of the network; fewer where
            they are large.
        detector: For top-down poses: detects the instances, with the default score threshold
            unless it is a `muntin.prediction.top_down.BoxDetector` with another one.

    Attributes:
        threshold: Score, in [0, 1], from which on drawings and counts show what is found; results
            carry it. Set by `muntin.load` to that of the run; other values may be assigned.

    Raises:
        ConfigError: An argument is out of range, or the detector does not suit the task.

    Examples:
        >>> import numpy as np
        >>> from muntin.data.transforms import Preprocessing
        >>> from muntin.samples import Classes
        >>> from muntin.tasks.task_table import find_task
        >>> from muntin.zoo import create_model
        >>> predictor = Predictor(
        ...     create_model("swin_nano", num_classes=2), find_task("classify"),
        ...     Classes(names=("disc", "ring")),
        ...     Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3),
        ... )
        >>> batch = predictor.prepare([np.zeros((30, 40, 3), np.uint8)] * 3)
        >>> results = predictor.decode(predictor.run(batch))
        >>> len(results), results[0].size
        (3, (30, 40))
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        classes: Classes,
        preprocessing: Preprocessing,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        detector: BoxDetector | Detector | None = None,
    ) -> None:
        check_range("batch_size", batch_size, 1, 10**6)
        if detector is not None and not isinstance(detector, BoxDetector):
            detector = BoxDetector(detector)
        if detector is not None:
            refuse_detector(task, detector.predict.task)
        self.task: Task = task
        self.device = choose_device(device) if isinstance(device, str) else device
        self.network = network.to(self.device).eval()
        self.classes = classes
        self.preprocessing = preprocessing
        self.batch_size = evaluation_batch(preprocessing, batch_size) if task.dense else batch_size
        self.detector = detector
        # A detector of instances has selected them already.
        self.threshold = DEFAULT_SCORE_THRESHOLD if task.detects else 0.0

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        tta: bool = False,
        tile: int | Literal["auto"] | None = None,
        scales: Sequence[Any] = (1.0,),
        boxes: Iterable[Any] | None = None,
        strict: bool = True,
    ) -> list[Any]:
        """Predict: the list of what `stream` yields, with the same arguments and errors."""
        return list(
            self.stream(images, tta=tta, tile=tile, scales=scales, boxes=boxes, strict=strict)
        )

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        tta: bool = False,
        tile: int | Literal["auto"] | None = None,
        scales: Sequence[Any] = (1.0,),
        boxes: Iterable[Any] | None = None,
        strict: bool = True,
    ) -> Iterator[Any]:
        """Predict any number of images in the memory of one batch.

        Images are read when their batch is due, and their pixels freed before the next is read.

        Args:
            images: The path of an image, a folder, a pattern such as ``photos/*.jpg`` or a video;
                the bytes of an image file, a PIL image, an (H, W, 3) uint8 RGB array; or an
                iterable of these, which may be a generator.
            tta: Whether the mirrored image goes through the network too, and both answers are
                merged.
            tile: Side in pixels of the tiles that large images are cut into, for detectors, beside
                the whole image; "auto" takes the size of the training images, for images that are
                much larger. For segmentation, the side of the sliding window. None cuts none.
            scales: For segmentation: factors on the input size; the scores of all scales are
                averaged.
            boxes: For top-down poses: where the instances of each image are, rows of left, top,
                right and bottom edge in pixels, an entry an image. Left out, the detector finds
                them; without a detector the whole image is one instance.
            strict: Whether an image that cannot be read is an error; otherwise it is left out of
                the results with a warning that names it.

        Yields:
            One result of `muntin.results` an image, in order, in pixels of the original image.

        Raises:
            DataError: An image cannot be read.
            ConfigError: The task does not support tiles, scales or boxes (before anything is read).
        """
        options = check_options(self.task, tta, tile, scales, boxes is not None)
        return self._stream(self._read(images, boxes, strict=strict), options)

    def prepare(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        tta: bool = False,
        tile: int | Literal["auto"] | None = None,
        scales: Sequence[Any] = (1.0,),
        boxes: Iterable[Any] | None = None,
        strict: bool = True,
    ) -> PreparedBatch:
        """Decode, cut and resize images, on the CPU; where there is a detector, it is run.

        All of the given images, with all of their tiles and instances, are in memory afterwards:
        give a batch at a time. Arguments and errors are those of `stream`.
        """
        options = check_options(self.task, tta, tile, scales, boxes is not None)
        cropped = list(self._crop(self._read(images, boxes, strict=strict), options))
        crops = [crop for image in cropped for crop in image.crops]
        return self._batch(crops, cropped, options)

    @torch.no_grad()
    def run(self, batch: PreparedBatch) -> RawBatch:
        """Run the network on what `prepare` returned; anything else is a `TypeError`.

        The raw output is on the device; with it comes what `decode` needs, without any pixels.
        """
        _check_record("run", batch, PreparedBatch, "prepare")
        parts = []
        for part in batch.parts:
            inputs = InferenceBatch(
                network=self.network,
                images=part.images,
                metas=part.metas,
                pre=self.preprocessing,
                classes=self.classes,
                device=self.device,
                options=batch.options,
            )
            parts.append(RawPart(self.task.predict(inputs), part.metas, part.places))
        return RawBatch(parts=tuple(parts), merges=batch.merges)

    @torch.no_grad()
    def decode(self, raw: RawBatch) -> list[Any]:
        """Convert what `run` returned to results; anything else is a `TypeError`.

        There is one result of `muntin.results` an image, in order, in pixels of the original image.
        """
        _check_record("decode", raw, RawBatch, "run")
        found = iter(self._decode_crops(raw))
        merged = (merge([next(found) for _ in range(count)]) for count, merge in raw.merges)
        return [*map(self._finish, merged)]

    def _read(
        self,
        images: ImageLike | Iterable[ImageLike],
        boxes: Iterable[Any] | None,
        *,
        strict: bool = True,
    ) -> Iterator[LoadedImage]:
        return read_images(images, boxes, strict=strict, value_range=self.preprocessing.reading)

    def _stream(self, images: Iterator[LoadedImage], options: PredictOptions) -> Iterator[Any]:
        """Fill batches across images; an image is done when the last of its crops is."""
        pending: deque[_Pending] = deque()
        crops: list[Crop] = []
        owners: list[_Pending] = []
        num_images = 0
        for image in self._crop(images, options):
            pending.append(_Pending(image=image))
            num_images += 1
            for crop in image.crops:
                crops.append(crop)
                owners.append(pending[-1])
                if len(crops) == self.batch_size:
                    self._run_crops(crops, owners, options)
                    crops, owners, num_images = [], [], 0
            # Also after batch_size images: images without instances never fill a batch.
            if num_images >= self.batch_size and crops:
                self._run_crops(crops, owners, options)
                crops, owners, num_images = [], [], 0
            yield from map(self._finish, _merge_complete(pending))
        if crops:
            self._run_crops(crops, owners, options)
        yield from map(self._finish, _merge_complete(pending))

    @property
    def threshold(self) -> float:
        """Score, in [0, 1], from which on drawings and counts show what is found."""
        return self._threshold

    @threshold.setter
    def threshold(self, score: float) -> None:
        check_range("threshold", score, 0, 1)
        self._threshold = score

    def _finish(self, result: Any) -> Any:  # noqa: ANN401 (one of muntin.results)
        if isinstance(result, Detections | Poses):
            return replace(result, threshold=self.threshold)
        return result

    def _run_crops(
        self, crops: Sequence[Crop], owners: Sequence[_Pending], options: PredictOptions
    ) -> None:
        # Never open across a yield: it is per thread, and the caller may compute gradients.
        with torch.inference_mode():
            found = self._decode_crops(self.run(self._batch(crops, (), options)))
        for result, owner in zip(found, owners, strict=True):
            owner.results.append(result)

    def _decode_crops(self, raw: RawBatch) -> list[Any]:
        results: dict[int, Any] = {}
        for part in raw.parts:
            decoded = self.task.decode(part.raw, part.metas, self.classes)
            results.update(zip(part.places, decoded, strict=True))
        return [results[place] for place in range(len(results))]

    def _batch(
        self, crops: Sequence[Crop], images: Sequence[CroppedImage], options: PredictOptions
    ) -> PreparedBatch:
        return PreparedBatch(
            parts=stack_crops(crops, self.preprocessing, self.batch_size),
            merges=tuple((image.num_crops, image.merge) for image in images),
            # Mirror images and tiles of detectors are crops of their own.
            options=DEFAULT_OPTIONS if self.task.detects else options,
        )

    def _crop(
        self, images: Iterator[LoadedImage], options: PredictOptions
    ) -> Iterator[CroppedImage]:
        pre = self.preprocessing
        if self.task.top_down:
            found = find_boxes(images, self.detector, self.classes, pre)
            skeleton = skeleton_of(self.classes)
            return (crop_instances(image, boxes, pre, skeleton) for image, boxes in found)
        if self.task.detects and (options.tta or options.tile is not None):
            head: Any = self.network.head
            cut = partial(crop_views, select=head.config.select, tile=options.tile, tta=options.tta)
            return (cut(image, pre) for image in images)
        return (whole_image(image, pre) for image in images)


def _check_record(name: str, record: object, kind: type, source: str) -> None:
    if not isinstance(record, kind):
        message = (
            f"{name} takes the {kind.__name__} that {source} returns, got a "
            f"{type(record).__name__}. Call {source} first."
        )
        raise TypeError(message)


def check_options(
    task: Task, tta: bool, tile: int | Literal["auto"] | None, scales: Sequence[Any], boxes: bool
) -> PredictOptions:
    """Refuse with a `ConfigError` what does not suit a task; `boxes` is whether there are some."""
    if tile not in (None, "auto") and not isinstance(tile, int):
        message = f'tile must be a side in pixels or "auto", got {tile!r}.'
        raise ConfigError(message)
    merges = task.dense is not None and task.dense.merges
    at_once = task.detects and not merges
    tiled = tile is not None
    if (tiled and not (merges or task.kind == "segmentation")) or (tta and at_once):
        why = " (its input is one instance at a time)" if task.top_down else ""
        message = (
            f"{'tile' if tiled else 'tta'} does not suit a {task.name} run with this head"
            f"{why}. Leave it out."
        )
        raise ConfigError(message)
    if boxes and not task.top_down:
        message = f"boxes need a top-down pose run, got a {task.name} run. Leave them out."
        raise ConfigError(message)
    return PredictOptions(tta=tta, tile=tile, scales=_check_scales(task, scales))


def _check_scales(task: Task, scales: Sequence[Any]) -> tuple[float, ...]:
    try:
        chosen = () if isinstance(scales, str) else tuple(map(float, scales))
    except (TypeError, ValueError):
        chosen = ()
    if not chosen:
        message = f"scales must be numbers such as (0.75, 1, 1.25), got {scales!r}."
        raise ConfigError(message)
    for scale in chosen:
        check_range("scales", scale, 0.1, 10)
    if chosen != (1.0,) and task.kind != "segmentation":
        message = (
            f"scales need a semantic segmentation run, got one of {task.name}. Leave them out."
        )
        raise ConfigError(message)
    return chosen


def _merge_complete(pending: deque[_Pending]) -> Iterator[Any]:
    while pending and pending[0].complete:
        done = pending.popleft()
        yield done.image.merge(done.results)


def draw(
    image: ImageLike,
    result: Any,  # noqa: ANN401 (one of muntin.results)
    *,
    threshold: float | None = None,
    bands: Sequence[int] = (),
) -> Image.Image:
    """Draw a result on its image, as a new image of at most 1280 pixels on the longer side.

    `threshold` is the minimum score, in [0, 1], of what is drawn; 0 draws everything. None takes
    that of the result, which is that of its run. `bands` are shown of images with more than three
    (`open_bands`).

    Raises:
        DataError: The image cannot be read.
        ShapeError: Its size is not that of the result; of `Labels` any will do.
    """
    from muntin.drawing.result_drawing import draw_result

    return draw_result(open_bands(image, bands), result, threshold=threshold)
