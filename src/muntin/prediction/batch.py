# SPDX-License-Identifier: Apache-2.0
"""Inputs of prediction (paths, folders, patterns, arrays, PIL images), their crops and batches."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from muntin.data.archives import open_packed, path_of
from muntin.data.batches import fit, padded_size, stack_images
from muntin.data.decoding import open_image
from muntin.data.image_formats import is_image
from muntin.data.shard_addresses import find_address
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.data.trees import find_runs, is_within
from muntin.data.value_ranges import UNSET, AnyReading
from muntin.errors import DataError, MuntinWarning, shorten, where_to_look
from muntin.prediction.video import VIDEO_SUFFIXES, read_frames
from muntin.shapes import Real, Size
from muntin.tasks.task import DEFAULT_OPTIONS, ImageMeta, PredictOptions

ImageLike = str | Path | bytes | Image.Image | NDArray[Any] | Callable[[AnyReading], NDArray[Any]]
"""A path, the bytes of an image file, a PIL image, or an (H, W, 3) RGB array: uint8, or values that
a run has a range for; or a function that gives the uint8 pixels of what it reads, by the range of a
run."""


class LoadedImage(NamedTuple):
    """A decoded image, (H, W, 3) uint8 RGB, or as `PixelReading` has it.

    The path is empty for arrays and PIL images;
    `boxes` are (N, 4) left, top, right and bottom edges in pixels of given instances; `given` is
    what was read, for a network that sees it by another range of values.
    """

    path: str
    pixels: NDArray[Any]
    boxes: NDArray[np.float64] | None = None
    given: Any = None

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """List the image files behind paths, folders (searched recursively) and shell patterns.

    Files of a folder or a pattern are sorted by name; a place without images is a DataError.
    """
    found: list[Path] = []
    for text in places:
        place = Path(text)
        if not str(text).strip():
            message = f"a path to images must not be empty, got {str(text)!r}. Check the command."
            raise DataError(message)
        if address := find_address(text):
            sets = open_packed(address).index.listings(address).values()
            names = sorted({entry.path for one in sets for entry in one.entries})
            here = [path_of(address) / name for name in names]
        elif place.is_dir():
            here = _search(place)
        else:
            here = [place] if place.exists() else [] if "://" in str(text) else _match(place)
        if not here:
            what = "no file of an image format" if place.is_dir() else "nothing"
            advice = where_to_look(text, "images, folders, patterns or videos")
            message = f"no image found at {str(text)!r}: got {what}. {advice}"
            raise DataError(message)
        found += here
    return found


def _search(place: Path) -> list[Path]:
    """The images of a folder, without those that trainings drew in folders of theirs."""
    names = [path.relative_to(place).as_posix() for path in place.rglob("*")]
    if runs := find_runs(names):
        text = f"run folders of muntin in {str(place)!r} are left out: {shorten(runs)}"
        warnings.warn(text, MuntinWarning, stacklevel=3)
        names = [name for name in names if not is_within(name, runs)]
    return sorted(place / name for name in names if is_image(name, place))


def _match(place: Path) -> list[Path]:
    """Files that a shell pattern matches; none for a path without one."""
    base = Path(place.anchor) if place.is_absolute() else Path()
    pattern = str(place.relative_to(base))
    if not any(sign in pattern for sign in "*?["):
        return []
    found = []
    with contextlib.suppress(ValueError):  # ** beside other letters
        found = sorted(path for path in base.glob(pattern) if path.is_file())
    if not found:
        message = f"the pattern {str(place)!r} must match images, got no match. Check the pattern."
        raise DataError(message)
    return found


def read_images(
    images: ImageLike | Iterable[ImageLike],
    boxes: Iterable[Any] | None = None,
    *,
    strict: bool = True,
    value_range: AnyReading = UNSET,
) -> Iterator[LoadedImage]:
    """Read images one at a time, in order; lazily.

    A folder, a pattern or a video stands for its images; a frame is called ``VIDEO#NUMBER``.
    `boxes` are the instances in each image (of a single image: its boxes). Unless `strict`, an
    image that cannot be read is left out, with a warning that names it. `value_range` is that of
    `Preprocessing`, or its `reading`.
    """
    single = isinstance(images, (str, Path, bytes, Image.Image, np.ndarray))
    if not single and not isinstance(images, Iterable) and not (single := callable(images)):
        message = (
            f"images must be a path, a PIL image, a uint8 array or a list of them, got "
            f"{type(images).__name__}."
        )
        raise DataError(message)
    counts = [len(one) for one in (images, boxes) if isinstance(one, Sequence)]
    if not single and len(counts) == 2 and counts[0] < counts[1]:
        message = f"boxes must be one list an image, got {counts[1]} lists for {counts[0]} images."
        raise DataError(message)
    many = cast("Iterable[ImageLike]", [images] if single else images)
    given = None if boxes is None else iter([boxes] if single else boxes)
    return _read(many, given, strict, value_range)


def _read(
    images: Iterable[ImageLike],
    given: Iterator[Any] | None,
    strict: bool,
    value_range: AnyReading,
) -> Iterator[LoadedImage]:
    for path, image in expand_places(images, strict):
        boxes = None if given is None else next(given, None)
        if given is not None and boxes is None:
            message = f"boxes must be given for every image, got too few: {image!r} has none."
            raise DataError(message)
        try:
            pixels = open_image(image, value_range)
        except DataError as error:
            _skip(error, strict)
            continue
        checked = None if boxes is None else check_boxes(boxes, path or "an image")
        yield LoadedImage(path, pixels, checked, image)


def _skip(error: DataError, strict: bool) -> None:
    """Warn of an input that is left out; raise the error if that is `strict`."""
    if strict:
        raise error
    warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=5)


def expand_places(images: Iterable[ImageLike], strict: bool) -> Iterator[tuple[str, ImageLike]]:
    """Give each image with its path; of folders, patterns and videos those behind them."""
    for image in images:
        if not isinstance(image, str | Path):
            yield "", image
            continue
        place = Path(image)
        try:
            if place.suffix.lower() in VIDEO_SUFFIXES and place.is_file():
                for number, frame in enumerate(read_frames(place)):
                    yield f"{image}#{number}", frame
            elif place.is_dir() or _is_pattern(str(image)) or _is_packed(str(image)):
                yield from ((str(path), path) for path in find_images([image]))
            else:
                yield str(image), image
        except DataError as error:
            _skip(error, strict)


def _is_packed(text: str) -> bool:
    """Whether a text is the address of a packed data set, which is never that of an image."""
    return ("://" in text or "{" in text) and not is_image(text) and bool(find_address(text))


def _is_pattern(text: str) -> bool:
    """Whether a text is a shell pattern, and neither an address nor the name of a file."""
    return bool(set("*?[") & set(text)) and "://" not in text and not Path(text).exists()


def check_boxes(boxes: Any, where: str) -> NDArray[np.float64]:  # noqa: ANN401 (of a user)
    """Convert boxes to an (N, 4) array of left, top, right and bottom edges in pixels."""
    try:
        rows = np.asarray(boxes, np.float64)
        rows = rows.reshape(-1, 4) if rows.size == 0 else rows
    except (TypeError, ValueError) as error:
        message = f"boxes must be rows of four numbers, got {boxes!r} for {where}."
        raise DataError(message) from error
    good = rows.ndim == 2 and rows.shape[1] == 4 and np.isfinite(rows).all()
    if not good or (rows[:, 2:] <= rows[:, :2]).any():
        message = (
            f"boxes must be rows of left, top, right and bottom edge in pixels, each right of and "
            f"below the other, got {np.asarray(boxes).tolist()!r} for {where}."
        )
        raise DataError(message)
    return rows


Merge = Callable[[Sequence[Any]], Any]
"""Merges the results of the crops of an image, in order, into one."""


class Crop(NamedTuple):
    """One network input, not normalised: a whole image, a tile, or one instance."""

    pixels: Real[Tensor, "C h w"]
    meta: ImageMeta


class CroppedImage(NamedTuple):
    """An image as crops, none where a detector found no instance.

    `crops` yields them one at a time, so that never all tiles of a huge image are in memory;
    `merge` merges their results into one, and holds no pixels.
    """

    num_crops: int
    crops: Iterator[Crop]
    merge: Merge


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Crops that go through the network together, padded to one size at the right and the bottom.

    `places` are their numbers in the batch.
    """

    images: Real[Tensor, "B C H W"]
    metas: tuple[ImageMeta, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedBatch:
    """Images ready for `Predictor.run`: decoded, cut and resized, on the CPU.

    Attributes:
        parts: All crops, grouped by padded size; at most `Predictor.batch_size` in each.
        merges: For each image how many crops it has, in a row, and what merges their results.
        options: For the task; mirrored and tiled detection is in the crops.
    """

    parts: tuple[Part, ...]
    merges: tuple[tuple[int, Merge], ...]
    options: PredictOptions = DEFAULT_OPTIONS

    def __len__(self) -> int:
        return len(self.merges)


class RawPart(NamedTuple):
    """Raw output of `muntin.tasks.Task.predict` for a `Part`, with the origin of each crop."""

    raw: Any
    metas: tuple[ImageMeta, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawBatch:
    """Output of `Predictor.run`: raw network output, and what `Predictor.decode` needs.

    Attributes:
        parts: Raw output of each part of the batch.
        merges: As in `PreparedBatch`.
    """

    parts: tuple[RawPart, ...]
    merges: tuple[tuple[int, Merge], ...]

    def __len__(self) -> int:
        return len(self.merges)


def stack_crops(crops: Sequence[Crop], pre: Preprocessing, batch_size: int) -> tuple[Part, ...]:
    """Stack crops into parts of at most `batch_size`, those of one padded size together.

    No crop is padded for the sake of larger ones, so predictions do not depend on the batch.
    """
    parts = []
    for start in range(0, len(crops), batch_size):
        groups: dict[Size, list[int]] = {}
        for place in range(start, min(start + batch_size, len(crops))):
            padded = padded_size(crops[place].pixels, pre.pad_to)
            groups.setdefault(padded, []).append(place)
        parts += [
            Part(
                images=stack_images([crops[place].pixels for place in places], pre),
                metas=tuple(crops[place].meta for place in places),
                places=tuple(places),
            )
            for places in groups.values()
        ]
    return tuple(parts)


def fit_image(image: LoadedImage, pre: Preprocessing) -> Crop:
    """Resize an image, or a tile of one, as the preprocessing asks for."""
    pixels = fit(to_tensor(image.pixels, pre.in_chans), image.size, pre)
    input_size = (pixels.shape[1], pixels.shape[2])
    return Crop(pixels, ImageMeta(path=image.path, size=image.size, input_size=input_size))


def whole_image(image: LoadedImage, pre: Preprocessing) -> CroppedImage:
    """Use a whole image as one crop; its full-size pixels are freed at once."""
    return CroppedImage(1, iter([fit_image(image, pre)]), itemgetter(0))
