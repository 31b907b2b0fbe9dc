# SPDX-License-Identifier: Apache-2.0
"""The table of formats: what each writes, for which kinds of tasks, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.data.band_selection import open_bands
from muntin.drawing.saving import save_image
from muntin.errors import ConfigError, UsageError, unknown_name
from muntin.prediction.formats.coco_writer import write_coco
from muntin.prediction.formats.deeplabcut_table import write_poses
from muntin.prediction.formats.image_writers import (
    copy_image,
    format_class_table,
    write_crops,
    write_labels,
)
from muntin.prediction.formats.items import Answer, Answers, FormatContext
from muntin.prediction.formats.labelme_writer import write_shapes
from muntin.prediction.formats.table_writers import (
    import_arrow,
    write_csv,
    write_json,
    write_parquet,
)
from muntin.prediction.formats.yolo_writer import format_settings, write_rows
from muntin.prediction.predictor import draw
from muntin.samples import TaskKind

_OBJECTS: tuple[TaskKind, ...] = ("detection", "segmentation", "keypoints")
_EVERY: tuple[TaskKind, ...] = ("classification", *_OBJECTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFiles:
    """What is known when the files of an image are written; `image` is its path or its pixels."""

    result: Any
    answer: Answer
    name: str
    image: Path | NDArray[np.uint8]
    context: FormatContext


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFormat:
    """A format with files of its own for each image.

    Attributes:
        folder: Below that of the results, "" for none.
        ending: Behind the name of the result; "" where the number of files depends on the result.
        copies: Folder of copies of the images, "" for none.
        write: Writes the files of one image to a place.
        fixed: Gives files that do not depend on images, by name.
        of_frames: Whether frames of videos have such files too, in a folder a video.
        is_image: Whether the files, or files beside them, are images.
    """

    name: str
    kinds: Sequence[TaskKind]
    ending: str
    write: Callable[[ImageFiles, Path], object]
    folder: str = ""
    copies: str = ""
    fixed: Callable[[FormatContext], Mapping[str, str]] = lambda context: {}
    of_frames: bool = False
    is_image: bool = True

    def place(self, folder: Path, name: str) -> Path:
        """The file of a result."""
        return folder / self.folder / f"{name}{self.ending}"

    def places(self, folder: Path, name: str, source: str) -> list[Path]:
        """All files of a result that can be foreseen."""
        copied = folder / self.copies / f"{name}{Path(source).suffix}"
        return [self.place(folder, name)] * bool(self.ending) + [copied] * bool(self.copies)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFormat:
    """A format whose files hold all images of a call, or all frames of a video.

    Files of videos are called as the video and `of_video`, the endings of both.
    """

    name: str
    kinds: Sequence[TaskKind]
    files: Sequence[str]
    of_video: Sequence[str]
    write: Callable[[Answers, Sequence[Path], FormatContext], None]
    require: Callable[[], object] = lambda: None


def _draw(files: ImageFiles, place: Path) -> None:
    bands, threshold = files.context.bands, files.context.min_score
    save_image(draw(files.image, files.result, threshold=threshold, bands=bands), place)


def _copy_and_describe(files: ImageFiles, place: Path) -> None:
    suffix = Path(files.answer["path"]).suffix if isinstance(files.image, Path) else ".png"
    copied = files.context.folder / YOLO.copies / f"{files.name}{suffix}"
    copy_image(files.image, copied)
    write_rows(files.answer, place, files.context)


def _describe_shapes(files: ImageFiles, place: Path) -> None:
    answer = files.answer
    if not isinstance(files.image, Path):
        answer = {**answer, "path": str(place.with_suffix(".png"))}
        copy_image(files.image, place.with_suffix(".png"))
    write_shapes(answer, place, replace(files.context, folder=place.parent))


def _cut(files: ImageFiles, place: Path) -> None:
    write_crops(
        files.answer, open_bands(files.image, files.context.bands), files.name, files.context
    )


YOLO = ImageFormat(
    name="yolo", kinds=_OBJECTS, folder="labels", copies="images", ending=".txt",
    write=_copy_and_describe, fixed=format_settings, of_frames=True,
)  # fmt: skip
CROPS = ImageFormat(
    name="crops", kinds=_EVERY, folder="crops", ending="", write=_cut, of_frames=True
)
IMAGE_FORMATS = (
    ImageFormat(name="drawing", kinds=_EVERY, ending=".png", write=_draw),
    ImageFormat(
        name="masks", kinds=("segmentation",), ending="_labels.png",
        write=lambda files, place: write_labels(files.result, place),
        fixed=format_class_table,
    ),
    YOLO,
    ImageFormat(
        name="labelme", kinds=_OBJECTS, ending=".json", write=_describe_shapes, of_frames=True,
        is_image=False,
    ),
)  # fmt: skip
TABLE_FORMATS = (
    TableFormat(
        name="json", kinds=_EVERY, write=write_json,
        files=("predictions.json",), of_video=("_predictions.json",),
    ),
    TableFormat(
        name="csv", kinds=_EVERY, write=write_csv,
        files=("predictions.csv",), of_video=("_predictions.csv",),
    ),
    TableFormat(
        name="parquet", kinds=_EVERY, write=write_parquet, require=import_arrow,
        files=("predictions.parquet",), of_video=("_predictions.parquet",),
    ),
    TableFormat(
        name="coco", kinds=_OBJECTS, write=write_coco,
        files=("predictions_coco.json", "predictions_coco_results.json"),
        of_video=("_coco.json", "_coco_results.json"),
    ),
    TableFormat(
        name="deeplabcut", kinds=("keypoints",), write=write_poses,
        files=("poses.csv",), of_video=(".csv",),
    ),
)  # fmt: skip
DEFAULTS: dict[TaskKind, tuple[str, ...]] = {
    "segmentation": ("drawing", "masks"),
    "keypoints": ("drawing", "deeplabcut"),
}
"""Formats by kind of task, where not a drawing alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Formats:
    """The formats of a call."""

    images: tuple[ImageFormat, ...]
    tables: tuple[TableFormat, ...]

    @property
    def draws(self) -> bool:
        """Whether drawings are among them, which are videos of videos."""
        return any(one.name == "drawing" for one in self.images)


def writes_images(names: Sequence[str], *, crops: bool = False) -> bool:
    """Whether formats write images of images into the folder of results; no names are defaults."""
    return crops or not names or any(one.is_image and one.name in names for one in IMAGE_FORMATS)


def choose_formats(names: Sequence[str], kind: TaskKind, *, crops: bool = False) -> Formats:
    """Find formats by name; none are those that suit the kind of task.

    Raises:
        ConfigError: A name is unknown, or the format cannot hold what such a task predicts.
        MissingExtra: A format needs a library that is not installed.
    """
    every = {one.name: one for one in (*IMAGE_FORMATS, *TABLE_FORMATS)}
    for name in names:
        if name not in every:
            raise UsageError(unknown_name("format", name, every))
        if kind not in every[name].kinds:
            fit = [one.name for one in every.values() if kind in one.kinds]
            message = (
                f"--format {name} cannot hold what a run for {kind} predicts. Choose among "
                f"{', '.join(fit)}."
            )
            raise ConfigError(message)
    chosen = {*(names or DEFAULTS.get(kind, ("drawing",)))}
    tables = tuple(one for one in TABLE_FORMATS if one.name in chosen)
    for table in tables:
        table.require()
    images = [one for one in IMAGE_FORMATS if one.name in chosen]
    return Formats(images=(*images, *([CROPS] * crops)), tables=tables)
