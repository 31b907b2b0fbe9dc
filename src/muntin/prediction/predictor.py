# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The predictor: a network that takes pictures and gives results."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from muntin.configs import check_range
from muntin.data.batches import evaluation_batch, padded_size, stack_pictures
from muntin.data.decoding import open_picture
from muntin.data.fitting import fit
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.devices import choose_device
from muntin.drawing.results import draw_result
from muntin.errors import ConfigError, DataError, MuntinWarning
from muntin.prediction.subjects import check_boxes, find_poses
from muntin.prediction.tiling import Window, cut_windows, merge_views, mirror_back, place_in
from muntin.results import SURE
from muntin.samples import Classes
from muntin.shapes import Size
from muntin.tasks.task import Glance, Task, View

__all__ = ["Picture", "Predictor", "draw", "refuse_detector"]

Picture = str | Path | Image.Image | NDArray[np.uint8]


class Opened(NamedTuple):
    """A picture in memory, the file that it is from, and where its subjects are."""

    path: str
    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64] | None = None

    @property
    def size(self) -> Size:
        return self.pixels.shape[0], self.pixels.shape[1]


class Predictor:
    """A network that takes pictures and gives results. It keeps no state between calls.

    Args:
        network: Backbone and head, with their weights.
        task: What raw output means.
        classes: Names of the classes.
        preprocessing: What happens to a picture first.
        device: Where to run; the network is moved there.
        batch_size: Pictures at a time; fewer where they are large.
        detector: Says where the subjects are whose keypoints are wanted.
        least: Score of its boxes from which they count.
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
        detector: Predictor | None = None,
        least: float = SURE,
    ) -> None:
        check_range("batch_size", batch_size, 1, 10**6)
        check_range("least", least, 0, 1)
        self.task: Task = task
        if detector is not None:
            refuse_detector(task, detector.task)
        self.device = choose_device(device) if isinstance(device, str) else device
        self.network = network.to(self.device).eval()
        self.classes = classes
        self.preprocessing = preprocessing
        self.batch_size = evaluation_batch(preprocessing, batch_size) if task.dense else batch_size
        self.detector = detector
        self.least = least

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        tta: bool = False,
        tile: int | Literal["auto"] | None = None,
        scales: Sequence[Any] = (1.0,),
        boxes: Sequence[Any] | None = None,
        strict: bool = True,
    ) -> list[Any]:
        """Predict.

        Args:
            images: A path, a PIL picture, an (H, W, 3) uint8 RGB array, or a list of them.
            tta: Whether the mirrored picture is seen too, and both answers become one.
            tile: Side in pixels of the tiles in which large pictures are seen, for tasks that
                find things; "auto" takes the size of the training pictures, for pictures that
                are much larger. The whole picture is seen as well. None shows all at once.
            scales: Factors of the size at which a picture is seen, for tasks that tell the class of
                each pixel; all of them make the answer.
            boxes: For keypoints, where the subjects are: rows of left, top, right and bottom edge
                in pixels, for each picture. Left out, the detector says it, or the whole picture
                is one subject.
            strict: Whether a picture that cannot be read is an error; else it is left out of the
                results with a warning that names it.

        Returns:
            One result a picture, in order.

        Raises:
            DataError: A picture cannot be read.
            ConfigError: The task has no use for tiles, scales or boxes.
        """
        if tile not in (None, "auto") and not isinstance(tile, int):
            message = f'tile must be a side in pixels or "auto", got {tile!r}.'
            raise ConfigError(message)
        self._refuse_views(tile is not None, tta)
        if boxes is not None and not self.task.top_down:
            message = f"boxes are for keypoints, got a run that was trained to {self.task.name}."
            raise ConfigError(message)
        scales = self._check_scales(scales)
        single = isinstance(images, (str, Path, Image.Image, np.ndarray))
        if not single and not isinstance(images, Iterable):
            message = (
                f"images must be a path, a PIL picture, a uint8 array or a list of them, got "
                f"{type(images).__name__}."
            )
            raise DataError(message)
        many: Iterable[Picture] = [images] if single else images  # type: ignore[list-item,assignment]
        places = None if boxes is None else iter([boxes] if single else boxes)
        results: list[Any] = []
        waiting: list[Opened] = []
        for image in many:
            given = None if places is None else next(places, None)
            if places is not None and given is None:
                message = f"boxes must be given for every picture, got too few: {image!r} has none."
                raise DataError(message)
            try:
                pixels = open_picture(image)
            except DataError as error:
                if strict:
                    raise
                warnings.warn(f"left out: {error}", MuntinWarning, stacklevel=2)
                continue
            path = str(image) if isinstance(image, (str, Path)) else ""
            where = None if given is None else check_boxes(given, path or "a picture")
            waiting.append(Opened(path, pixels, where))
            if len(waiting) == self.batch_size or tile is not None:
                results += self._predict(waiting, tta, tile, scales)
                waiting = []
        return results + (self._predict(waiting, tta, tile, scales) if waiting else [])

    def _predict(
        self,
        rows: list[Opened],
        tta: bool,
        tile: int | Literal["auto"] | None,
        scales: tuple[float, ...],
    ) -> list[Any]:
        if self.task.top_down:
            return find_poses(self, rows, tta)
        if self.task.detects and (tile is not None or tta):
            return [self._find_in_views(row, tta, tile) for row in rows]
        return self._see(rows, tta, None if tile == "auto" else tile, scales)

    def _refuse_views(self, tile: bool, tta: bool) -> None:
        """Refuse views that no answer can be made of."""
        dense = self.task.dense
        merges = dense is not None and dense.merges
        at_once = self.task.detects and not merges
        if (tile and not (merges or self.task.kind == "segmentation")) or (tta and at_once):
            why = " (it sees one subject at a time)" if self.task.top_down else ""
            message = (
                f"a run of {self.task.name} with its head has no use for "
                f"{'tile' if tile else 'tta'}{why}. Leave it out."
            )
            raise ConfigError(message)

    def _check_scales(self, scales: Sequence[Any]) -> tuple[float, ...]:
        try:
            chosen = () if isinstance(scales, str) else tuple(map(float, scales))
        except (TypeError, ValueError):
            chosen = ()
        if not chosen:
            message = f"scales must be numbers such as (0.75, 1, 1.25), got {scales!r}."
            raise ConfigError(message)
        for scale in chosen:
            check_range("scales", scale, 0.1, 10)
        if chosen != (1.0,) and self.task.kind != "segmentation":
            message = (
                f"scales are for maps of classes, got a run that was trained to {self.task.name}. "
                f"Leave them out."
            )
            raise ConfigError(message)
        return chosen

    @torch.inference_mode()
    def _see(
        self,
        rows: list[Opened],
        tta: bool = False,
        tile: int | None = None,
        scales: tuple[float, ...] = (1.0,),
    ) -> list[Any]:
        """Pictures of one size go together; what is said of one never depends on another."""
        pre = self.preprocessing
        fitted = [fit(to_tensor(row.pixels, pre.in_chans), row.size, pre) for row in rows]
        groups: dict[Size, list[int]] = {}
        for place, picture in enumerate(fitted):
            groups.setdefault(padded_size(picture), []).append(place)
        results: dict[int, Any] = {}
        for places in groups.values():
            views = [
                View(
                    path=rows[place].path,
                    size=rows[place].size,
                    shown=(fitted[place].shape[1], fitted[place].shape[2]),
                )
                for place in places
            ]
            glance = Glance(
                network=self.network,
                images=stack_pictures([fitted[place] for place in places], pre),
                views=views,
                pre=pre,
                classes=self.classes,
                device=self.device,
                tta=tta,
                tile=tile,
                scales=scales,
            )
            decoded = self.task.decode(self.task.see(glance), views, self.classes)
            results.update(zip(places, decoded, strict=True))
        return [results[place] for place in range(len(rows))]

    def _find_in_views(self, row: Opened, tta: bool, tile: int | Literal["auto"] | None) -> Any:  # noqa: ANN401 (each task has its own)
        """See a picture as a whole and in tiles, mirrored or not, and make one result of it."""
        tiles = self._tiles(row.size, tile)
        windows = [Window(0, 0, *row.size), *tiles]
        seen, placed = [], []
        for start in range(0, len(windows), self.batch_size):
            part = windows[start : start + self.batch_size]
            crops = [Opened(row.path, window.cut(row.pixels)) for window in part]
            answers = self._see(crops)
            if tta:
                mirrored = [Opened(row.path, crop.pixels[:, ::-1]) for crop in crops]
                answers += [mirror_back(answer) for answer in self._see(mirrored)]
            views = part * (2 if tta else 1)
            placed += [place_in(one, w, row.size) for one, w in zip(answers, views, strict=True)]
            seen += views
        head: Any = self.network.head
        select = head.config.select
        # A picture of many tiles may hold as many objects in each.
        return merge_views(placed, seen, select, select.max_detections * max(1, len(tiles)))

    def _tiles(self, size: Size, tile: int | Literal["auto"] | None) -> list[Window]:
        """Tiles of a picture; none where one tile would hold it."""
        if tile is None:
            return []
        if tile == "auto":
            side = self.preprocessing.typical_size
            side = side if min(side) > 0 else self.preprocessing.img_size
            if max(size) <= 1.5 * max(side):
                return []
        else:
            side = (tile, tile)
        windows = cut_windows(size, side)
        return windows if len(windows) > 1 else []


def refuse_detector(task: Task, other: Task) -> None:
    """Refuse a pair of runs of which the second cannot find the subjects of the first.

    Raises:
        ConfigError: The first needs none, or the second finds nothing.
    """
    if not task.top_down:
        message = f"a detector is for keypoints, got one for a run that was trained to {task.name}."
        raise ConfigError(message)
    if not other.detects:
        message = (
            f"detector must be a run of muntin train detect or instance, got one of {other.name}."
        )
        raise ConfigError(message)


def draw(image: Picture, result: Any) -> Image.Image:  # noqa: ANN401 (one of muntin.results)
    """Draw a result on its picture.

    Args:
        image: The picture that was predicted on.
        result: What the predictor gave for it.

    Returns:
        A new picture.

    Raises:
        DataError: The picture cannot be read.
    """
    return draw_result(open_picture(image), result)
