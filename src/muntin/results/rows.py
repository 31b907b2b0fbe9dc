# SPDX-License-Identifier: Apache-2.0
"""The rows of results: a small record each, and how results are iterated, filtered and tabled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from muntin.configs import check_range
from muntin.errors import check_columns, missing_extra
from muntin.lazy import resolve_method
from muntin.run_lengths import RunLengths, decode_mask
from muntin.shapes import Size

DEFAULT_SCORE_THRESHOLD = 0.3
"""Score threshold of keypoints in drawings, and of objects where validation found none."""

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A class of an image, with a score in [0, 1]."""

    name: str
    class_id: int
    score: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detection:
    """An object: `xyxy` are its edges in pixels, `rle` is its mask as COCO RLE, if any."""

    name: str
    class_id: int
    score: float
    xyxy: Edges
    rle: RunLengths | None = field(default=None, repr=False)

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The mask, (H, W) of the image, decoded on demand; None if boxes only are predicted."""
        return None if self.rle is None else decode_mask(self.rle)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Region:
    """The pixels of one class: `share` of the image in [0, 1]; `labels` is the whole map."""

    name: str
    class_id: int
    share: float
    labels: NDArray[np.int16] = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the class is, (H, W) of the image."""
        return self.labels == self.class_id


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pose:
    """An instance: `keypoints` (K, 3) are x, y and score of each, as in `muntin.results.Poses`."""

    score: float
    keypoints: NDArray[np.float64]
    keypoint_names: tuple[str, ...]
    xyxy: Edges | None = None
    box_score: float | None = None


Row = TypeVar("Row")
_Result = TypeVar("_Result", bound="Rows[Any]")


class Rows(Generic[Row]):
    """A result as a sequence of records.

    A number gives a record; a slice, a list of numbers or an array of booleans a smaller result.
    """

    __slots__ = ()

    path: str
    size: Size
    scores: NDArray[np.float64]

    # Above this room: it opens and draws the image.
    _repr_html_ = resolve_method("muntin.prediction.display", "show_result")

    # Fields with a value for each row; a field may be None.
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check that all columns have equal length."""
        check_columns(**{name: getattr(self, name) for name in self.columns})

    def __len__(self) -> int:
        """Number of records."""
        return len(self.scores)

    def __iter__(self) -> Iterator[Row]:
        """Give the records in order."""
        return (self.row(number) for number in range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Row: ...
    @overload
    def __getitem__(self: _Result, key: slice | Sequence[int] | NDArray[Any]) -> _Result: ...
    def __getitem__(self, key: int | np.integer[Any] | slice | Sequence[int] | NDArray[Any]) -> Any:
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                message = (
                    f"the number must be below the {len(self)} records of the result, got {key}."
                )
                raise IndexError(message)
            return self.row(int(key) % len(self))
        return self.select(np.arange(len(self))[key])

    def __repr__(self) -> str:
        """One line, without arrays."""
        place = f"{self.path}, " if self.path else ""
        height, width = self.size
        return f"{type(self).__name__}({place}{height} x {width}: {self.describe()})"

    def row(self, number: int) -> Row:
        """Give one record; numbers count from 0."""
        raise NotImplementedError

    def select(self: _Result, rows: NDArray[np.int64]) -> _Result:
        """Select rows by index, in this order."""
        result: Any = self
        chosen: dict[str, Any] = {}
        for name in self.columns:
            column = getattr(self, name)
            if isinstance(column, tuple):
                chosen[name] = tuple(column[row] for row in rows)
            elif column is not None:
                chosen[name] = column[rows]
        return replace(result, **chosen)

    def above(self: _Result, threshold: float) -> _Result:
        """Keep rows with a score of `threshold` or more, which the result then has.

        0 removes nothing, and leaves the threshold of the result.

        Raises:
            ConfigError: `threshold` is not in [0, 1].
        """
        check_range("threshold", threshold, 0, 1)
        if threshold <= 0:
            return self
        kept: Any = self.select(np.flatnonzero(self.ranking >= threshold))
        return replace(kept, threshold=threshold)

    @property
    def ranking(self) -> NDArray[np.float64]:
        """The scores that a threshold is compared with."""
        return self.scores

    def describe(self) -> str:
        """Say in one line what was found, from the threshold of the result on."""
        raise NotImplementedError

    def to_columns(self) -> dict[str, Sequence[Any] | NDArray[Any]]:
        """Give the columns of a table: name -> values, of equal length.

        Words and rows are those of the CSV of `muntin predict`: a row a record, of poses a row a
        keypoint. All records are there, whatever the threshold. Edges are in pixels of the
        original.
        """
        raise NotImplementedError

    def image_columns(self, count: int) -> dict[str, NDArray[Any]]:
        """Give the columns that say which image a row is of, `count` times."""
        height, width = self.size
        return {
            "path": text_column([self.path] * count),
            "image_height": np.full(count, height),
            "image_width": np.full(count, width),
        }

    def to_pandas(self) -> Any:  # noqa: ANN401 (pandas.DataFrame)
        """Convert to a ``pandas.DataFrame`` of `to_columns`.

        Raises:
            MissingExtra: The library pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            missing = missing_extra("pandas", "pandas", "to_pandas")
            raise missing from error
        return pandas.DataFrame(self.to_columns())


def edges_of(box: NDArray[np.float64]) -> Edges:
    """Convert a box to four numbers of Python."""
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def text_column(texts: Sequence[str]) -> NDArray[np.object_]:
    """Make a column of text, which it is without rows, too."""
    column = np.empty(len(texts), object)
    column[:] = texts
    return column


def edge_columns(boxes: NDArray[np.float64] | None) -> Mapping[str, NDArray[np.float64]]:
    """Split (N, 4) boxes into columns; none without boxes."""
    names = ("xmin", "ymin", "xmax", "ymax")
    return {} if boxes is None else dict(zip(names, boxes.T, strict=True))


def import_supervision() -> Any:  # noqa: ANN401 (a module without types)
    """Import supervision, an optional library.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        missing = missing_extra("supervision", "supervision", "to_supervision")
        raise missing from error
    return supervision
